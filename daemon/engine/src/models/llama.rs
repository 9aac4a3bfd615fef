//! Llama: RMS norm, rotary positions on adjacent pairs, grouped-query attention, SwiGLU. Also what files of the
//! Mistral and SmolLM families and many others declare themselves as. Llama 3 stretches its context by factors in the
//! file; converters store queries and keys permuted, so that pairs are adjacent.

use crate::layer::{Design, Hyperparameters};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    Design::usual(keys, source, Pairing::Adjacent)
}
