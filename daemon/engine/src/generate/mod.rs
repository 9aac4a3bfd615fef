//! Several answers at once over one model.
//!
//! A [`Generator`] owns an executor and is driven by [`Generator::step`]: one pass over the weights
//! that gives every answer under way its next tokens and reads pieces of prompts. What comes
//! out goes to the caller's sink as [`Event`]s. It is synchronous; it
//! has not heard of deadlines or clients: whose prompts are read, how much of them, and who is parked meanwhile, is said
//! by whoever drives it. Left to itself it reads prompts in the order of their start, but for those that are
//! [`GenerationRequest::urgent`].
//!
//! Answers under a constraint ([`crate::grammar`]) have a thread that finds out what may come next while the pass runs.
//! What is forced there is appended in the next pass, several tokens at once.
//!
//! A generation's pass may try guesses of its next tokens ([`crate::speculate`]); then a step gives it several.
//!
//! Invariant: what a generation puts out depends on its request alone, byte for byte, whatever else
//! runs beside it. The executor's logits do not depend on the batch, and draws are keyed by seed
//! and position.

mod active;
mod constrained;
mod drafting;
mod event;
mod forward;
mod generator;
mod guessing;
mod output;
mod reading;
mod request;
mod stop;

pub use constrained::ConstraintCounts;
pub use event::{Event, FinishReason, GenerationId, Timings, TokenLogprob, Usage};
pub use forward::{Forward, PassError};
pub use generator::{Generator, GeneratorOptions, LastPass, StepError};
pub use reading::Reading;
pub use request::{GenerationRequest, STOP_BYTES_MAX, STOP_COUNT_MAX, StartError};
