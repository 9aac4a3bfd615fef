//! Blocks of 256 elements with scales of scales.

use super::Multiply;
use super::rows::{
    Activation, Levels, Pointers, Rows, activation, dots, fields, half_dots, halves, signed,
};
use crate::activation::Columns;
use crate::arch::aarch64::vector::{
    vandq_u8, vcreate_u8, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_u8, vfmaq_f32, vfmsq_f32,
    vfmsq_n_f32, vget_high_s8, vget_low_s8, vget_low_s16, vmlaq_n_s32, vmlaq_s32, vmovl_high_s16,
    vmovl_s8, vmovl_s16, vmulq_f32, vmulq_n_f32, vmulq_n_s32, vmulq_s32, vorrq_u8,
    vreinterpret_s8_u8, vreinterpretq_s8_u8, vshlq_n_u8, vshrq_n_u8, vzip1_s8, vzip2_s8,
};
use crate::block::{Block, IQ4XS, Q2K, Q3K, Q4K, Q5K, Q6K};
use core::arch::aarch64::{
    float32x4_t, int8x8_t, int8x16_t, int32x4_t, vld1_s8, vld1q_s8, vld1q_u8,
};
use core::mem::offset_of;

/// What levels and sums of activations are multiplied with in each of the eight groups of four rows.
pub(super) struct Factors {
    pub(super) scales: [float32x4_t; 8],
    /// Anything where the format has none.
    pub(super) minimums: [float32x4_t; 8],
}

/// Eight numbers of each row, brought together by number: the rows in order.
#[inline(always)]
pub(super) fn by_group([a, b, c, d]: [int8x8_t; 4]) -> [int32x4_t; 8] {
    let even = [vzip1_s8(a, c), vzip2_s8(a, c)];
    let odd = [vzip1_s8(b, d), vzip2_s8(b, d)];
    // Two numbers in each.
    let pairs = [
        vzip1_s8(even[0], odd[0]),
        vzip2_s8(even[0], odd[0]),
        vzip1_s8(even[1], odd[1]),
        vzip2_s8(even[1], odd[1]),
    ];
    let first = |pair: int8x8_t| vmovl_s16(vget_low_s16(vmovl_s8(pair)));
    let second = |pair: int8x8_t| vmovl_high_s16(vmovl_s8(pair));
    [
        first(pairs[0]),
        second(pairs[0]),
        first(pairs[1]),
        second(pairs[1]),
        first(pairs[2]),
        second(pairs[2]),
        first(pairs[3]),
        second(pairs[3]),
    ]
}

/// [`by_group`] as floats, multiplied with the factor of each row's block, which is exact.
#[inline(always)]
pub(super) fn scaled_by_group(rows: [int8x8_t; 4], factor: float32x4_t) -> [float32x4_t; 8] {
    let groups = by_group(rows);
    let mut scaled = [factor; 8];
    for index in 0..8 {
        scaled[index] = vmulq_f32(vcvtq_f32_s32(groups[index]), factor);
    }
    scaled
}

/// Eight small numbers.
#[inline(always)]
pub(super) fn eight(numbers: &[i8; 8]) -> int8x8_t {
    // SAFETY: the array has eight elements.
    unsafe { vld1_s8(numbers.as_ptr()) }
}

/// A format with one scale for each group of 32 elements.
pub(super) trait Grouped: Block {
    /// Whether the format has minimums.
    const MINIMUM: bool;

    /// Levels of group `group` of the block at `block`.
    ///
    /// # Safety
    /// The block must be readable.
    unsafe fn levels(block: *const u8, group: usize) -> Levels;

    /// Factors of the block at `offset` of each row.
    ///
    /// # Safety
    /// The blocks must be readable.
    unsafe fn factors(rows: &Pointers, offset: usize) -> Factors;
}

