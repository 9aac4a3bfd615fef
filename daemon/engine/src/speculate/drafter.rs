//! Guesses that cost something: what makes them, and for whom.
//!
//! Invariant: what a drafter knows of a text is only what helps it to guess; it may be wrong, out of room or without an
//! answer at any time, and is then only of less use.

use std::fmt::Debug;

use crate::Executor;
use crate::sample::{LogitBias, SamplingOptions};

/// Tokens that a drafter may lack of a text and still read together with guessing; more are read before.
pub const NEAR_TOKENS: usize = super::DRAFT_MAX + 9;

/// What holds an answer to a shape, for whoever guesses. It stands behind the guesses that were made through it.
pub trait Limits: Debug {
    /// Makes the next guess: the only token that may come, or what `choose` takes. It is asked for one of all tokens first,
    /// which is the guess if it may come; then, if it took none or one that may not, for one of those whose bits are set, the
    /// lowest of the first word being token 0. `None` if nothing may come, or it takes nothing then: there are no more.
    fn guess(&self, choose: &mut dyn FnMut(Option<&[u32]>) -> Option<u32>) -> Option<u32>;
}

/// One answer for which guesses are wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Whose text it is: the same number in every call, never one that another had.
    pub id: u64,
    /// Tokens that `text` leaves out before it.
    pub before: usize,
    /// The prompt and the answer so far.
    pub text: &'a [u32],
    /// How much of it is the prompt.
    pub prompt_tokens: usize,
    /// How the answer's tokens are chosen.
    pub sampling: &'a SamplingOptions,
    /// What is added to logits.
    pub bias: &'a LogitBias,
    /// What else holds them; guesses that it does not let come are of no use.
    pub limits: Option<&'a dyn Limits>,
    /// Most guesses.
    pub count: usize,
    /// Where they go, in order; empty before.
    pub guesses: &'a mut Vec<u32>,
}

/// Makes guesses that take time: a small model, say. It follows texts by itself: each call may come with a text that has
/// grown, or that is another than the last guesses made it.
pub trait Drafter: Debug + Send {
    /// How many tokens of a text it would have to read before it can guess what follows; `None` if it never can.
    fn missing(&self, id: u64, text: &[u32]) -> Option<usize>;

    /// Reads some of a text's missing tokens, few enough that others can wait. Returns how many, 0 if there was no room.
    /// `beside` is what computes for the answers, and stands still meanwhile.
    fn read(&mut self, beside: Option<&mut Executor>, id: u64, text: &[u32]) -> usize;

    /// Guesses for several answers, whose texts lack at most [`NEAR_TOKENS`]. Returns how often it went through its
    /// weights for that.
    fn draft(&mut self, beside: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize;

    /// There will be no more of this answer.
    fn forget(&mut self, id: u64);
}
