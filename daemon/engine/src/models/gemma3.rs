//! Gemma 3 (text): Gemma with norms on both sides of each part and on every head's queries and keys. Five of six
//! layers attend to a window, and their positions are rotated from a base of their own, without any scaling.

use super::gemma;
use crate::layer::{Design, Hyperparameters, Norms, QueryKeyNorm, Rope, hyperparameter, limits};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

/// Layers of the 27B model, whose scores are scaled by the width per head and not by the head's.
const LAYERS_27B: usize = 62;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let mut design = gemma::design(keys, source)?;
    let shape = design.shape;
    // Without a window there is one kind of layer.
    if design.layers.iter().any(|layer| layer.window.is_some()) {
        let base_key = "rope.freq_base_swa";
        let base = keys.positive(base_key, limits::ROPE_MAX)?.unwrap_or(1e4);
        if base <= 1.0 {
            return Err(hyperparameter(keys.key(base_key), base, "more than 1"));
        }
        let local = Rope::new(Pairing::Halves, f64::from(base), shape.rope_pairs * 2);
        let local = design.add_rope(local);
        let windowed = keys.windowed_layers(shape.layer_count, 6)?;
        for (layer, windowed) in design.layers.iter_mut().zip(windowed) {
            if windowed {
                layer.rope = Some(local);
            } else {
                layer.window = None;
            }
        }
    }
    if shape.layer_count == LAYERS_27B {
        design.attention_scale = 1.0 / ((shape.embedding / shape.head_count) as f32).sqrt();
    }
    Ok(Design {
        norms: Norms::BeforeAndAfter,
        query_key_norm: QueryKeyNorm::Heads,
        logit_cap: keys.positive("final_logit_softcapping", limits::FACTOR_MAX)?,
        ..design
    })
}
