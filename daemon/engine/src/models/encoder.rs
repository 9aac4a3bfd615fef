//! What encoders have in common: the trait, the pooling, and what their loaders share.

use crate::backend::cpu::encode::{AttentionWeights, EncodePass, LayerNorm};
use crate::layer::{Hyperparameters, Rope, hyperparameter, limits};
use crate::weights::{Linear, Matrix, Source, WeightsError};
use andon_kernels::op::rope::Pairing;

/// Sizes that running an encoder needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderShape {
    /// Layers.
    pub layer_count: usize,
    /// Elements of the residual stream, which is the length of an embedding.
    pub embedding: usize,
    /// Heads of a layer.
    pub head_count: usize,
    /// Elements between the matrices of a feed-forward part.
    pub feed_forward: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Positions that the model was made for.
    pub context: usize,
}

impl EncoderShape {
    /// Dimensions of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.embedding / self.head_count
    }
}

/// A loaded encoder: a model that makes a vector of each token of a whole input.
pub trait Encoder: Send + Sync + std::fmt::Debug {
    /// Its sizes.
    fn shape(&self) -> EncoderShape;

    /// How rotations of its layers go, named by index in [`EncodePass::layer`]; empty where positions are otherwise
    /// known.
    fn ropes(&self) -> Vec<Rope>;

    /// The matrices that columns are multiplied with, in the order of their use.
    fn matrices_mut(&mut self) -> Vec<&mut Matrix>;

    /// Fills the residual stream from the tokens.
    fn embed(&self, pass: &mut EncodePass<'_>);

    /// Runs the layer `index`.
    fn layer(&self, index: usize, pass: &mut EncodePass<'_>);

    /// What is left to do after the last layer.
    fn finish(&self, pass: &mut EncodePass<'_>);
}

/// How the vectors of an input's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    First,
    /// The last token's.
    Last,
}

impl Pooling {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::First => "cls",
            Pooling::Last => "last",
        }
    }
}

/// Pooling as the file says; `None` where it says nothing, or that there is none.
///
/// # Errors
/// If it is that of a model that makes no embeddings, or not known.
pub(super) fn pooling(keys: &Hyperparameters<'_, '_>) -> Result<Option<Pooling>, WeightsError> {
    let key = keys.key("pooling_type");
    match keys.gguf().u32_or(&key, 0)? {
        0 => Ok(None),
        1 => Ok(Some(Pooling::Mean)),
        2 => Ok(Some(Pooling::First)),
        3 => Ok(Some(Pooling::Last)),
        4 => Err(hyperparameter(
            key,
            "4 (rank)",
            "a reranker gives scores of pairs of texts, which are not supported",
        )),
        other => Err(hyperparameter(
            key,
            other,
            "0 (none), 1 (mean), 2 (cls) or 3 (last)",
        )),
    }
}

/// Reads sizes from keys that every encoder's file has.
pub(super) fn read_shape(keys: &Hyperparameters<'_, '_>) -> Result<EncoderShape, WeightsError> {
    let shape = keys.shape()?;
    let whole = shape.embedding == shape.head_count * shape.head_dim;
    if !whole || shape.kv_head_count != shape.head_count {
        let key = keys.key("attention.head_count");
        let expected = format!("heads of all {} elements, with keys each", shape.embedding);
        return Err(hyperparameter(key, shape.head_count, expected));
    }
    let causal_key = keys.key("attention.causal");
    if keys.gguf().bool_or(&causal_key, false)? {
        let expected = "false: an encoder attends in both directions";
        return Err(hyperparameter(causal_key, true, expected));
    }
    Ok(EncoderShape {
        layer_count: shape.layer_count,
        embedding: shape.embedding,
        head_count: shape.head_count,
        feed_forward: shape.feed_forward,
        vocabulary: shape.vocabulary,
        context: shape.context,
    })
}

