//! More than one token per pass: tokens guessed cheaply, verified together.
//!
//! A pass over a few tokens costs little more than one over a single token, because what it waits for is the weights. So
//! tokens that are likely to come are put into the pass behind the last one chosen; the model then says at each of them
//! what it would have chosen, and those that were guessed right are accepted. Guesses come from sources: text that was
//! seen before ([`lookup`]), in the prompt, in the answer so far, or in earlier answers ([`corpus`]), which are kept on
//! the disk ([`store`]); or something that makes them at a price ([`drafter`]), a small model ([`model`]). How many are
//! made and tried is decided step by step from what passes cost on this machine ([`costs`]) and how often guesses of the
//! kind came true ([`acceptance`]); where they do not pay, none are ([`plan`]), but for some from time to time ([`retry`]).
//!
//! Invariant: guesses change when tokens are computed, never which. The logits of a token do not depend on what else is
//! in the pass, the draw is keyed by its position, and a token is accepted only if it is the one that would have been
//! chosen; so an answer is the same, byte for byte, with any guesses or none.

mod acceptance;
mod corpus;
mod costs;
mod drafter;
mod guesser;
mod lookup;
mod model;
mod plan;
mod retry;
pub mod store;
mod translate;
mod vote;

pub use acceptance::{GuessCount, Source};
pub use corpus::{CORPUS_LEAD_TOKENS, Corpus};
pub use costs::{COLUMNS_MAX, PassCosts};
pub use drafter::{Drafter, Limits, NEAR_TOKENS, Wanted};
pub use model::{DraftError, DraftModel};

pub(crate) use acceptance::Acceptance;
pub(crate) use guesser::Guesser;
pub(crate) use lookup::Lookup;
pub(crate) use plan::{GAIN_MIN, Planner, Proposal};
pub(crate) use retry::Retry;

use std::sync::Arc;

/// Where the guesses for an answer may come from; by default there are none.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The prompt and the answer itself.
    pub own: bool,
    /// Earlier answers.
    pub corpus: Option<Arc<Corpus>>,
    /// The generator's drafter, if it has one: see [`crate::generate::Generator::set_drafter`].
    pub model: bool,
    /// Whether the answer becomes one of them, once it is complete.
    pub learns: bool,
}

impl Sources {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.own && self.corpus.is_none() && !self.model
    }
}

/// Most tokens guessed in one pass for one answer.
pub const DRAFT_MAX: usize = 23;
