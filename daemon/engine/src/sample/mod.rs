//! From one row of logits to one token.
//!
//! The chain, in this order; each part narrows or reshapes what the one before left:
//!
//! 1. the caller's bias is added to the logits ([`bias`]);
//! 2. penalties on the logits: repetition, then presence and frequency ([`penalty`]); of an answer under a constraint only
//!    the tokens that may come next go on from here ([`among`]);
//! 3. `temperature == 0`: the largest logit wins, the lowest id among equals; the chain ends here;
//! 4. top-k: the `k` largest logits;
//! 5. temperature and softmax over what top-k left, in fixed point ([`weight`]);
//! 6. typical: the tokens nearest to the expected surprise whose probabilities reach `typical_p` ([`typical`]);
//! 7. top-p: the fewest most probable tokens whose probabilities reach `p`;
//! 8. min-p: tokens at least `min_p` times as probable as the most probable one;
//! 9. one draw, keyed by (seed, choice, position) ([`draw`]).
//!
//! Of an answer under a constraint whose options leave none out for being unlikely, a token is drawn among all at first,
//! and stands if it may come next; else another is drawn among those that may. Each comes as often as one drawn among
//! those in the first place, and mostly it need not be found out which those are.
//!
//! Top-p and min-p are both measured on the distribution that step 6 left, so their order does not matter.
//!
//! Everything here is a function of its arguments: logits, options, the tokens so far and the
//! position. Wherever tokens are ranked, the more probable comes first and the lower id among equals.
//! Probabilities are integers after the softmax, so their sums do not depend on the order of
//! adding, and the same logits give the same token on every machine. No state is carried from one
//! token to the next; [`Sampler`] only keeps buffers so that the steady state allocates nothing.
//!
//! Nothing here sorts the vocabulary: top-k is a selection, and top-p and the draw look for the
//! token at a given cumulative probability by halving. Where all tokens stay in, the draw goes by their numbers
//! instead, and needs the weights of blocks of them only.
//!
//! Of a row that is on a device with its best tokens here ([`LogitRow`]), steps 1 to 5 are taken with those alone where they
//! decide, which is mostly so for the largest logit and for top-k ([`shortlist`]); the token is the same.

mod among;
mod bias;
mod chain;
mod draw;
mod logprob;
mod options;
mod penalty;
mod row;
mod select;
mod shortlist;
mod typical;
mod weight;

/// Added to the position of a draw, makes it another one.
pub(crate) const ANOTHER_DRAW: u64 = 1 << 63;

pub use bias::{BiasError, LOGIT_BIAS_COUNT_MAX, LOGIT_BIAS_MAX, LogitBias};
pub use chain::{History, SampleError, Sampler};
pub use logprob::{LOGPROBS_TOP_MAX, RankedToken, TokenLogprobs};
pub(crate) use row::Rows;

pub use options::{
    MIN_P_MAX, PENALTY_MAX, REPEAT_PENALTY_MAX, REPEAT_PENALTY_MIN, SamplingError, SamplingOptions,
    TEMPERATURE_MAX,
};
pub use row::LogitRow;