/// Reads the epsilon of the layer norms.
pub(super) fn read_epsilon(keys: &Hyperparameters<'_, '_>) -> Result<f32, WeightsError> {
    let key = keys.key("attention.layer_norm_epsilon");
    let epsilon = keys.gguf().f32(&key)?;
    if epsilon > 0.0 && epsilon < 1.0 {
        Ok(epsilon)
    } else {
        Err(hyperparameter(key, epsilon, "between 0 and 1"))
    }
}

/// Reads rotations, which turn whole heads, in halves, and are never stretched.
pub(super) fn read_rope(
    keys: &Hyperparameters<'_, '_>,
    base_key: &str,
    default: f32,
    head_dim: usize,
) -> Result<Rope, WeightsError> {
    let scaling_key = keys.key("rope.scaling.type");
    let scaling = keys.gguf().str_or(&scaling_key, "none")?;
    if scaling != "none" {
        return Err(hyperparameter(scaling_key, scaling, "none"));
    }
    if !head_dim.is_multiple_of(2) {
        let key = keys.key("attention.head_count");
        return Err(hyperparameter(key, head_dim, "heads of even dimensions"));
    }
    let base = keys
        .positive(base_key, limits::ROPE_MAX)?
        .unwrap_or(default);
    if base <= 1.0 {
        return Err(hyperparameter(keys.key(base_key), base, "more than 1"));
    }
    Ok(Rope::new(Pairing::Halves, f64::from(base), head_dim))
}

/// Leaves the head that classifies or ranks: files of embeddings may have it left over from their training. In a file
/// that does not say how to make embeddings it is what the model was made for, and stays a tensor that has no use.
pub(super) fn leave_head(
    source: &mut Source<'_, '_>,
    keys: &Hyperparameters<'_, '_>,
) -> Result<(), WeightsError> {
    if pooling(keys)?.is_some() {
        source.leave(|name| name.starts_with("cls."));
    }
    Ok(())
}

/// Takes `<name>.weight` and, if it is there, `<name>.bias`, as a layer norm.
pub(super) fn norm(
    source: &mut Source<'_, '_>,
    name: &str,
    width: usize,
    epsilon: f32,
) -> Result<LayerNorm, WeightsError> {
    let bias = format!("{name}.bias");
    Ok(LayerNorm {
        weight: source.vector(&format!("{name}.weight"), width)?,
        bias: if source.has(&bias) {
            Some(source.vector(&bias, width)?)
        } else {
            None
        },
        epsilon,
    })
}

/// [`norm`], if it is there.
pub(super) fn optional_norm(
    source: &mut Source<'_, '_>,
    name: &str,
    width: usize,
    epsilon: f32,
) -> Result<Option<LayerNorm>, WeightsError> {
    if source.has(&format!("{name}.weight")) {
        norm(source, name, width, epsilon).map(Some)
    } else {
        Ok(None)
    }
}

/// Takes the matrices of a layer's attention; queries, keys and values may be one.
pub(super) fn attention(
    source: &mut Source<'_, '_>,
    layer: usize,
    width: usize,
) -> Result<AttentionWeights, WeightsError> {
    let name = |part: &str| format!("blk.{layer}.{part}");
    let parts = [("attn_q", width), ("attn_k", width), ("attn_v", width)];
    let [query, key, value] = source.linears(&name("attn_qkv"), &name, parts, width)?;
    let output = source.linear(&name("attn_output"), width, width)?;
    Ok(AttentionWeights {
        query,
        key,
        value,
        output,
    })
}

/// Takes the gate and the matrix that it is multiplied with: two matrices, or one with the rows of both.
pub(super) fn gate_and_up(
    source: &mut Source<'_, '_>,
    layer: usize,
    between: usize,
    width: usize,
) -> Result<[Linear; 2], WeightsError> {
    let name = |part: &str| format!("blk.{layer}.{part}");
    if source.has(&name("ffn_gate.weight")) {
        return Ok([
            source.linear(&name("ffn_gate"), between, width)?,
            source.linear(&name("ffn_up"), between, width)?,
        ]);
    }
    let parts = [("ffn_gate", between), ("ffn_up", between)];
    source.linears(&name("ffn_up"), &name, parts, width)
}
