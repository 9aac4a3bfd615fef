//! How likely the local model's answer to a question will do, and what a stronger model would gain.
//!
//! [`Estimator`] reads a question as hashed words, pieces of words and figures ([`features`]), weighs them, and gives a
//! probability that is calibrated on measured answers of the local model. It knows nothing of links, budgets or
//! permission: what follows from the estimate is decided elsewhere.
//!
//! Invariant: the same weights and question give the same estimate on every machine, in bounded time, without
//! allocation.

mod estimate;
pub mod features;
mod lexicon;
mod names;
mod vocabulary;
pub mod weights;

pub use estimate::{Estimate, Estimator, Explanation, Part, english, place};
pub use features::Question;
pub use names::is_same_model;
pub use vocabulary::{Vocabulary, WORDS_MAX};
pub use weights::WeightsError;
