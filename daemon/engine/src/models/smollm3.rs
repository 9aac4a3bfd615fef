//! SmolLM 3: llama's graph, with every fourth layer left without positions.

use crate::layer::{Design, Hyperparameters};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let mut design = Design::usual(keys, source, Pairing::Adjacent)?;
    for layer in design.layers.iter_mut().skip(3).step_by(4) {
        layer.rope = None;
    }
    Ok(design)
}
