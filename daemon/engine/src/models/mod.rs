//! Architectures, one file each: what is particular to each of them.
//!
//! The seams, from outside in:
//!
//! - [`registry`](mod@registry) maps `general.architecture` to a loader, which makes an [`Architecture`].
//! - [`Architecture`] is what the executor runs: sizes ([`Shape`]), and a graph over a batch.
//! - A decoder's loader fills in a [`Design`](crate::layer::Design) and hands it to [`crate::layer::Decoder`], which
//!   takes the tensors and is the graph that decoders share. What no design can say is a field of it with its step in
//!   the decoder, or, for a graph of another kind, an `Architecture` of its own beside `Decoder`.
//! - Graphs call [`Steps`] and nothing else, so that features (speculation, batching, caching) stay out of
//!   model files and model files out of them.
//!
//! How to add one: README.md beside this file.

mod bert;
pub mod encoder;
mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral3;
mod modern_bert;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod registry;
mod smollm3;

use crate::backend::Steps;
use crate::kv::{Geometry, KvType};
use crate::weights::Matrix;
use std::ops::ControlFlow;

pub use encoder::{Encoder, EncoderShape, Pooling};
pub use registry::{PooledEncoder, load, load_encoder, names};

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
    /// Rotations that layers choose from.
    pub rope_count: usize,
    /// Tokens in the vocabulary, which is the number of logits but for [`Architecture::draft_tokens`].
    pub vocabulary: usize,
    /// Positions that the model was made for.
    pub context: usize,
}

impl Shape {
    /// What a page of the KV cache holds. Layers with a window keep all positions too: a sequence can then be
    /// shortened to any length, and memory is the price.
    #[must_use]
    pub fn kv_geometry(&self, kv_type: KvType) -> Geometry {
        Geometry {
            kv_type,
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

    /// The tokens that there are logits for, ascending, if it is a draft that guesses some only.
    fn draft_tokens(&self) -> Option<&[u32]> {
        None
    }

    /// The matrices that columns are multiplied with, in the order of their use. Not the embedding, of which rows are
    /// looked up; an output that is tied to it is a matrix of its own here, and the last.
    fn matrices_mut(&mut self) -> Vec<&mut Matrix>;

    /// Runs a batch: the residual streams of its tokens through all layers, keys and values into the cache, and the
    /// logits of its outputs. It breaks off, with the batch undone, if the pass [`Steps::is_interrupted`] before a layer.
    fn forward(&self, pass: &mut dyn Steps) -> ControlFlow<()>;
}
