//! Passes: a batch of tokens in, logits out.
//!
//! Invariant: a batch is checked and has its pages before anything of it is computed; one that fails gives back what it took.

use super::Executor;
use crate::backend::{DeviceCounts, DeviceError};
use crate::kv::Sequence;
use crate::sample::LogitRow;
use std::sync::Arc;

/// Why a batch was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The batch has no tokens, or a chunk of it has none.
    #[error("a chunk without tokens")]
    Empty,
    /// The batch has too many tokens.
    #[error("a batch of {tokens} tokens; at most {max} are taken")]
    BatchTooLarge {
        /// Tokens of the batch.
        tokens: usize,
        /// The limit.
        max: usize,
    },
    /// A token is not in the vocabulary.
    #[error("token {id} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A sequence would pass the model's context.
    #[error("a sequence of {tokens} tokens; the model's context is {context}")]
    ContextFull {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// The KV cache has too few free pages.
    #[error("the KV cache has room for {free} more tokens; the batch needs {needed}")]
    KvFull {
        /// Tokens' worth of free pages.
        free: usize,
        /// Tokens' worth of pages that the batch needs.
        needed: usize,
    },
    /// A file of the model became shorter under its map, or cannot be read any more. This does not pass: the model
    /// has to be loaded again.
    #[error(
        "the model file changed under the map: file {} of the model became shorter or cannot be read",
        part + 1
    )]
    ModelChanged {
        /// Which file of the model, from 0.
        part: usize,
    },
    /// A sequence belongs to another executor.
    #[error("the sequence belongs to another executor")]
    ForeignSequence,
    /// The caller asked for the pass to be given up.
    #[error("the pass was interrupted")]
    Interrupted,
    /// The device that computes failed. What it keeps of sequences is of no use any more.
    #[error("the device that computes: {0}")]
    Device(DeviceError),
}

/// Which of a chunk's tokens are to have logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: a part of a prompt that is not its end.
    None,
    /// The last.
    Last,
    /// Every one.
    All,
    /// The last so many, which are guesses that may be taken back, and the one before them. Pages that guesses fill are
    /// remembered only once they are kept.
    Guesses(usize),
}

impl LogitsFor {
    /// How many tokens at the end may be taken back.
    fn guesses(self) -> usize {
        match self {
            LogitsFor::Guesses(count) => count,
            LogitsFor::None | LogitsFor::Last | LogitsFor::All => 0,
        }
    }

    /// How many of a chunk's `count` tokens have logits: the last ones.
    fn rows(self, count: usize) -> usize {
        match self {
            LogitsFor::None => 0,
            LogitsFor::Last => count.min(1),
            LogitsFor::All => count,
            LogitsFor::Guesses(guesses) => count.min(guesses.saturating_add(1)),
        }
    }
}

/// Consecutive tokens of one sequence, appended to it.
#[derive(Debug)]
pub struct Chunk<'a, S = Sequence> {
    /// The sequence.
    pub sequence: &'a mut S,
    /// The tokens.
    pub tokens: &'a [u32],
    /// Which of them are to have logits.
    pub logits: LogitsFor,
}

/// Logits of a batch: one row of the vocabulary's length per output, in the order of chunks and tokens. Where the model
/// has [`crate::Model::draft_tokens`], a row has one for each of these.
///
/// Damaged weights can give a row that is not finite. That is for the row's reader to find, since the other rows of
/// the batch are sound: [`crate::sample::Sampler`] refuses such a row.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    values: &'a [f32],
    row_length: usize,
}

impl<'a> Logits<'a> {
    /// Number of rows.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.values.len() / self.row_length
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.row_length..(index + 1) * self.row_length]
    }
}

/// What a batch gave: a [`LogitRow`] per output, in the order of chunks and tokens, which may be on a device yet.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    executor: &'a Executor,
    row_count: usize,
    row_length: usize,
}

impl<'a> Outputs<'a> {
    /// Number of rows.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// One row. Where [`LogitRow::all`] gives nothing, [`Outputs::failed`] says why.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> LogitRow<'a> {
        assert!(index < self.row_count, "an output of the batch");
        self.executor.running.row(index, self.row_length)
    }

    /// Why a row could not be read. The batch is then to be taken back with [`Executor::take_back`].
    #[must_use]
    pub fn failed(&self) -> Option<ForwardError> {
        self.executor.running.unread().map(ForwardError::Device)
    }
}

impl Executor {
    /// Appends each chunk's tokens to its sequence and computes the logits asked for.
    ///
    /// # Errors
    /// [`ForwardError`]; then no sequence has changed.
    pub fn forward(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Logits<'_>, ForwardError> {
        let outputs = self.forward_unless(chunks, &|| false)?;
        let (row_count, row_length) = (outputs.row_count, outputs.row_length);
        if let Err(error) = self.running.read_all() {
            Executor::take_back(chunks);
            return Err(ForwardError::Device(error));
        }
        let values = &self.running.logits()[..row_count * row_length];
        Ok(Logits { values, row_length })
    }

