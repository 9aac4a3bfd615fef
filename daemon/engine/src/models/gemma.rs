//! Gemma: an embedding scaled by the root of its width, GEGLU, and the pairs of a rotation in halves. Converters add
//! one to the weights of its norms, which are then like any other's.

use crate::backend::Activation;
use crate::layer::{Design, Hyperparameters};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let usual = Design::usual(keys, source, Pairing::Halves)?;
    Ok(Design {
        activation: Activation::GeluTanh,
        embedding_scale: (usual.shape.embedding as f32).sqrt(),
        ..usual
    })
}
