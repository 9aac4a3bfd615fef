//! Architectures, one file each: which hyperparameters they read, which tensors they take, and their graph.
//!
//! Invariant: a file's graph calls the steps of [`Pass`] and nothing else, so that features (speculation, batching,
//! caching) stay out of model files and model files out of them. How to add one: `daemon/engine/README.md`.

mod llama;
mod registry;

use crate::backend::cpu::Pass;
use crate::kv::Geometry;
use crate::weights::WeightsError;
use std::fmt::Display;

pub use registry::{load, names};

/// Sizes that execution needs to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layer_count: usize,
    /// Elements of the residual stream.
    pub embedding: usize,
    /// Query heads of a layer.
    pub head_count: usize,
    /// Key/value heads of a layer.
    pub kv_head_count: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Elements between the matrices of a feed-forward layer.
    pub feed_forward: usize,
    /// Rotated pairs of a head.
    pub rope_pairs: usize,
    /// Tokens in the vocabulary, which is the number of logits.
    pub vocabulary: usize,
    /// Positions that the model was made for.
    pub context: usize,
}

impl Shape {
    /// What a page of the KV cache holds.
    #[must_use]
    pub fn kv_geometry(&self) -> Geometry {
        Geometry {
            layer_count: self.layer_count,
            head_count: self.kv_head_count,
            head_dim: self.head_dim,
        }
    }
}

/// A loaded architecture.
pub trait Architecture: Send + Sync + std::fmt::Debug {
    /// Its sizes.
    fn shape(&self) -> Shape;

    /// Bytes of weights that decoding one token reads.
    fn bytes_per_token(&self) -> usize;

    /// Runs a batch: the residual streams of its tokens through all layers, keys and values into the cache, and the
    /// logits of its outputs.
    fn forward(&self, pass: &mut Pass<'_>);
}

/// Bounds on hyperparameters: an order of magnitude above the largest models.
mod limits {
    pub(super) const LAYERS_MAX: u32 = 1024;
    pub(super) const EMBEDDING_MAX: u32 = 1 << 17;
    pub(super) const HEADS_MAX: u32 = 1024;
    pub(super) const HEAD_DIM_MAX: u32 = 1024;
    pub(super) const FEED_FORWARD_MAX: u32 = 1 << 19;
    pub(super) const CONTEXT_MAX: u32 = 1 << 24;
    pub(super) const VOCABULARY_MAX: usize = 1 << 22;
}

/// The error of a hyperparameter out of range.
fn hyperparameter(key: &str, value: impl Display, expected: impl Display) -> WeightsError {
    WeightsError::Hyperparameter {
        key: key.to_owned(),
        value: value.to_string(),
        expected: expected.to_string(),
    }
}
