//! Granite (dense): llama's graph with factors of the embedding, the scores, the residual stream and the logits.

use crate::layer::{Design, Hyperparameters, limits};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let mut design = Design::usual(keys, source, Pairing::Adjacent)?;
    let factor = |name| keys.positive(name, limits::FACTOR_MAX);
    // The file has what logits are divided by.
    design.logit_scale = 1.0 / factor("logit_scale")?.unwrap_or(1.0);
    design.residual_scale = factor("residual_scale")?.unwrap_or(1.0);
    design.embedding_scale = factor("embedding_scale")?.unwrap_or(1.0);
    design.attention_scale = factor("attention.scale")?.unwrap_or(design.attention_scale);
    // Granite's files say by this whether there are positions at all.
    if !keys
        .gguf()
        .bool_or(&keys.key("rope.scaling.finetuned"), true)?
    {
        for layer in &mut design.layers {
            layer.rope = None;
        }
    }
    Ok(design)
}
