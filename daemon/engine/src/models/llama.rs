//! Llama: RMS norm, rotary positions on adjacent pairs, grouped-query attention, SwiGLU. Also what files of the
//! SmolLM and Mistral families declare themselves as.
//!
//! Graph of a layer, with `h` the residual stream:
//! `h += output · attention(rope(q), rope(k), v)` of `norm(h)`, then `h += down · (silu(gate) * up)` of `norm(h)`.

use super::{Architecture, Shape, hyperparameter, limits};
use crate::backend::cpu::{Pass, Rope};
use crate::gguf::Gguf;
use crate::weights::{Matrix, Source, WeightsError};
use andon_kernels::op::rope::Pairing;

/// A loaded model of this architecture.
#[derive(Debug)]
pub(super) struct Llama {
    shape: Shape,
    norm_epsilon: f32,
    attention_scale: f32,
    rope: Rope,
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Matrix,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    attention_output: Matrix,
    feed_forward_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Llama {
    /// Loads the model that a file describes.
    ///
    /// # Errors
    /// If hyperparameters are missing or out of range, or tensors are not what they say.
    pub(super) fn load(gguf: &Gguf<'_>) -> Result<Llama, WeightsError> {
        let shape = read_shape(gguf)?;
        let norm_epsilon = gguf.f32("llama.attention.layer_norm_rms_epsilon")?;
        if !(norm_epsilon > 0.0 && norm_epsilon < 1.0) {
            let key = "llama.attention.layer_norm_rms_epsilon";
            return Err(hyperparameter(key, norm_epsilon, "between 0 and 1"));
        }
        let mut source = Source::new(gguf);
        let rope = read_rope(&mut source, &shape)?;
        let width = shape.embedding;
        let (queries, keys) = (
            shape.head_count * shape.head_dim,
            shape.kv_head_count * shape.head_dim,
        );
        let embedding = source.matrix("token_embd.weight", shape.vocabulary, width)?;
        let mut layers = Vec::new();
        for index in 0..shape.layer_count {
            let name = |tensor: &str| format!("blk.{index}.{tensor}.weight");
            layers.push(Layer {
                attention_norm: source.vector(&name("attn_norm"), width)?,
                query: source.matrix(&name("attn_q"), queries, width)?,
                key: source.matrix(&name("attn_k"), keys, width)?,
                value: source.matrix(&name("attn_v"), keys, width)?,
                attention_output: source.matrix(&name("attn_output"), width, queries)?,
                feed_forward_norm: source.vector(&name("ffn_norm"), width)?,
                gate: source.matrix(&name("ffn_gate"), shape.feed_forward, width)?,
                up: source.matrix(&name("ffn_up"), shape.feed_forward, width)?,
                down: source.matrix(&name("ffn_down"), width, shape.feed_forward)?,
            });
        }
        let output_norm = source.vector("output_norm.weight", width)?;
        // A file without an output matrix ties it to the embedding.
        let output = if source.has("output.weight") {
            source.matrix("output.weight", shape.vocabulary, width)?
        } else {
            embedding.clone()
        };
        source.finish("llama")?;
        let attention_scale = 1.0 / (shape.head_dim as f32).sqrt();
        Ok(Llama {
            shape,
            norm_epsilon,
            attention_scale,
            rope,
            embedding,
            layers,
            output_norm,
            output,
        })
    }
}

/// Reads a count in `1..=max`.
fn count(gguf: &Gguf<'_>, key: &str, max: u32) -> Result<usize, WeightsError> {
    let value = gguf.u32(key)?;
    if value == 0 || value > max {
        return Err(hyperparameter(key, value, format!("between 1 and {max}")));
    }
    Ok(value as usize)
}

fn read_shape(gguf: &Gguf<'_>) -> Result<Shape, WeightsError> {
    let embedding = count(gguf, "llama.embedding_length", limits::EMBEDDING_MAX)?;
    let head_count = count(gguf, "llama.attention.head_count", limits::HEADS_MAX)?;
    let kv_key = "llama.attention.head_count_kv";
    let kv_head_count = if gguf.get(kv_key).is_some() {
        count(gguf, kv_key, limits::HEADS_MAX)?
    } else {
        head_count
    };
    if !head_count.is_multiple_of(kv_head_count) {
        return Err(hyperparameter(
            kv_key,
            kv_head_count,
            format!("a divisor of the {head_count} heads"),
        ));
    }
    let dim_key = "llama.attention.key_length";
    let head_dim = if gguf.get(dim_key).is_some() {
        count(gguf, dim_key, limits::HEAD_DIM_MAX)?
    } else if embedding.is_multiple_of(head_count)
        && embedding / head_count <= limits::HEAD_DIM_MAX as usize
    {
        embedding / head_count
    } else {
        let expected = format!("a divisor of the embedding length {embedding}");
        return Err(hyperparameter(
            "llama.attention.head_count",
            head_count,
            expected,
        ));
    };
    let value_key = "llama.attention.value_length";
    if gguf.get(value_key).is_some() && count(gguf, value_key, limits::HEAD_DIM_MAX)? != head_dim {
        return Err(hyperparameter(
            value_key,
            gguf.u32(value_key)?,
            format!("the key length {head_dim}"),
        ));
    }
    let rope_key = "llama.rope.dimension_count";
    let rope_dims = if gguf.get(rope_key).is_some() {
        gguf.u32(rope_key)? as usize
    } else {
        head_dim
    };
    if rope_dims == 0 || rope_dims > head_dim || rope_dims % 2 == 1 {
        return Err(hyperparameter(
            rope_key,
            rope_dims,
            format!("even and between 2 and the head's {head_dim}"),
        ));
    }
    let vocabulary = match gguf.tensor("token_embd.weight") {
        Some(tensor) => tensor.dims.row_count(),
        None => {
            return Err(WeightsError::Missing {
                name: "token_embd.weight".to_owned(),
            });
        }
    };
    if vocabulary > limits::VOCABULARY_MAX {
        let expected = format!("at most {} rows", limits::VOCABULARY_MAX);
        return Err(hyperparameter("token_embd.weight", vocabulary, expected));
    }
    Ok(Shape {
        layer_count: count(gguf, "llama.block_count", limits::LAYERS_MAX)?,
        embedding,
        head_count,
        kv_head_count,
        head_dim,
        feed_forward: count(gguf, "llama.feed_forward_length", limits::FEED_FORWARD_MAX)?,
        rope_pairs: rope_dims / 2,
        vocabulary,
        context: count(gguf, "llama.context_length", limits::CONTEXT_MAX)?,
    })
}

/// Frequencies of the positions. Files of models with stretched contexts carry a factor per pair
/// (`rope_freqs.weight`) by which each frequency is divided.
fn read_rope(source: &mut Source<'_, '_>, shape: &Shape) -> Result<Rope, WeightsError> {
    let gguf = source.gguf();
    let scaling_key = "llama.rope.scaling.type";
    let scaling = gguf.str_or(scaling_key, "none")?;
    if scaling != "none" {
        return Err(hyperparameter(
            scaling_key,
            scaling,
            "none (other scalings are not supported)",
        ));
    }
    let base_key = "llama.rope.freq_base";
    let base = gguf.f32_or(base_key, 10000.0)?;
    if !(base.is_finite() && base >= 1.0) {
        return Err(hyperparameter(base_key, base, "at least 1"));
    }
    let mut rope = Rope::new(Pairing::Adjacent, f64::from(base), shape.rope_pairs * 2);
    if source.has("rope_freqs.weight") {
        let factors = source.vector("rope_freqs.weight", shape.rope_pairs)?;
        for (frequency, factor) in rope.frequencies.iter_mut().zip(factors) {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(hyperparameter(
                    "rope_freqs.weight",
                    factor,
                    "positive factors",
                ));
            }
            *frequency /= f64::from(factor);
        }
    }
    Ok(rope)
}

