//! The feed-forward part of a layer.

use super::design::Design;
use crate::backend::{Residual, Steps};
use crate::weights::{Linear, Matrix, RmsNorm, Source, WeightsError};

/// `h += after(down · (activation(gate · before(h)) * (up · before(h))))`, where norms and biases are there as the
/// design and the file have them.
#[derive(Debug)]
pub(crate) struct FeedForward {
    before: Option<RmsNorm>,
    gate: Linear,
    up: Linear,
    down: Linear,
    after: Option<RmsNorm>,
}

impl FeedForward {
    /// Takes the weights of layer `index`. A file without gates has them as the first rows of `ffn_up`.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub(crate) fn load(
        source: &mut Source<'_, '_>,
        design: &Design,
        index: usize,
    ) -> Result<FeedForward, WeightsError> {
        let (width, inner) = (design.shape.embedding, design.shape.feed_forward);
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |source: &mut Source<'_, '_>, part: &str| {
            RmsNorm::load(source, &name(part), width, design.norm_epsilon)
        };
        let parts = [("ffn_gate", inner), ("ffn_up", inner)];
        let [gate, up] = if source.has(&name("ffn_gate.weight")) {
            [
                source.linear(&name("ffn_gate"), inner, width)?,
                source.linear(&name("ffn_up"), inner, width)?,
            ]
        } else {
            source.linears(&name("ffn_up"), &name, parts, width)?
        };
        Ok(FeedForward {
            before: if design.norms.before() {
                Some(norm(source, "ffn_norm")?)
            } else {
                None
            },
            gate,
            up,
            down: source.linear(&name("ffn_down"), width, inner)?,
            after: if design.norms.after() {
                Some(norm(source, "post_ffw_norm")?)
            } else {
                None
            },
        })
    }

    /// Its matrices, in the order of their use.
    pub(crate) fn matrices_mut(&mut self) -> [&mut Matrix; 3] {
        [
            &mut self.gate.matrix,
            &mut self.up.matrix,
            &mut self.down.matrix,
        ]
    }

    /// Runs a batch through it.
    pub(crate) fn run(&self, pass: &mut dyn Steps, design: &Design) {
        pass.norm(self.before.as_ref(), &[&self.gate, &self.up]);
        pass.add_gated(
            design.activation,
            &self.gate,
            &self.up,
            &self.down,
            &Residual {
                norm: self.after.as_ref(),
                scale: design.residual_scale,
            },
        );
    }
}
