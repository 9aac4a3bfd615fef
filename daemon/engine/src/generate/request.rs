//! What a generation is asked for, and why it may not start.

use std::sync::Arc;

use thiserror::Error;

use crate::grammar::{Grammar, StateError};
use crate::sample::{LOGPROBS_TOP_MAX, LogitBias, SamplingError, SamplingOptions};
use crate::speculate::Sources;

/// Most stop strings of one generation.
pub const STOP_COUNT_MAX: usize = 16;
/// Longest stop string; as much text may be held back.
pub const STOP_BYTES_MAX: usize = 256;

/// One generation.
#[derive(Clone, Debug, Default)]
pub struct GenerationRequest {
    /// Tokens to continue; at least one, all in the vocabulary, and short enough to leave room for an answer.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; `None` goes on to the end of the context. With 0 the prompt is only read.
    pub tokens_max: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// What is added to the logits of single tokens, all of them in the vocabulary.
    pub bias: LogitBias,
    /// Texts at which the answer ends; none of them is part of it.
    pub stop: Vec<String>,
    /// `Some(n)` asks for the log probability of each token and of the `n` most probable ones, at
    /// most [`LOGPROBS_TOP_MAX`].
    pub logprobs: Option<u8>,
    /// Goes on past end-of-generation tokens, but not past the end of what `constraint` allows.
    pub ignore_end: bool,
    /// What the answer is held to. It ends as soon as nothing may follow.
    pub constraint: Option<Arc<Grammar>>,
    /// Takes tokens that the constraint forces one by one, which gives the same answer more slowly. With `logprobs` they
    /// are anyway.
    pub one_by_one: bool,
    /// Nobody interrupts the reading of its prompt, which comes before those of others where no order is given; and there
    /// is room for it that others do not get.
    pub urgent: bool,
    /// Where guesses may come from; they change its speed, nothing else.
    pub sources: Sources,
}

/// Why a generation does not start.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum StartError {
    /// As many generations as allowed are running.
    #[error("{active} generations are running, which is the most allowed")]
    Busy {
        /// How many run.
        active: usize,
    },
    /// The pool of KV pages cannot promise what the generation needs. Later it may, if `tokens_needed`
    /// is within the pool at all.
    #[error("the KV cache has room for {tokens_free} more tokens, and {tokens_needed} are needed")]
    KvFull {
        /// Prompt and, if it was limited, answer.
        tokens_needed: usize,
        /// Tokens not promised to others.
        tokens_free: usize,
    },
    /// No answer can begin as its constraint demands.
    #[error(transparent)]
    Constraint(#[from] StateError),
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt does not leave room for one token in the context.
    #[error(
        "the prompt has {tokens} tokens, and the context of {context} must have room for an answer too"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A token of the prompt is not in the vocabulary.
    #[error("token {index} of the prompt is {id}, outside the vocabulary of {vocabulary_count}")]
    UnknownToken {
        /// Its place in the prompt.
        index: usize,
        /// The id given.
        id: u32,
        /// Tokens in the vocabulary.
        vocabulary_count: usize,
    },
    /// A token with a bias is not in the vocabulary.
    #[error("a bias is given for token {id}, outside the vocabulary of {vocabulary_count}")]
    UnknownBias {
        /// The id given.
        id: u32,
        /// Tokens in the vocabulary.
        vocabulary_count: usize,
    },
    /// A sampling option is out of range.
    #[error("invalid sampling option: {0}")]
    InvalidSampling(#[from] SamplingError),
    /// More stop strings than [`STOP_COUNT_MAX`].
    #[error("{count} stop strings, more than {STOP_COUNT_MAX}")]
    TooManyStops {
        /// How many were given.
        count: usize,
    },
    /// A stop string is longer than [`STOP_BYTES_MAX`].
    #[error("stop string {index} has {bytes} bytes, more than {STOP_BYTES_MAX}")]
    StopTooLong {
        /// Its place in the list.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// A stop string is empty, so every answer would be.
    #[error("stop string {index} is empty")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
    /// More alternatives than [`LOGPROBS_TOP_MAX`].
    #[error(
        "{top} most probable tokens were asked for with each token, more than {LOGPROBS_TOP_MAX}"
    )]
    TooManyLogprobs {
        /// How many were asked for.
        top: u8,
    },
}

impl GenerationRequest {
    /// Checks everything but what depends on the generator's load.
    pub(super) fn check(&self, context: usize, vocabulary_count: usize) -> Result<(), StartError> {
        self.sampling.validate()?;
        if self.stop.len() > STOP_COUNT_MAX {
            return Err(StartError::TooManyStops {
                count: self.stop.len(),
            });
        }
        for (index, stop) in self.stop.iter().enumerate() {
            match stop.len() {
                0 => return Err(StartError::EmptyStop { index }),
                bytes if bytes > STOP_BYTES_MAX => {
                    return Err(StartError::StopTooLong { index, bytes });
                }
                _ => {}
            }
        }
        if let Some(top) = self.logprobs
            && top > LOGPROBS_TOP_MAX
        {
            return Err(StartError::TooManyLogprobs { top });
        }
        let unknown = |id: u32| usize::try_from(id).is_ok_and(|id| id >= vocabulary_count);
        if let Some(&(id, _)) = self.bias.values().iter().find(|&&(id, _)| unknown(id)) {
            return Err(StartError::UnknownBias {
                id,
                vocabulary_count,
            });
        }
        if self.prompt.is_empty() {
            return Err(StartError::EmptyPrompt);
        }
        if self.prompt.len() >= context {
            return Err(StartError::PromptTooLong {
                tokens: self.prompt.len(),
                context,
            });
        }
        match self.prompt.iter().enumerate().find(|&(_, &id)| unknown(id)) {
            Some((index, &id)) => Err(StartError::UnknownToken {
                index,
                id,
                vocabulary_count,
            }),
            None => Ok(()),
        }
    }
}
