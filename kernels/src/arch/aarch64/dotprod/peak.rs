//! See [`crate::op::peak`]: `sdot`.

use super::super::neon::peak;
use super::matmul::Dotprod;

/// [`crate::op::peak::multiply_adds`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn multiply_adds(rounds: usize) -> u64 {
    // SAFETY: passed on.
    unsafe { peak::multiply_adds::<Dotprod>(rounds) }
}
