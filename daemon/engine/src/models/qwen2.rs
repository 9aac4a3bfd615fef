//! Qwen 2 and 2.5: llama's graph with the pairs of a rotation in halves; its files have biases on queries, keys and
//! values.

use crate::layer::{Design, Hyperparameters};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    Design::usual(keys, source, Pairing::Halves)
}
