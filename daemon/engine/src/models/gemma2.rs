//! Gemma 2: Gemma with norms on both sides of each part, windows in every other layer, and scores and logits kept
//! within bounds.

use super::gemma;
use crate::layer::{Design, Hyperparameters, Norms, limits};
use crate::weights::{Source, WeightsError};

/// Layers of the 27B model, whose scores are scaled by the width per head and not by the head's.
const LAYERS_27B: usize = 46;

/// Window of files that do not say.
const WINDOW: usize = 4096;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let mut design = gemma::design(keys, source)?;
    let shape = design.shape;
    let windowed = keys.windowed_layers(shape.layer_count, 2)?;
    for (layer, windowed) in design.layers.iter_mut().zip(windowed) {
        layer.window = windowed.then(|| layer.window.unwrap_or(WINDOW));
    }
    if shape.layer_count == LAYERS_27B {
        design.attention_scale = 1.0 / ((shape.embedding / shape.head_count) as f32).sqrt();
    }
    let cap = |name, usual| {
        let cap = keys.positive(name, limits::FACTOR_MAX)?;
        Ok::<_, WeightsError>(Some(cap.unwrap_or(usual)))
    };
    Ok(Design {
        norms: Norms::BeforeAndAfter,
        attention_cap: cap("attn_logit_softcapping", 50.0)?,
        logit_cap: cap("final_logit_softcapping", 30.0)?,
        ..design
    })
}
