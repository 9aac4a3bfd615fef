//! What a generation reports while it runs.

use core::fmt;

use crate::sample::RankedToken;

/// Names one generation of one [`super::Generator`]; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub(super) u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A generated token with its log probability, see [`crate::sample::TokenLogprobs`].
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Token id; its bytes are the tokenizer's to tell.
    pub id: u32,
    /// Natural logarithm of the token's probability under the raw logits.
    pub logprob: f32,
    /// The most probable tokens at this place, best first; as many as were asked for.
    pub top: Vec<RankedToken>,
}

/// Something that happened to a generation. In order: [`Event::PromptDone`], any number of
/// [`Event::Text`], [`Event::Finished`]; the last comes exactly once, the first two may not come at all.
#[derive(Debug)]
pub enum Event<'a> {
    /// The prompt has been read. Of generations that were started together the one that read it says so.
    PromptDone {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that needed no computing.
        cached_tokens: usize,
    },
    /// A piece of the answer.
    Text {
        /// Whole characters. Empty if the tokens have no text of their own; what may be the
        /// beginning of a stop string is held back until that is settled.
        text: &'a str,
        /// The tokens whose text begins in `text`, in order. A token held back comes with its text.
        ids: &'a [u32],
        /// Log probabilities of `ids` one by one, if they were asked for; else empty.
        tokens: &'a [TokenLogprob],
    },
    /// The generation is over; nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens read and written.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
    },
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop string came.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
    /// [`super::Generator::cancel`] was called.
    Cancelled,
    /// It could not go on; the text says why.
    Failed(String),
}

/// Tokens that a generation read and wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that needed no computing.
    pub cached_tokens: usize,
    /// Tokens chosen, including an end-of-generation token and those of a stop string.
    pub completion_tokens: usize,
    /// Guesses that were tried, see [`crate::speculate`].
    pub guessed_tokens: usize,
    /// Those of them that were right: tokens that cost no step of their own.
    pub accepted_tokens: usize,
}

/// Where a generation's time went, in nanoseconds; 0 for a part it did not reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the start to the first step that read a part of the prompt.
    pub queue_ns: u64,
    /// From there until the prompt was read.
    pub prefill_ns: u64,
    /// From the start to the first token.
    pub first_token_ns: u64,
    /// From the first token to the end: `completion_tokens - 1` steps, less what guesses saved.
    pub decode_ns: u64,
}