/// [`Rows::products`] of such a format.
///
/// # Safety
/// See that method.
#[inline(always)]
pub(super) unsafe fn grouped<F: Grouped, D: Multiply, const M: usize>(
    rows: Pointers,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [float32x4_t; M] {
    let mut sums = [vdupq_n_f32(0.0); M];
    for block in 0..blocks {
        let offset = block * size_of::<F>();
        // SAFETY: `offset` is the start of a block of every row.
        let factors = unsafe { F::factors(&rows, offset) };
        for group in 0..8 {
            // SAFETY: as above.
            let levels = |row: usize| unsafe { F::levels(rows[row].add(offset), group) };
            let levels = [levels(0), levels(1), levels(2), levels(3)];
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: this is a group of every column; the instruction set is the caller's debt.
                let (x, products) = unsafe {
                    let x: Activation = activation(columns, column + index, block * 8 + group);
                    (x, dots::<D>(&levels, &x.levels, 0))
                };
                let scale = vmulq_n_f32(factors.scales[group], x.group.scale);
                *sum = vfmaq_f32(*sum, scale, vcvtq_f32_s32(products));
                if F::MINIMUM {
                    *sum = vfmsq_n_f32(*sum, factors.minimums[group], x.group.scaled_sum);
                }
            }
        }
    }
    sums
}

/// A format with one scale for each half of a group of 32 elements.
pub(super) trait Halved: Block {
    /// How far the levels are shifted up.
    const OFFSET: i32;
    /// Whether the format has minimums.
    const MINIMUM: bool;

    /// Levels of group `group` of the block at `block`.
    ///
    /// # Safety
    /// The block must be readable.
    unsafe fn levels(block: *const u8, group: usize) -> Levels;

    /// Factors of the block at `offset` of each row.
    ///
    /// # Safety
    /// The blocks must be readable.
    unsafe fn factors(rows: &Pointers, offset: usize) -> HalfFactors;
}

/// What the sixteen half groups of four rows are multiplied with.
pub(super) struct HalfFactors {
    scale: float32x4_t,
    scales: [[int32x4_t; 8]; 2],
    /// These and the next: anything where the format has none.
    minimum: float32x4_t,
    minimums: [[int32x4_t; 8]; 2],
}

/// [`Rows::products`] of such a format.
///
/// # Safety
/// See that method.
#[inline(always)]
pub(super) unsafe fn halved<F: Halved, D: Multiply, const M: usize>(
    rows: Pointers,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [float32x4_t; M] {
    let mut sums = [vdupq_n_f32(0.0); M];
    for block in 0..blocks {
        let offset = block * size_of::<F>();
        // SAFETY: `offset` is the start of a block of every row.
        let factors = unsafe { F::factors(&rows, offset) };
        for group in 0..8 {
            // SAFETY: as above.
            let levels = |row: usize| unsafe { F::levels(rows[row].add(offset), group) };
            let levels = [levels(0), levels(1), levels(2), levels(3)];
            let (half, at) = (group / 4, group % 4 * 2);
            let (g0, g1) = (factors.scales[half][at], factors.scales[half][at + 1]);
            let (m0, m1) = (factors.minimums[half][at], factors.minimums[half][at + 1]);
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: this is a group of every column; the instruction set is the caller's debt.
                let (x, i0, i1) = unsafe {
                    let x: Activation = activation(columns, column + index, block * 8 + group);
                    let start = x
                        .group
                        .negated_half_sums
                        .map(|sum| F::OFFSET * i32::from(sum));
                    (
                        x,
                        half_dots::<D>(&levels, &x.levels, 0, start[0]),
                        half_dots::<D>(&levels, &x.levels, 1, start[1]),
                    )
                };
                let scale = vmulq_n_f32(factors.scale, x.group.scale);
                let products = vmlaq_s32(vmulq_s32(g0, i0), g1, i1);
                *sum = vfmaq_f32(*sum, scale, vcvtq_f32_s32(products));
                if F::MINIMUM {
                    let [s0, s1] = x.group.negated_half_sums;
                    let (s0, s1) = (-i32::from(s0), -i32::from(s1));
                    let minimum = vmulq_n_f32(factors.minimum, x.group.scale);
                    let products = vmlaq_n_s32(vmulq_n_s32(m0, s0), m1, s1);
                    *sum = vfmsq_f32(*sum, minimum, vcvtq_f32_s32(products));
                }
            }
        }
    }
    sums
}

