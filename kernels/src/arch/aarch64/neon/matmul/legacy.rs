//! Blocks of 32 elements with evenly spaced levels.

use super::Multiply;
use super::rows::{Activation, Levels, Pointers, Rows, activation, dots, halves, signed};
use crate::activation::Columns;
use crate::arch::aarch64::vector::{
    vandq_u8, vcombine_u8, vcreate_u8, vcvtq_f32_s32, vdup_n_u8, vdupq_n_f32, vdupq_n_u8,
    vfmaq_f32, vfmaq_n_f32, vmulq_n_f32, vorrq_u8, vshrq_n_u8, vtstq_u8,
};
use crate::block::{Block, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use core::arch::aarch64::{float32x4_t, uint8x16_t, vld1q_s8, vld1q_u8};
use core::mem::offset_of;

/// A format whose blocks are one group of 32 elements with one scale.
pub(super) trait Single: Block {
    /// How far the levels are shifted up.
    const OFFSET: i32;

    /// Levels of the block at `block`.
    ///
    /// # Safety
    /// The block must be readable.
    unsafe fn levels(block: *const u8) -> Levels;

    /// Scales, and minimums where the format has them, of the block at `offset` of each row.
    ///
    /// # Safety
    /// The blocks must be readable.
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>);
}

/// [`Rows::products`] of such a format.
///
/// # Safety
/// See that method.
#[inline(always)]
pub(super) unsafe fn products<F: Single, D: Multiply, const M: usize>(
    rows: Pointers,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [float32x4_t; M] {
    let mut sums = [vdupq_n_f32(0.0); M];
    for group in 0..blocks {
        let offset = group * size_of::<F>();
        // SAFETY: `offset` is the start of a block of every row.
        let (levels, (scale, minimum)) = unsafe {
            let levels = |row: usize| F::levels(rows[row].add(offset));
            (
                [levels(0), levels(1), levels(2), levels(3)],
                F::factors(&rows, offset),
            )
        };
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `group` is a group of every column; the instruction set is the caller's debt.
            let (x, products) = unsafe {
                let x: Activation = activation(columns, column + index, group);
                let start = F::OFFSET * x.group.negated_sum;
                (x, dots::<D>(&levels, &x.levels, start))
            };
            let scale = vmulq_n_f32(scale, x.group.scale);
            *sum = vfmaq_f32(*sum, scale, vcvtq_f32_s32(products));
            if let Some(minimum) = minimum {
                *sum = vfmaq_n_f32(*sum, minimum, x.group.scaled_sum);
            }
        }
    }
    sums
}

/// Implements [`Rows`] for formats of this family.
macro_rules! rows {
    ($($format:ty),*) => {$(
        impl Rows for $format {
            #[inline(always)]
            unsafe fn products<D: Multiply, const M: usize>(
                rows: Pointers,
                blocks: usize,
                columns: &Columns<'_>,
                column: usize,
            ) -> [float32x4_t; M] {
                // SAFETY: passed on.
                unsafe { products::<Self, D, M>(rows, blocks, columns, column) }
            }
        }
    )*};
}

rows!(
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    crate::block::IQ4NL,
    crate::block::MXFP4
);

/// The halves of sixteen bytes: low ones first.
///
/// # Safety
/// The bytes must be readable.
#[inline(always)]
pub(super) unsafe fn nibbles(from: *const u8) -> [uint8x16_t; 2] {
    // SAFETY: the caller owes the bytes.
    let bytes = unsafe { vld1q_u8(from) };
    [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)]
}

/// Levels of five bits: four as in [`nibbles`], the fifth in the word at `high`.
///
/// # Safety
/// The bytes must be readable.
#[inline(always)]
unsafe fn five_bits(low: *const u8, high: *const u8) -> Levels {
    // SAFETY: the caller owes the bytes.
    let ([low, high], bits) = unsafe { (nibbles(low), high.cast::<[u8; 4]>().read()) };
    let bit = vcreate_u8(0x8040_2010_0804_0201);
    let bit = vcombine_u8(bit, bit);
    let fifth = |first: usize| {
        let bytes = vcombine_u8(vdup_n_u8(bits[first]), vdup_n_u8(bits[first + 1]));
        vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8(16))
    };
    signed([vorrq_u8(low, fifth(0)), vorrq_u8(high, fifth(2))])
}

impl Single for Q4_0 {
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        signed(unsafe { nibbles(block.add(offset_of!(Q4_0, levels))) })
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks.
        let scale = unsafe { halves(rows, offset + offset_of!(Q4_0, scale)) };
        (scale, None)
    }
}

impl Single for Q4_1 {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        signed(unsafe { nibbles(block.add(offset_of!(Q4_1, levels))) })
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks.
        unsafe {
            (
                halves(rows, offset + offset_of!(Q4_1, scale)),
                Some(halves(rows, offset + offset_of!(Q4_1, minimum))),
            )
        }
    }
}

impl Single for Q5_0 {
    const OFFSET: i32 = 16;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        unsafe {
            five_bits(
                block.add(offset_of!(Q5_0, low)),
                block.add(offset_of!(Q5_0, high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks.
        let scale = unsafe { halves(rows, offset + offset_of!(Q5_0, scale)) };
        (scale, None)
    }
}

impl Single for Q5_1 {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        unsafe {
            five_bits(
                block.add(offset_of!(Q5_1, low)),
                block.add(offset_of!(Q5_1, high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks.
        unsafe {
            (
                halves(rows, offset + offset_of!(Q5_1, scale)),
                Some(halves(rows, offset + offset_of!(Q5_1, minimum))),
            )
        }
    }
}

impl Single for Q8_0 {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        unsafe {
            let levels = block.add(offset_of!(Q8_0, levels)).cast::<i8>();
            [vld1q_s8(levels), vld1q_s8(levels.add(16))]
        }
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks.
        let scale = unsafe { halves(rows, offset + offset_of!(Q8_0, scale)) };
        (scale, None)
    }
}
