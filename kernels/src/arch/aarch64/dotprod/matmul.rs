//! Products of quantized weights, see [`crate::op::matmul`]: those of [`super::super::neon`], multiplying with `sdot`.

use super::super::instructions::{sdot, sdot_lane};
use super::super::neon::matmul::{self, Multiply, Rows, walk};
use crate::Format;
use crate::op::matmul::{Kernel, Product};
use core::arch::aarch64::{int8x16_t, int32x4_t};

/// By `sdot`.
pub(in super::super) struct Dotprod;

impl Multiply for Dotprod {
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the instruction set is the caller's debt.
        unsafe { sdot(sums, weights, x) }
    }

    #[inline(always)]
    unsafe fn dot_lane<const LANE: i32>(
        sums: int32x4_t,
        weights: int8x16_t,
        x: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: the instruction set is the caller's debt.
        unsafe { sdot_lane::<LANE>(sums, weights, x) }
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn rows<F: Rows>(product: Product<'_>) {
        // SAFETY: passed on.
        unsafe { walk::<Self, F>(product) }
    }
}

/// The kernel of a format.
pub(crate) const fn kernel(format: Format) -> Kernel {
    matmul::kernel::<Dotprod>(format)
}
