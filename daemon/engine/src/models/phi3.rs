//! Phi 3 and 4: llama's graph with the pairs of a rotation in halves. Files have queries, keys and values in one
//! matrix, gates and ups in another, and LongRoPE factors for contexts up to the original one and beyond.
//!
//! A window that the file names bounds every layer, as in the published models of 4096 positions.

use crate::layer::{Design, Hyperparameters};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    Design::usual(keys, source, Pairing::Halves)
}
