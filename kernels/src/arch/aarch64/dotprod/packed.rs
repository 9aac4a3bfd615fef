//! Products of packed weights, see [`crate::op::matmul`]: those of [`super::super::neon`], multiplying with `sdot`.

use super::super::neon::packed::{self, TileProducts, by_lanes};
use super::matmul::Dotprod;
use crate::Format;
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::Packed;
use core::ops::Range;

/// The kernel of a format; `None` if it has no packed layout.
pub(crate) const fn kernel(format: Format) -> Option<PackedKernel> {
    packed::kernel::<Dotprod>(format)
}

impl TileProducts for Dotprod {
    const FEW_COLUMNS: bool = true;

    #[inline(never)]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn some_columns<F: Packed, const M: usize>(
        product: &PackedProduct<'_>,
        tile: *const u8,
        first: usize,
        columns: Range<usize>,
    ) {
        // SAFETY: passed on.
        unsafe { by_lanes::<Self, F, M>(product, tile, first, columns) }
    }
}
