//! The attention part of a layer.

use super::design::{Design, LayerDesign, QueryKeyNorm};
use crate::backend::{Attend, Heads, Parts, Residual, Steps};
use crate::weights::{Linear, Matrix, RmsNorm, Source, WeightsError};

/// `h += after(output · attend(rotate(norm(query · before(h))), rotate(norm(key · before(h))), value · before(h)))`,
/// where norms, biases and the rotation are there as the design and the file have them.
#[derive(Debug)]
pub(crate) struct Attention {
    before: Option<RmsNorm>,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    output: Linear,
    after: Option<RmsNorm>,
    layer: LayerDesign,
}

impl Attention {
    /// Takes the weights of layer `index`.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub(crate) fn load(
        source: &mut Source<'_, '_>,
        design: &Design,
        index: usize,
    ) -> Result<Attention, WeightsError> {
        let shape = &design.shape;
        let width = shape.embedding;
        let queries = shape.head_count * shape.head_dim;
        let keys = shape.kv_head_count * shape.head_dim;
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |source: &mut Source<'_, '_>, part: &str, length: usize| {
            RmsNorm::load(source, &name(part), length, design.norm_epsilon)
        };
        let parts = [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)];
        let [query, key, value] = source.linears(&name("attn_qkv"), &name, parts, width)?;
        let (query_norm, key_norm) = match design.query_key_norm {
            QueryKeyNorm::None => (None, None),
            QueryKeyNorm::Heads => (
                Some(norm(source, "attn_q_norm", shape.head_dim)?),
                Some(norm(source, "attn_k_norm", shape.head_dim)?),
            ),
            QueryKeyNorm::Whole => (
                Some(norm(source, "attn_q_norm", queries)?),
                Some(norm(source, "attn_k_norm", keys)?),
            ),
        };
        Ok(Attention {
            before: if design.norms.before() {
                Some(norm(source, "attn_norm", width)?)
            } else {
                None
            },
            query,
            key,
            value,
            query_norm,
            key_norm,
            output: source.linear(&name("attn_output"), width, queries)?,
            after: if design.norms.after() {
                Some(norm(source, "post_attention_norm", width)?)
            } else {
                None
            },
            layer: design.layers[index],
        })
    }

    /// Its matrices, in the order of their use.
    pub(crate) fn matrices_mut(&mut self) -> [&mut Matrix; 4] {
        [
            &mut self.query.matrix,
            &mut self.key.matrix,
            &mut self.value.matrix,
            &mut self.output.matrix,
        ]
    }

    /// Attends to the keys and values of a batch, which it puts into the cache.
    pub(crate) fn attend(&self, pass: &mut dyn Steps, design: &Design, index: usize) {
        self.prepare(pass, design, Parts::All);
        pass.remember(index);
        self.attend_queries(pass, design, index);
    }

    /// Puts the keys and values of a batch into the cache.
    pub(crate) fn remember(&self, pass: &mut dyn Steps, design: &Design, index: usize) {
        self.prepare(pass, design, Parts::Remembered);
        pass.remember(index);
    }

    /// Attends to keys and values that are in the cache, those of the batch among them.
    pub(crate) fn attend_to_remembered(&self, pass: &mut dyn Steps, design: &Design, index: usize) {
        self.prepare(pass, design, Parts::Queries);
        self.attend_queries(pass, design, index);
    }

    /// Computes queries, keys and values of a batch, as far as they are wanted.
    fn prepare(&self, pass: &mut dyn Steps, design: &Design, parts: Parts) {
        let inputs = [&self.query, &self.key, &self.value];
        pass.norm(self.before.as_ref(), &inputs);
        pass.project(inputs, parts);
        let heads = Heads {
            head_dim: design.shape.head_dim,
            biases: inputs.map(|linear| linear.bias.as_deref()),
            query_norm: self.query_norm.as_ref(),
            key_norm: self.key_norm.as_ref(),
            rope: self.layer.rope.map(|rope| (rope, &design.ropes[rope])),
            temperature: design.temperature,
        };
        pass.finish_heads(&heads, parts);
    }

    fn attend_queries(&self, pass: &mut dyn Steps, design: &Design, index: usize) {
        pass.attend(&Attend {
            layer: index,
            head_dim: design.shape.head_dim,
            scale: design.attention_scale,
            cap: design.attention_cap,
            window: self.layer.window,
        });
    }

    /// Adds what attention gave to the residual stream.
    pub(crate) fn add(&self, pass: &mut dyn Steps, design: &Design) {
        pass.add_attended(
            &self.output,
            &Residual {
                norm: self.after.as_ref(),
                scale: design.residual_scale,
            },
        );
    }
}
