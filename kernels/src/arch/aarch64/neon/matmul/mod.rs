//! Products of weights, see [`crate::op::matmul`].
//!
//! Rows as GGUF stores them are taken in fours: the levels of a group of four rows are decoded once and multiplied with
//! up to eight columns; pairwise addition brings the sums of the four rows into the lanes of one vector before the one
//! rounding per group.
//!
//! Everything but floats is generic over [`Multiply`], which compiles it anew for each instruction set.

mod float;
mod k_quants;
mod legacy;
mod rows;
mod tables;

pub(in super::super) use rows::{Rows, column_span, walk};

use crate::Format;
use crate::arch::aarch64::vector::{
    vdupq_laneq_s32, vget_low_s8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s16,
    vreinterpretq_s8_s32, vreinterpretq_s32_s8,
};
use crate::block::{IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{Kernel, Product};
use core::arch::aarch64::{int8x16_t, int32x4_t};

/// How 8-bit levels are multiplied.
pub(in super::super) trait Multiply {
    /// Adds to each lane of `sums` the products of the four levels in that lane of `weights` and of `x`.
    ///
    /// # Safety
    /// The instruction set must be supported.
    unsafe fn dot(sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t;

    /// Adds to each lane of `sums` the products of the four levels in that lane of `weights` and in lane `LANE` of `x`.
    ///
    /// # Safety
    /// The instruction set must be supported.
    unsafe fn dot_lane<const LANE: i32>(
        sums: int32x4_t,
        weights: int8x16_t,
        x: int8x16_t,
    ) -> int32x4_t;

    /// [`walk`], compiled for the instruction set.
    ///
    /// # Safety
    /// See [`Kernel`].
    unsafe fn rows<F: Rows>(product: Product<'_>);
}

/// By the instructions that all processors have: products in 16 bits, added in pairs.
pub(super) struct Plain;

impl Multiply for Plain {
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
        let low = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
        let high = vmull_high_s8(weights, x);
        // At most 2 * 128 * 127 in magnitude, since levels of activations are never -128.
        vpadalq_s16(sums, vpaddq_s16(low, high))
    }

    #[inline(always)]
    unsafe fn dot_lane<const LANE: i32>(
        sums: int32x4_t,
        weights: int8x16_t,
        x: int8x16_t,
    ) -> int32x4_t {
        let four = vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(x));
        // SAFETY: these instructions are always there.
        unsafe { Self::dot(sums, weights, vreinterpretq_s8_s32(four)) }
    }

    unsafe fn rows<F: Rows>(product: Product<'_>) {
        // SAFETY: passed on.
        unsafe { walk::<Self, F>(product) }
    }
}

/// The kernel of a format for these instructions.
pub(in super::super) const fn kernel<D: Multiply>(format: Format) -> Kernel {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => float::kernel(format),
        Format::Q4_0 => D::rows::<Q4_0>,
        Format::Q4_1 => D::rows::<Q4_1>,
        Format::Q5_0 => D::rows::<Q5_0>,
        Format::Q5_1 => D::rows::<Q5_1>,
        Format::Q8_0 => D::rows::<Q8_0>,
        Format::Q2K => D::rows::<Q2K>,
        Format::Q3K => D::rows::<Q3K>,
        Format::Q4K => D::rows::<Q4K>,
        Format::Q5K => D::rows::<Q5K>,
        Format::Q6K => D::rows::<Q6K>,
        Format::IQ4NL => D::rows::<IQ4NL>,
        Format::IQ4XS => D::rows::<IQ4XS>,
        Format::MXFP4 => D::rows::<MXFP4>,
    }
}

/// [`kernel`] for the instructions that all processors have.
pub(crate) const fn plain(format: Format) -> Kernel {
    kernel::<Plain>(format)
}
