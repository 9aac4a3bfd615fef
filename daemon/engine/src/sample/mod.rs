//! From one row of logits to one token.
//!
//! The chain, in this order; each part narrows or reshapes what the one before left:
//!
//! 1. penalties on the logits: repetition, then presence and frequency ([`penalty`]);
//! 2. `temperature == 0`: the largest logit wins, the lowest id among equals; the chain ends here;
//! 3. top-k: the `k` largest logits;
//! 4. temperature and softmax over what top-k left, in fixed point ([`weight`]);
//! 5. top-p: the fewest most probable tokens whose probabilities reach `p`;
//! 6. min-p: tokens at least `min_p` times as probable as the most probable one;
//! 7. one draw, keyed by (seed, position) ([`draw`]).
//!
//! Top-p and min-p are both measured on the distribution after step 4, so their order does not matter.
//!
//! Everything here is a function of its arguments: logits, options, the tokens so far and the
//! position. Wherever tokens are ranked, the more probable comes first and the lower id among equals.
//! Probabilities are integers after the softmax, so their sums do not depend on the order of
//! adding, and the same logits give the same token on every machine. No state is carried from one
//! token to the next; [`Sampler`] only keeps buffers so that the steady state allocates nothing.
//!
//! Nothing here sorts the vocabulary: top-k is a selection, and top-p and the draw look for the
//! token at a given cumulative probability by halving.

mod chain;
mod draw;
mod logprob;
mod options;
mod penalty;
mod select;
mod weight;

pub use chain::{History, SampleError, Sampler};
pub use logprob::{LOGPROBS_TOP_MAX, RankedToken, TokenLogprobs};
pub use options::{
    MIN_P_MAX, PENALTY_MAX, REPEAT_PENALTY_MAX, REPEAT_PENALTY_MIN, SamplingError, SamplingOptions,
    TEMPERATURE_MAX,
};
