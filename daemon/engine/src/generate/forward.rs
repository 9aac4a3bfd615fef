//! What a [`super::Generator`] needs of the thing that computes logits.
//!
//! The one implementation in use is the executor's; the trait is there so that tests can put a
//! scripted model in its place and see every border case of text, limits and failures.

use thiserror::Error;

use crate::kv::{self, Sequence};
use crate::sample::LogitRow;
use crate::tokenizer::Tokenizer;
use crate::{Chunk, Executor, ForwardError};

/// Why a pass was not made. Nothing was appended to any sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PassError {
    /// Too few KV pages were free.
    #[error("the KV cache is full")]
    KvFull,
    /// Whoever asked for it wants something else first.
    #[error("the pass was interrupted")]
    Interrupted,
    /// Anything else.
    #[error(transparent)]
    Forward(ForwardError),
}

/// Computes logits for several sequences at once. The logits of a sequence do not depend on which others
/// are in the pass, nor on how its tokens are spread over passes.
pub trait Forward {
    /// The KV state of one sequence; dropping it frees its pages.
    type Sequence: 'static;

    /// The model's tokenizer.
    fn tokenizer(&self) -> &Tokenizer;
    /// Logits per row; ids below it are valid tokens.
    fn vocabulary_count(&self) -> usize;
    /// Longest sequence.
    fn context_tokens_max(&self) -> usize;
    /// Most tokens in one pass, over all sequences.
    fn batch_tokens_max(&self) -> usize;
    /// Tokens in a KV page, the unit of allocation.
    fn kv_page_tokens(&self) -> usize;
    /// Tokens that the pages hold which no sequence does.
    fn kv_tokens_free(&self) -> usize;
    /// A sequence that begins with what is remembered of `prompt`, and how many tokens that is: whole pages, and fewer
    /// than the prompt has. What it holds no longer counts as free.
    fn sequence(&self, prompt: &[u32]) -> (Self::Sequence, usize);
    /// Appends the next page of `prompt` to a sequence of its beginning, if that page is kept where it need not be
    /// computed. False, and nothing appended, if not; at least one token of the prompt is left.
    fn restore(&mut self, _sequence: &mut Self::Sequence, _prompt: &[u32]) -> bool {
        false
    }
    /// Appends what the next page of `prompt` has in common with one that is remembered to a sequence of its beginning, and
    /// returns how many tokens that is; at least one of the prompt is left.
    fn lengthen(&mut self, _sequence: &mut Self::Sequence, _prompt: &[u32]) -> usize {
        0
    }
    /// A second sequence of the same tokens, which shares the full pages; it takes a page if another is begun, and is
    /// `None` if there is none.
    fn fork(&mut self, sequence: &Self::Sequence) -> Option<Self::Sequence>;
    /// Cuts a sequence to its first `tokens` tokens, which stay.
    fn keep(&mut self, sequence: &mut Self::Sequence, tokens: usize);
    /// Makes one pass over all chunks and calls `row` for each row of logits, in order. May give up if `interrupted`.
    ///
    /// # Errors
    ///
    /// [`PassError`]; then no sequence has changed.
    fn pass(
        &mut self,
        chunks: &mut [Chunk<'_, Self::Sequence>],
        interrupted: &dyn Fn() -> bool,
        row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), PassError>;
    /// After a pass that `error` ended, and with all sequences dropped: has something else compute from now on, if there is
    /// something. False, and nothing changed, if not.
    fn fall_back(&mut self, _error: &ForwardError) -> bool {
        false
    }
    /// The executor behind it, if there is one: to take times of it, between passes.
    fn executor_mut(&mut self) -> Option<&mut Executor> {
        None
    }
}

impl Forward for Executor {
    type Sequence = Sequence;

    fn tokenizer(&self) -> &Tokenizer {
        self.model().tokenizer()
    }

    fn vocabulary_count(&self) -> usize {
        self.model().info().vocabulary_count
    }

    fn context_tokens_max(&self) -> usize {
        Self::context_tokens_max(self)
    }

    fn batch_tokens_max(&self) -> usize {
        Self::batch_tokens_max(self)
    }

    fn kv_page_tokens(&self) -> usize {
        kv::PAGE
    }

    fn kv_tokens_free(&self) -> usize {
        Self::kv_tokens_free(self)
    }

    fn sequence(&self, prompt: &[u32]) -> (Sequence, usize) {
        let sequence = self.sequence_of(prompt);
        let cached = sequence.len();
        (sequence, cached)
    }

    fn restore(&mut self, sequence: &mut Sequence, prompt: &[u32]) -> bool {
        Self::restore(self, sequence, prompt)
    }

    fn lengthen(&mut self, sequence: &mut Sequence, prompt: &[u32]) -> usize {
        Self::lengthen(self, sequence, prompt)
    }

    fn fork(&mut self, sequence: &Sequence) -> Option<Sequence> {
        Self::fork(self, sequence)
    }

    fn keep(&mut self, sequence: &mut Sequence, tokens: usize) {
        sequence.keep(tokens);
    }

    fn pass(
        &mut self,
        chunks: &mut [Chunk<'_>],
        interrupted: &dyn Fn() -> bool,
        row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), PassError> {
        let outputs = self
            .forward_unless(chunks, interrupted)
            .map_err(|error| match error {
                ForwardError::KvFull { .. } => PassError::KvFull,
                ForwardError::Interrupted => PassError::Interrupted,
                other => PassError::Forward(other),
            })?;
        (0..outputs.row_count()).for_each(|index| row(outputs.row(index)));
        if let Some(error) = outputs.failed() {
            Executor::take_back(chunks);
            return Err(PassError::Forward(error));
        }
        Ok(())
    }

    fn fall_back(&mut self, error: &ForwardError) -> bool {
        Self::fall_back(self, error)
    }

    fn executor_mut(&mut self) -> Option<&mut Executor> {
        Some(self)
    }
}
