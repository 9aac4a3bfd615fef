//! What an encoder's layer is made of: its norms and matrices, and how they are put together.

use crate::weights::{Linear, Matrix};

/// Weights of a layer norm.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// Factor of each element.
    pub weight: Vec<f32>,
    /// What is added to each element.
    pub bias: Option<Vec<f32>>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What positions do to a layer's attention.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Factor of the scores.
    pub scale: f32,
    /// Rotation of queries and keys, an index into the ropes given to [`super::Encode::new`].
    pub rope: Option<usize>,
    /// Slope of each head's linear bias.
    pub slopes: Option<&'a [f32]>,
    /// Positions on either side that are attended to; `None` for all.
    pub reach: Option<usize>,
    /// Norms of all queries and all keys of a token, before the rotation.
    pub norms: Option<(&'a LayerNorm, &'a LayerNorm)>,
}

/// The matrices of a layer's attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionWeights {
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
    /// From what attention gave to the residual stream.
    pub output: Linear,
}

impl AttentionWeights {
    /// The matrices, in the order of their use.
    pub(crate) fn matrices_mut(&mut self) -> [&mut Matrix; 4] {
        [
            &mut self.key.matrix,
            &mut self.value.matrix,
            &mut self.query.matrix,
            &mut self.output.matrix,
        ]
    }
}

/// The matrices of a layer's feed-forward part and what lies between them.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForward {
    /// `down · gelu(up)`
    Gelu {
        /// First matrix.
        up: Linear,
        /// Second matrix.
        down: Linear,
    },
    /// `down · (act(gate) * up)`
    Gated {
        /// The matrix whose product goes through the activation.
        gate: Linear,
        /// The matrix that it is multiplied with.
        up: Linear,
        /// Second matrix.
        down: Linear,
        /// The activation.
        activation: Activation,
    },
}

impl FeedForward {
    /// The matrices, in the order of their use.
    pub(crate) fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        match self {
            FeedForward::Gelu { up, down } => vec![&mut up.matrix, &mut down.matrix],
            FeedForward::Gated { gate, up, down, .. } => {
                vec![&mut gate.matrix, &mut up.matrix, &mut down.matrix]
            }
        }
    }
}

/// Activation of a gated feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// SiLU, which makes SwiGLU.
    Silu,
    /// The exact GELU, which makes GEGLU.
    Gelu,
}

/// Where norms stand in a layer.
#[derive(Debug, Clone, Copy)]
pub enum Norms<'a> {
    /// After each part's addition to the residual stream, as in BERT. The second of the first pair normalizes once
    /// more, after adding the layer's input again.
    Post(&'a LayerNorm, Option<&'a LayerNorm>, &'a LayerNorm),
    /// Before each part; the first may be missing.
    Pre(Option<&'a LayerNorm>, &'a LayerNorm),
}
