//! What models are assembled from: readers of hyperparameters and positions, and the stack of layers that the
//! decoders share.
//!
//! Invariant: nothing here knows an architecture by name. A model file says what is particular to it in a
//! [`Design`]; what the design asks for is done here, in calls of [`crate::backend::Steps`].

mod attention;
mod decoder;
mod design;
mod feed_forward;
mod hyperparameters;
mod rope;

pub(crate) use attention::Attention;
pub(crate) use decoder::Decoder;
pub(crate) use design::{Design, Norms, QueryKeyNorm};
pub(crate) use feed_forward::FeedForward;
pub(crate) use hyperparameters::{Hyperparameters, hyperparameter, limits};
pub use rope::{Rope, Stretch};