impl Architecture for Llama {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn bytes_per_token(&self) -> usize {
        let layer = |layer: &Layer| {
            let Layer {
                query,
                key,
                value,
                attention_output,
                gate,
                up,
                down,
                ..
            } = layer;
            [query, key, value, attention_output, gate, up, down]
                .iter()
                .map(|matrix| matrix.range.len())
                .sum::<usize>()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.output.range.len()
    }

    fn forward(&self, pass: &mut Pass<'_>) {
        pass.embed(&self.embedding);
        pass.prepare_rope(&self.rope);
        for (index, layer) in self.layers.iter().enumerate() {
            pass.norm(
                &layer.attention_norm,
                self.norm_epsilon,
                &[&layer.query, &layer.key, &layer.value],
            );
            pass.query_key_value(&layer.query, &layer.key, &layer.value);
            pass.rotate(&self.rope, self.shape.head_dim);
            pass.remember(index);
            pass.attend(index, self.shape.head_dim, self.attention_scale);
            pass.add_attended(&layer.attention_output);
            pass.norm(
                &layer.feed_forward_norm,
                self.norm_epsilon,
                &[&layer.gate, &layer.up],
            );
            pass.add_swiglu(&layer.gate, &layer.up, &layer.down);
        }
        pass.output(&self.output_norm, self.norm_epsilon, &self.output);
    }
}
