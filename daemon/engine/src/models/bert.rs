//! Encoders of the BERT family: `bert` (BERT, RoBERTa and XLM-R, whose files begin their positions at zero like
//! BERT's), `nomic-bert` and `jina-bert-v2`.
//!
//! The residual stream begins as the normalized sum of the token's row, the row of token type 0 and, in `bert`, the
//! position's row. Graph of a layer, with norms after each addition:
//! `h = norm(h + output · attention(h))`, then `h = norm(h + down · act(up · h))`.
//!
//! - `bert`: learned positions, exact GELU.
//! - `nomic-bert`: rotations of whole heads, SwiGLU.
//! - `jina-bert-v2`: linear biases of the scores by distance, GEGLU; some files normalize all queries and all keys of
//!   a token, and the residual stream once more.

use super::encoder::{self, Encoder, EncoderShape, gate_and_up, norm, optional_norm};
use crate::backend::cpu::encode::{
    Activation, Attention, AttentionWeights, EncodePass, FeedForward, LayerNorm, Norms,
};
use crate::gguf::Gguf;
use crate::layer::{Hyperparameters, Rope};
use crate::weights::{Matrix, Source, WeightsError};
use andon_kernels::block;

/// What sets the family's members apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    Bert,
    Nomic,
    JinaV2,
}

/// Largest linear bias: the slopes of the heads fall from `2^(-8 / n)` to `2^-8`.
const LINEAR_BIAS_MAX: f64 = 8.0;

/// A loaded model of the family.
#[derive(Debug)]
pub(super) struct Bert {
    shape: EncoderShape,
    tokens: Matrix,
    /// The row of token type 0; every token is of that type.
    kind: Option<Vec<f32>>,
    positions: Option<Matrix>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    ropes: Vec<Rope>,
    slopes: Option<Vec<f32>>,
}

#[derive(Debug)]
struct Layer {
    attention: AttentionWeights,
    query_key_norms: Option<(LayerNorm, LayerNorm)>,
    attention_norm: LayerNorm,
    second_norm: Option<LayerNorm>,
    feed_forward: FeedForward,
    output_norm: LayerNorm,
}

impl Bert {
    /// Loads the model that a file describes.
    ///
    /// # Errors
    /// If hyperparameters are missing or out of range, or tensors are not what they say.
    pub(super) fn load(gguf: &Gguf<'_>, member: Member) -> Result<Bert, WeightsError> {
        let keys = Hyperparameters::new(gguf)?;
        let shape = encoder::read_shape(&keys)?;
        let epsilon = encoder::read_epsilon(&keys)?;
        let width = shape.embedding;
        let mut source = Source::new(gguf);
        let tokens = source.matrix("token_embd.weight", shape.vocabulary, width)?;
        let kind = token_type(&mut source, width)?;
        let positions = match member {
            Member::Bert => Some(source.matrix("position_embd.weight", shape.context, width)?),
            Member::Nomic | Member::JinaV2 => None,
        };
        let norm = norm(&mut source, "token_embd_norm", width, epsilon)?;
        let mut layers = Vec::new();
        for index in 0..shape.layer_count {
            layers.push(Layer::load(&mut source, member, index, &shape, epsilon)?);
        }
        encoder::leave_head(&mut source, &keys)?;
        source.finish(keys.architecture())?;
        let ropes = match member {
            Member::Nomic => vec![encoder::read_rope(
                &keys,
                "rope.freq_base",
                10_000.0,
                shape.head_dim(),
            )?],
            Member::Bert | Member::JinaV2 => Vec::new(),
        };
        let slopes = (member == Member::JinaV2).then(|| slopes(shape.head_count));
        Ok(Bert {
            shape,
            tokens,
            kind,
            positions,
            norm,
            layers,
            ropes,
            slopes,
        })
    }
}

/// The row of token type 0, if the file has token types.
fn token_type(source: &mut Source<'_, '_>, width: usize) -> Result<Option<Vec<f32>>, WeightsError> {
    let name = "token_types.weight";
    let Some(tensor) = source.gguf().tensor(name) else {
        return Ok(None);
    };
    let count = tensor.dims.row_count();
    let all = source.matrix(name, count, width)?;
    let bytes = source.gguf().data(tensor);
    let mut row = vec![0.0; width];
    block::decode_row(all.format, &bytes[..all.row_bytes()], &mut row);
    Ok(Some(row))
}

