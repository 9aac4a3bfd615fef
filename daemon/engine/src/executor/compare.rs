//! Whether builds and devices compute the same: the logits of a text that is always the same.
//!
//! Invariant: a device that computes other bits than the processor is not used.

use super::{
    AtOnce, Chunk, Executor, ExecutorError, ExecutorOptions, ForwardError, Loading, LogitsFor,
};
use crate::backend::Backend;
use crate::kv::PageName;
use crate::pack;
use std::sync::Arc;

/// How many tokens the text has by whose logits builds are told apart ([`Executor::page_root`]).
const KNOWN_TEXT_TOKENS: usize = 4;

/// How many it has where a device is compared with the processor, which reads it once.
const COMPARED_TOKENS: usize = 80;

/// In which pieces the processor reads that where others answer meanwhile: passes that take little longer than one of an answer.
const PROCESSOR_PIECES: [usize; COMPARED_TOKENS / 16] = [16; COMPARED_TOKENS / 16];

/// In which pieces a device reads that: each is computed by other kernels.
const COMPARED_PIECES: [&[usize]; 2] = [&[COMPARED_TOKENS], &[40, 24, 12, 4]];

impl Executor {
    /// Compares a device's logits of a few tokens with the processor's.
    pub(super) fn compare(
        &mut self,
        options: &ExecutorOptions,
        loading: &mut dyn Loading,
    ) -> Result<(), ExecutorError> {
        let backend = options.backend;
        let options = ExecutorOptions {
            backend: Backend::Cpu,
            batch_tokens_max: COMPARED_TOKENS,
            output_rows_max: 1,
            kv_tokens_max: COMPARED_TOKENS,
            prefix_cache: false,
            ..options.clone()
        };
        // Positions may be turned by how many are served.
        let context = Some(self.context_tokens_max());
        let mut processor =
            Executor::made(Arc::clone(&self.model), &options, None, context, loading)?;
        let failed = |error| match error {
            ForwardError::Interrupted => ExecutorError::GivenUp,
            ForwardError::Device(source) => ExecutorError::Device { backend, source },
            other => ExecutorError::Differs {
                backend,
                what: other.to_string(),
            },
        };
        let text = self.known_text(COMPARED_TOKENS);
        // Others answer between pieces. Where copies of the weights take the files' place, each piece may read the disk again.
        let integrated = self.needs.device.is_some_and(|device| device.integrated);
        let pieces: &[usize] = if integrated { &[] } else { &PROCESSOR_PIECES };
        let expected = processor
            .last_logits(&text, pieces, loading)
            .map_err(failed)?;
        drop(processor);
        if integrated {
            self.model.release();
        }
        let differs = |(one, other): (&f32, &f32)| one.to_bits() != other.to_bits();
        for pieces in COMPARED_PIECES {
            let computed = self.last_logits(&text, pieces, loading).map_err(failed)?;
            let at = expected.iter().zip(&computed).position(differs);
            if at.is_some() || expected.len() != computed.len() {
                let token = at.unwrap_or(computed.len());
                let what = format!("the logit of token {token}, read {pieces:?} tokens at a time");
                return Err(ExecutorError::Differs { backend, what });
            }
        }
        // Nobody asks for this text.
        self.shed();
        Ok(())
    }

    /// The name of the empty text, by which pages of this model, computed as this program does, are told from others:
    /// `model` is the model's key, and a few tokens are computed to see what comes out.
    ///
    /// # Errors
    /// [`ForwardError`] if they cannot be computed.
    pub fn page_root(&mut self, model: &pack::Key) -> Result<PageName, ForwardError> {
        let text = self.known_text(KNOWN_TEXT_TOKENS);
        let last = self.last_logits(&text, &[], &mut AtOnce)?;
        Ok(PageName::root(model, &self.cache.geometry(), &last))
    }

    /// The beginning of a text that is always the same, as far as the context has room for it.
    fn known_text(&self, tokens: usize) -> Vec<u32> {
        let (vocabulary, context) = (
            self.model.info().vocabulary_count,
            self.context_tokens_max(),
        );
        // Any text does; one that is not all one token.
        (1..=tokens.min(context))
            .map(|token| u32::try_from(token * 7919 % vocabulary.max(1)).unwrap_or(0))
            .collect()
    }

    /// The logits behind a text that is read in these pieces, then as many tokens at a time as a batch has, when `loading`
    /// lets them be. [`ForwardError::Interrupted`] if that ends it.
    fn last_logits(
        &mut self,
        text: &[u32],
        pieces: &[usize],
        loading: &mut dyn Loading,
    ) -> Result<Vec<f32>, ForwardError> {
        let mut sequence = self.sequence();
        let mut last = Vec::new();
        let (mut rest, mut pieces) = (text, pieces.iter());
        while !rest.is_empty() {
            let piece = pieces.next().copied().unwrap_or(usize::MAX);
            let count = piece.min(self.batch_tokens_max()).min(rest.len());
            let (tokens, others) = rest.split_at(count);
            let mut done = Err(ForwardError::Interrupted);
            while done == Err(ForwardError::Interrupted) {
                let goes_on = loading.pass(&mut |interrupted| {
                    let chunk = Chunk {
                        sequence: &mut sequence,
                        tokens,
                        logits: LogitsFor::Last,
                    };
                    done = self
                        .forward_unless(&mut [chunk], interrupted)
                        .and_then(|outputs| match outputs.row(0).all() {
                            Some(logits) => {
                                last.clear();
                                last.extend_from_slice(logits);
                                Ok(())
                            }
                            None => Err(outputs.failed().unwrap_or(ForwardError::Empty)),
                        });
                });
                if !goes_on {
                    break;
                }
            }
            done?;
            rest = others;
        }
        Ok(last)
    }
}