/// Implements [`Rows`] for formats of a family.
macro_rules! rows {
    ($family:ident: $($format:ty),*) => {$(
        impl Rows for $format {
            #[inline(always)]
            unsafe fn products<D: Multiply, const M: usize>(
                rows: Pointers,
                blocks: usize,
                columns: &Columns<'_>,
                column: usize,
            ) -> [float32x4_t; M] {
                // SAFETY: passed on.
                unsafe { $family::<Self, D, M>(rows, blocks, columns, column) }
            }
        }
    )*};
}

rows!(grouped: Q4K, Q5K, IQ4XS);
rows!(halved: Q2K, Q3K, Q6K);

/// Factors of Q4_K and Q5_K from the unpacked ones of a row.
macro_rules! shared_factors {
    ($format:ty, $rows:ident, $offset:ident) => {{
        // SAFETY: the caller owes the blocks, which have alignment 1.
        let groups = |row: usize| unsafe { (*$rows[row].add($offset).cast::<$format>()).groups() };
        let groups = [groups(0), groups(1), groups(2), groups(3)];
        // Six bits each.
        let eight = |numbers: [u8; 8]| vreinterpret_s8_u8(vcreate_u8(u64::from_le_bytes(numbers)));
        let scales = |row: usize| eight(groups[row].scales);
        let minimums = |row: usize| eight(groups[row].minimums);
        // SAFETY: as above.
        let (scale, minimum) = unsafe {
            (
                halves($rows, $offset + offset_of!($format, scale)),
                halves($rows, $offset + offset_of!($format, minimum_scale)),
            )
        };
        Factors {
            scales: scaled_by_group([scales(0), scales(1), scales(2), scales(3)], scale),
            minimums: scaled_by_group(
                [minimums(0), minimums(1), minimums(2), minimums(3)],
                minimum,
            ),
        }
    }};
}

impl Grouped for Q4K {
    const MINIMUM: bool = true;

    #[inline(always)]
    unsafe fn levels(block: *const u8, group: usize) -> Levels {
        let at = offset_of!(Q4K, levels) + group / 2 * 32;
        // SAFETY: the caller owes a block.
        signed(unsafe { fields(block.add(at), group % 2 * 4, 15) })
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> Factors {
        shared_factors!(Q4K, rows, offset)
    }
}

impl Grouped for Q5K {
    const MINIMUM: bool = true;

    #[inline(always)]
    unsafe fn levels(block: *const u8, group: usize) -> Levels {
        let at = offset_of!(Q5K, low) + group / 2 * 32;
        // SAFETY: the caller owes a block.
        let (low, high) = unsafe {
            (
                fields(block.add(at), group % 2 * 4, 15),
                fields(block.add(offset_of!(Q5K, high)), group, 1),
            )
        };
        signed([
            vorrq_u8(low[0], vshlq_n_u8::<4>(high[0])),
            vorrq_u8(low[1], vshlq_n_u8::<4>(high[1])),
        ])
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> Factors {
        shared_factors!(Q5K, rows, offset)
    }
}

/// [`by_group`] of the first eight and of the other eight of sixteen numbers of each row.
#[inline(always)]
fn by_half_group([a, b, c, d]: [int8x16_t; 4]) -> [[int32x4_t; 8]; 2] {
    [
        by_group([
            vget_low_s8(a),
            vget_low_s8(b),
            vget_low_s8(c),
            vget_low_s8(d),
        ]),
        by_group([
            vget_high_s8(a),
            vget_high_s8(b),
            vget_high_s8(c),
            vget_high_s8(d),
        ]),
    ]
}

/// Factors of a format without minimums.
#[inline(always)]
fn without_minimums(scale: float32x4_t, groups: [int8x16_t; 4]) -> HalfFactors {
    let scales = by_half_group(groups);
    HalfFactors {
        scale,
        scales,
        minimum: scale,
        minimums: scales,
    }
}

impl Halved for Q6K {
    const OFFSET: i32 = 32;
    const MINIMUM: bool = false;