/// Slopes of the linear biases: a geometric sequence where the number of heads is a power of two; for the others
/// every second member of the sequence of twice as many.
fn slopes(head_count: usize) -> Vec<f32> {
    let whole = if head_count.is_power_of_two() {
        head_count
    } else {
        head_count.next_power_of_two() / 2
    };
    let slope = |exponent: f64| libm::exp2(-LINEAR_BIAS_MAX * exponent) as f32;
    let first = (0..whole).map(|head| slope((head + 1) as f64 / whole as f64));
    let more =
        (0..head_count - whole).map(|head| slope((2 * head + 1) as f64 / (2 * whole) as f64));
    first.chain(more).collect()
}

impl Layer {
    fn load(
        source: &mut Source<'_, '_>,
        member: Member,
        index: usize,
        shape: &EncoderShape,
        epsilon: f32,
    ) -> Result<Layer, WeightsError> {
        let (width, between) = (shape.embedding, shape.feed_forward);
        let name = |part: &str| format!("blk.{index}.{part}");
        let attention = encoder::attention(source, index, width)?;
        let mut extra = |part: &str| match member {
            Member::JinaV2 => optional_norm(source, &name(part), width, epsilon),
            Member::Bert | Member::Nomic => Ok(None),
        };
        let query_key_norms = extra("attn_q_norm")?.zip(extra("attn_k_norm")?);
        let second_norm = extra("attn_norm_2")?;
        let feed_forward = match member {
            Member::Bert => FeedForward::Gelu {
                up: source.linear(&name("ffn_up"), between, width)?,
                down: source.linear(&name("ffn_down"), width, between)?,
            },
            Member::Nomic | Member::JinaV2 => {
                let [gate, up] = gate_and_up(source, index, between, width)?;
                FeedForward::Gated {
                    gate,
                    up,
                    down: source.linear(&name("ffn_down"), width, between)?,
                    activation: match member {
                        Member::JinaV2 => Activation::Gelu,
                        Member::Bert | Member::Nomic => Activation::Silu,
                    },
                }
            }
        };
        Ok(Layer {
            attention,
            query_key_norms,
            attention_norm: norm(source, &name("attn_output_norm"), width, epsilon)?,
            second_norm,
            feed_forward,
            output_norm: norm(source, &name("layer_output_norm"), width, epsilon)?,
        })
    }
}

impl Encoder for Bert {
    fn shape(&self) -> EncoderShape {
        self.shape
    }

    fn ropes(&self) -> Vec<Rope> {
        self.ropes.clone()
    }

    fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        let matrices = self.layers.iter_mut().flat_map(|layer| {
            let attention = layer.attention.matrices_mut().into_iter();
            attention.chain(layer.feed_forward.matrices_mut())
        });
        matrices.collect()
    }

    fn embed(&self, pass: &mut EncodePass<'_>) {
        pass.embed(
            &self.tokens,
            self.kind.as_deref(),
            self.positions.as_ref(),
            &self.norm,
        );
    }

    fn layer(&self, index: usize, pass: &mut EncodePass<'_>) {
        let layer = &self.layers[index];
        let attention = Attention {
            scale: 1.0 / (self.shape.head_dim() as f32).sqrt(),
            rope: (!self.ropes.is_empty()).then_some(0),
            slopes: self.slopes.as_deref(),
            reach: None,
            norms: layer
                .query_key_norms
                .as_ref()
                .map(|(query, key)| (query, key)),
        };
        let norms = Norms::Post(
            &layer.attention_norm,
            layer.second_norm.as_ref(),
            &layer.output_norm,
        );
        pass.layer(&layer.attention, &attention, &layer.feed_forward, &norms);
    }

    fn finish(&self, _pass: &mut EncodePass<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::slopes;

    #[test]
    fn slopes_are_those_of_the_published_code() {
        assert_eq!(slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        // Twelve heads: eight of the sequence of eight, then the first, third, … of the sequence of sixteen.
        let twelve = slopes(12);
        assert_eq!(twelve[..3], [0.5, 0.25, 0.125]);
        assert_eq!(twelve[8], std::f32::consts::FRAC_1_SQRT_2);
        assert_eq!(twelve.len(), 12);
    }
}