    /// Takes the tokens of a batch that was just run from its sequences again: its logits are not to be had.
    pub fn take_back(chunks: &mut [Chunk<'_>]) {
        for chunk in chunks {
            let before = chunk.sequence.len().saturating_sub(chunk.tokens.len());
            chunk.sequence.keep(before);
        }
    }

    /// What a device that computes did in all batches; nothing where the processor does.
    #[must_use]
    pub fn device_counts(&self) -> DeviceCounts {
        self.running.counts()
    }

    /// [`Executor::forward`] without reading logits from a device, given up if `interrupted` says so before one of the layers.
    /// A device then still does what it was asked for: two layers of a pass of many tokens, all of a pass of few. It is asked
    /// often and by the calling thread: a flag is what it should read. What was given up costs its time again, and gives the
    /// same bytes.
    ///
    /// # Errors
    /// [`ForwardError`]; then no sequence has changed.
    pub fn forward_unless(
        &mut self,
        chunks: &mut [Chunk<'_>],
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Outputs<'_>, ForwardError> {
        self.check(chunks)?;
        self.reserve(chunks)?;
        self.fill_batch(chunks);
        let model = Arc::clone(&self.model);
        let kept = self.batch.has_others().then_some(&self.kept);
        let done = self
            .running
            .forward(&model, &mut self.cache, (&self.batch, kept), interrupted);
        // After the pass: what it read before the file changed was sound.
        let error = match model.files().damaged() {
            Some((part, _)) => Some(ForwardError::ModelChanged { part }),
            None => match done {
                Ok(flow) => flow.is_break().then_some(ForwardError::Interrupted),
                Err(error) => Some(ForwardError::Device(error)),
            },
        };
        if let Some(error) = error {
            for chunk in chunks {
                chunk.sequence.trim();
            }
            return Err(error);
        }
        let draft_tokens = model.decoder().and_then(|decoder| decoder.draft_tokens());
        let row_length = draft_tokens.map_or(model.info().vocabulary_count, <[u32]>::len);
        for chunk in chunks {
            chunk.sequence.append(chunk.tokens, chunk.logits.guesses());
        }
        Ok(Outputs {
            row_count: self.batch.outputs.len(),
            row_length,
            executor: self,
        })
    }

    fn check(&self, chunks: &[Chunk<'_>]) -> Result<(), ForwardError> {
        let (max, context, vocabulary) = (
            self.batch_tokens_max(),
            self.context_tokens_max(),
            self.model.info().vocabulary_count,
        );
        let tokens = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        if tokens == 0 || chunks.iter().any(|chunk| chunk.tokens.is_empty()) {
            return Err(ForwardError::Empty);
        }
        if tokens > max {
            return Err(ForwardError::BatchTooLarge { tokens, max });
        }
        for chunk in chunks {
            if !self.cache.owns(chunk.sequence) {
                return Err(ForwardError::ForeignSequence);
            }
            if let Some(&id) = chunk.tokens.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(ForwardError::UnknownToken { id, vocabulary });
            }
            let tokens = chunk.sequence.len() + chunk.tokens.len();
            if tokens > context {
                return Err(ForwardError::ContextFull { tokens, context });
            }
        }
        Ok(())
    }

    /// Takes the pages that the batch needs, or none.
    fn reserve(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), ForwardError> {
        for index in 0..chunks.len() {
            let chunk = &mut chunks[index];
            let length = chunk.sequence.len() + chunk.tokens.len();
            if !self.cache.reserve(chunk.sequence, length) {
                for chunk in &mut chunks[..index] {
                    chunk.sequence.trim();
                }
                let missing = |chunk: &Chunk<'_>| {
                    chunk
                        .sequence
                        .pages_missing(chunk.sequence.len() + chunk.tokens.len())
                };
                let needed = chunks.iter().map(missing).sum::<usize>() * crate::kv::PAGE;
                return Err(ForwardError::KvFull {
                    free: self.cache.tokens_free(),
                    needed,
                });
            }
        }
        Ok(())
    }

    fn fill_batch(&mut self, chunks: &[Chunk<'_>]) {
        let batch = &mut self.batch;
        batch.clear();
        for chunk in chunks {
            let first_page = batch.pages.len();
            batch.pages.extend_from_slice(chunk.sequence.pages());
            let range = (first_page, batch.pages.len());
            let without_logits = chunk.tokens.len() - chunk.logits.rows(chunk.tokens.len());
            for (index, &token) in chunk.tokens.iter().enumerate() {
                if index >= without_logits {
                    batch.outputs.push(batch.tokens.len());
                }
                batch.tokens.push(token);
                batch.positions.push(chunk.sequence.len() + index);
                batch.page_ranges.push(range);
            }
        }
        if self.batch.has_others() {
            self.kept.keep_outputs_of(&self.batch);
        }
    }
}
