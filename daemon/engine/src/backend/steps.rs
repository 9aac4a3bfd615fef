//! What a decoder asks of whatever computes it.
//!
//! A batch is any tokens of any sequences. [`crate::layer`] knows the order of the steps, a backend how each is done; what
//! lies between two steps (activations, rotations, the residual stream) is the backend's, and need not be in this machine's
//! memory.
//!
//! Invariant: each token's results depend on its own sequence only; neither the batch nor how a prompt is cut into batches
//! changes a byte of them.

use crate::layer::Rope;
use crate::weights::{Linear, Matrix, RmsNorm};

/// One batch on its way through a model.
pub trait Steps {
    /// Whether the caller wants the pass to be given up. Its sequences then stay as they were: what is in the cache
    /// beyond their ends is nobody's.
    fn is_interrupted(&self) -> bool;

    /// Whether there are tokens whose logits nobody wants, and it is worth leaving them before the end: if so,
    /// [`Steps::keep_outputs`] leaves them.
    fn has_others(&self) -> bool;

    /// Goes on with the tokens that are to have logits and forgets the others and the rotations, between two steps that
    /// leave nothing but the residual stream and the cache. False if there are none to go on with.
    fn keep_outputs(&mut self) -> bool;

    /// Sets the residual stream to the rows of `matrix` that the tokens name, each element times `scale`.
    fn embed(&mut self, matrix: &Matrix, scale: f32);

    /// Computes the rotations of the batch's positions by each of `ropes`, for [`Steps::finish_heads`] in the layers to
    /// come.
    fn prepare_ropes(&mut self, ropes: &[Rope]);

    /// Normalizes the residual stream into the input of `matrices`; without a norm it is their input as it is.
    fn norm(&mut self, norm: Option<&RmsNorm>, matrices: &[&Linear]);

    /// Queries, keys and values of the normalized input, as their matrices give them.
    fn project(&mut self, linears: [&Linear; 3], parts: Parts);

    /// Adds biases, normalizes and rotates.
    fn finish_heads(&mut self, heads: &Heads<'_>, parts: Parts);

    /// Stores the keys and values in the cache.
    fn remember(&mut self, layer: usize);

    /// Causal attention; query heads share key/value heads in consecutive groups.
    fn attend(&mut self, attend: &Attend);

    /// Adds `linear` of what attention gave to the residual stream.
    fn add_attended(&mut self, linear: &Linear, residual: &Residual<'_>);

    /// Adds the gated feed-forward part of the normalized input to the residual stream.
    fn add_gated(
        &mut self,
        activation: Activation,
        gate: &Linear,
        up: &Linear,
        down: &Linear,
        residual: &Residual<'_>,
    );

    /// Logits of the batch's outputs: normalizes their residual streams and multiplies with the output's matrix.
    fn output(&mut self, output: &Output<'_>);
}

/// The tokens of a batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// Token ids.
    pub(crate) tokens: Vec<u32>,
    /// Position of each token in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Range of each token's sequence in `pages`.
    pub(crate) page_ranges: Vec<(usize, usize)>,
    /// Pages of the sequences.
    pub(crate) pages: Vec<u32>,
    /// Indices of the tokens whose logits are wanted, ascending.
    pub(crate) outputs: Vec<usize>,
}

impl Batch {
    /// Forgets the tokens, keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.page_ranges.clear();
        self.pages.clear();
        self.outputs.clear();
    }

    /// Whether there are tokens that are to have no logits.
    pub(crate) fn has_others(&self) -> bool {
        self.outputs.len() < self.tokens.len()
    }

    /// Becomes the tokens of `batch` that are to have logits.
    pub(crate) fn keep_outputs_of(&mut self, batch: &Batch) {
        self.clear();
        self.pages.extend_from_slice(&batch.pages);
        for (place, &token) in batch.outputs.iter().enumerate() {
            self.tokens.push(batch.tokens[token]);
            self.positions.push(batch.positions[token]);
            self.page_ranges.push(batch.page_ranges[token]);
            self.outputs.push(place);
        }
    }

    /// Pages of the sequence of token `token`.
    pub(crate) fn pages_of(&self, token: usize) -> &[u32] {
        let (start, end) = self.page_ranges[token];
        &self.pages[start..end]
    }
}

/// What logits are made of.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Norm of the residual stream.
    pub norm: &'a RmsNorm,
    /// From there to the vocabulary.
    pub linear: &'a Linear,
    /// Factor of the logits.
    pub scale: f32,
    /// Bound that they are kept within, after that.
    pub cap: Option<f32>,
}

/// What is done to queries, keys and values between their matrices and attention, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Biases of queries, keys and values.
    pub biases: [Option<&'a [f32]>; 3],
    /// Norm of queries: of each head if its weights are as long as one, of all together if they are as long as all.
    pub query_norm: Option<&'a RmsNorm>,
    /// Norm of keys.
    pub key_norm: Option<&'a RmsNorm>,
    /// Rotation of queries and keys, and its index among those prepared.
    pub rope: Option<(usize, &'a Rope)>,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
}

/// Which parts of tokens a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Queries, keys and values.
    All,
    /// Keys and values: all that is wanted, in the last layer, of tokens without logits.
    Remembered,
    /// Queries.
    Queries,
}

/// Queries at position `p` are multiplied by `1 + scale ln(1 + floor(p / every))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Positions that share a factor.
    pub every: usize,
    /// How fast it grows.
    pub scale: f64,
}

impl Temperature {
    pub(super) fn at(self, position: usize) -> f32 {
        (1.0 + self.scale * libm::log((1 + position / self.every) as f64)) as f32
    }
}

/// What is done to the output of a part, after its bias, before it is added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// Norm.
    pub norm: Option<&'a RmsNorm>,
    /// Factor, after that.
    pub scale: f32,
}

/// What gates pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The Gaussian error linear unit in its tanh form.
    GeluTanh,
}

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// The layer, as the cache counts them.
    pub layer: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound that scores are kept within, after that.
    pub cap: Option<f32>,
    /// How many positions are attended to, the token's own and those before it; `None` for all.
    pub window: Option<usize>,
}
