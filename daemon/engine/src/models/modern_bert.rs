//! ModernBERT: layer norms without biases before each part, rotations, GEGLU; most layers attend to a window around
//! each position, every so many to the whole input.
//!
//! The residual stream begins as the normalized row of the token. Graph of a layer:
//! `h += output · attention(norm(h))` (no norm in the first layer, whose input is normalized already), then
//! `h += down · (gelu(gate · n) * (up · n))` with `n = norm(h)`. After the last layer `h` is normalized.

use super::encoder::{self, Encoder, EncoderShape, gate_and_up, norm, optional_norm};
use crate::backend::cpu::encode::{
    Activation, Attention, AttentionWeights, EncodePass, FeedForward, LayerNorm, Norms,
};
use crate::gguf::Gguf;
use crate::layer::{Hyperparameters, Rope, hyperparameter};
use crate::weights::{Matrix, Source, WeightsError};

/// Of so many layers the first attends to the whole input, unless the file says otherwise.
const GLOBAL_EVERY: u32 = 3;

/// A loaded model of this architecture.
#[derive(Debug)]
pub(super) struct ModernBert {
    shape: EncoderShape,
    tokens: Matrix,
    norm: LayerNorm,
    layers: Vec<Layer>,
    output_norm: LayerNorm,
    /// That of layers that attend to the whole input, and that of the others.
    ropes: [Rope; 2],
    /// Positions on either side that a window holds; `None` where every layer attends to the whole input.
    reach: Option<usize>,
    global_every: usize,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Option<LayerNorm>,
    attention: AttentionWeights,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl ModernBert {
    /// Loads the model that a file describes.
    ///
    /// # Errors
    /// If hyperparameters are missing or out of range, or tensors are not what they say.
    pub(super) fn load(gguf: &Gguf<'_>) -> Result<ModernBert, WeightsError> {
        let keys = Hyperparameters::new(gguf)?;
        let shape = encoder::read_shape(&keys)?;
        let epsilon = encoder::read_epsilon(&keys)?;
        let activation_key = keys.key("hidden_activation");
        let activation = match gguf.str_or(&activation_key, "gelu")? {
            "gelu" => Activation::Gelu,
            "silu" => Activation::Silu,
            other => return Err(hyperparameter(activation_key, other, "gelu or silu")),
        };
        let window = gguf.u32_or(&keys.key("attention.sliding_window"), 0)? as usize;
        let pattern_key = keys.key("attention.sliding_window_pattern");
        let global_every = gguf.u32_or(&pattern_key, GLOBAL_EVERY)?;
        if global_every == 0 {
            return Err(hyperparameter(pattern_key, global_every, "at least 1"));
        }
        let rope = |key, default| encoder::read_rope(&keys, key, default, shape.head_dim());
        let ropes = [
            rope("rope.freq_base", 160_000.0)?,
            rope("rope.freq_base_swa", 10_000.0)?,
        ];
        let (width, between) = (shape.embedding, shape.feed_forward);
        let mut taken = Source::new(gguf);
        let source = &mut taken;
        let tokens = source.matrix("token_embd.weight", shape.vocabulary, width)?;
        let first_norm = norm(source, "token_embd_norm", width, epsilon)?;
        let mut layers = Vec::new();
        for index in 0..shape.layer_count {
            let name = |part: &str| format!("blk.{index}.{part}");
            let attention_norm = if index == 0 {
                optional_norm(source, &name("attn_norm"), width, epsilon)?
            } else {
                Some(norm(source, &name("attn_norm"), width, epsilon)?)
            };
            let attention = encoder::attention(source, index, width)?;
            let feed_forward_norm = norm(source, &name("ffn_norm"), width, epsilon)?;
            let [gate, up] = gate_and_up(source, index, between, width)?;
            let down = source.linear(&name("ffn_down"), width, between)?;
            layers.push(Layer {
                attention_norm,
                attention,
                feed_forward_norm,
                feed_forward: FeedForward::Gated {
                    gate,
                    up,
                    down,
                    activation,
                },
            });
        }
        let output_norm = norm(source, "output_norm", width, epsilon)?;
        encoder::leave_head(source, &keys)?;
        taken.finish(keys.architecture())?;
        Ok(ModernBert {
            shape,
            tokens,
            norm: first_norm,
            layers,
            output_norm,
            ropes,
            // A window of 128 reaches 64 positions to either side.
            reach: (window > 0).then_some(window / 2),
            global_every: global_every as usize,
        })
    }
}

impl Encoder for ModernBert {
    fn shape(&self) -> EncoderShape {
        self.shape
    }

    fn ropes(&self) -> Vec<Rope> {
        self.ropes.to_vec()
    }

    fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        let matrices = self.layers.iter_mut().flat_map(|layer| {
            let attention = layer.attention.matrices_mut().into_iter();
            attention.chain(layer.feed_forward.matrices_mut())
        });
        matrices.collect()
    }

    fn embed(&self, pass: &mut EncodePass<'_>) {
        pass.embed(&self.tokens, None, None, &self.norm);
    }

    fn layer(&self, index: usize, pass: &mut EncodePass<'_>) {
        let layer = &self.layers[index];
        let global = self.reach.is_none() || index.is_multiple_of(self.global_every);
        let attention = Attention {
            scale: 1.0 / (self.shape.head_dim() as f32).sqrt(),
            rope: Some(usize::from(!global)),
            slopes: None,
            reach: self.reach.filter(|_| !global),
            norms: None,
        };
        let norms = Norms::Pre(layer.attention_norm.as_ref(), &layer.feed_forward_norm);
        pass.layer(&layer.attention, &attention, &layer.feed_forward, &norms);
    }

    fn finish(&self, pass: &mut EncodePass<'_>) {
        pass.finish(&self.output_norm);
    }
}
