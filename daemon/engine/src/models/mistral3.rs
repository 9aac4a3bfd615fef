//! Ministral 3: llama's graph, stretched by YaRN, with queries that grow with the logarithm of their position in
//! units of the original context, so that attention stays as sharp over more positions.

use crate::backend::Temperature;
use crate::layer::{Design, Hyperparameters, limits};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let mut design = Design::usual(keys, source, Pairing::Adjacent)?;
    let scale = keys.positive("attention.temperature_scale", limits::FACTOR_MAX)?;
    let original = "rope.scaling.original_context_length";
    let every = keys.optional_count(original, limits::CONTEXT_MAX)?;
    design.temperature = scale.map(|scale| Temperature {
        every: every.unwrap_or(design.shape.context),
        scale: f64::from(scale),
    });
    Ok(design)
}