    #[inline(always)]
    unsafe fn levels(block: *const u8, group: usize) -> Levels {
        let (half, quarter) = (group / 4, group % 4);
        let low = offset_of!(Q6K, low) + half * 64 + quarter % 2 * 32;
        let high = offset_of!(Q6K, high) + half * 32;
        // SAFETY: the caller owes a block.
        let (low, high) = unsafe {
            (
                fields(block.add(low), quarter / 2 * 4, 15),
                fields(block.add(high), quarter * 2, 3),
            )
        };
        signed([
            vorrq_u8(low[0], vshlq_n_u8::<4>(high[0])),
            vorrq_u8(low[1], vshlq_n_u8::<4>(high[1])),
        ])
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> HalfFactors {
        // SAFETY: the caller owes the blocks.
        let scales = |row: usize| unsafe {
            vld1q_s8(rows[row].add(offset + offset_of!(Q6K, scales)).cast())
        };
        // SAFETY: as above.
        let scale = unsafe { halves(rows, offset + offset_of!(Q6K, scale)) };
        without_minimums(scale, [scales(0), scales(1), scales(2), scales(3)])
    }
}

impl Halved for Q3K {
    const OFFSET: i32 = 4;
    const MINIMUM: bool = false;

    #[inline(always)]
    unsafe fn levels(block: *const u8, group: usize) -> Levels {
        let low = offset_of!(Q3K, low) + group / 4 * 32;
        // SAFETY: the caller owes a block.
        let (low, high) = unsafe {
            (
                fields(block.add(low), group % 4 * 2, 3),
                fields(block.add(offset_of!(Q3K, high)), group, 1),
            )
        };
        signed([
            vorrq_u8(low[0], vshlq_n_u8::<2>(high[0])),
            vorrq_u8(low[1], vshlq_n_u8::<2>(high[1])),
        ])
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> HalfFactors {
        // SAFETY: the caller owes the blocks, which have alignment 1.
        let unpacked = |row: usize| unsafe { (*rows[row].add(offset).cast::<Q3K>()).scales() };
        let scales = |row: usize| {
            let unpacked = unpacked(row);
            // SAFETY: the array has sixteen elements.
            unsafe { vld1q_s8(unpacked.as_ptr()) }
        };
        // SAFETY: as above.
        let scale = unsafe { halves(rows, offset + offset_of!(Q3K, scale)) };
        without_minimums(scale, [scales(0), scales(1), scales(2), scales(3)])
    }
}

impl Halved for Q2K {
    const OFFSET: i32 = 0;
    const MINIMUM: bool = true;

    #[inline(always)]
    unsafe fn levels(block: *const u8, group: usize) -> Levels {
        let at = offset_of!(Q2K, levels) + group / 4 * 32;
        // SAFETY: the caller owes a block.
        signed(unsafe { fields(block.add(at), group % 4 * 2, 3) })
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> HalfFactors {
        // SAFETY: the caller owes the blocks.
        let groups =
            |row: usize| unsafe { vld1q_u8(rows[row].add(offset + offset_of!(Q2K, groups))) };
        let low = |row: usize| vreinterpretq_s8_u8(vandq_u8(groups(row), vdupq_n_u8(15)));
        let high = |row: usize| vreinterpretq_s8_u8(vshrq_n_u8::<4>(groups(row)));
        // SAFETY: as above.
        let (scale, minimum) = unsafe {
            (
                halves(rows, offset + offset_of!(Q2K, scale)),
                halves(rows, offset + offset_of!(Q2K, minimum_scale)),
            )
        };
        HalfFactors {
            scale,
            scales: by_half_group([low(0), low(1), low(2), low(3)]),
            minimum,
            minimums: by_half_group([high(0), high(1), high(2), high(3)]),
        }
    }
}
