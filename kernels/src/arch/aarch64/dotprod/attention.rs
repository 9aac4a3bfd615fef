//! Attention over a page, see [`crate::op::attention`]: as in [`super::super::neon`], 8-bit keys by `sdot`.

use super::super::neon;
use super::matmul::Dotprod;
use crate::op::attention::{Kernels, QuantizedKeys, QuantizedQueries};

/// The kernels.
pub(crate) const KERNELS: Kernels = Kernels {
    quantized_scores,
    ..neon::attention::KERNELS
};

/// [`crate::op::attention::QuantizedScores`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "neon,dotprod")]
unsafe fn quantized_scores(
    queries: QuantizedQueries<'_>,
    rows: usize,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    // SAFETY: passed on.
    unsafe { neon::attention::quantized_scores::<Dotprod>(queries, rows, keys, scale, scores) }
}
