//! Qwen 3: Qwen 2's graph, with every head's queries and keys normalized instead of biases.

use crate::layer::{Design, Hyperparameters, QueryKeyNorm};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    Ok(Design {
        query_key_norm: QueryKeyNorm::Heads,
        ..Design::usual(keys, source, Pairing::Halves)?
    })
}
