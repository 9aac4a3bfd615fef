//! Rows as GGUF stores them, four at a time.

use super::Multiply;
use crate::activation::{Columns, GROUP, Group};
use crate::arch::aarch64::vector::{
    vaddq_s32, vandq_u8, vcvt_f32_f16, vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, vpaddq_s32,
    vreinterpret_f16_u16, vreinterpretq_s8_u8, vshlq_u8,
};
use crate::block::Block;
use crate::op::matmul::Product;
use core::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vld1_u16, vld1q_s8, vld1q_u8, vst1q_f32,
};

/// Rows computed together.
const ROWS: usize = 4;
/// Columns computed together: their accumulators, the levels of four rows and one column's fit the 32 registers.
const COLUMNS: usize = 4;

/// Columns that every block of rows passes over before the next are taken, in multiples of `multiple`: their levels take
/// half of the 256 KiB of L2 that a core of Jetson Orin has.
#[inline]
pub(in super::super::super) fn column_span(k: usize, multiple: usize) -> usize {
    const LEVELS_BYTES: usize = 128 * 1024;
    (LEVELS_BYTES / k.max(1)).max(1).next_multiple_of(multiple)
}

/// Where the same byte of each of four rows is.
pub(super) type Pointers = [*const u8; ROWS];

/// A format of which four rows are computed together.
pub(in super::super::super) trait Rows: Block {
    /// Products of four rows and `M` columns.
    ///
    /// # Safety
    /// The instruction set of `D` must be supported, the rows must have `blocks` blocks, and the columns must exist.
    unsafe fn products<D: Multiply, const M: usize>(
        rows: Pointers,
        blocks: usize,
        columns: &Columns<'_>,
        column: usize,
    ) -> [float32x4_t; M];
}

/// [`crate::op::matmul::Kernel`].
///
/// # Safety
/// See that type.
#[inline(always)]
pub(in super::super::super) unsafe fn walk<D: Multiply, F: Rows>(product: Product<'_>) {
    let columns = &product.columns;
    let blocks = columns.k / F::ELEMENTS;
    let span = column_span(columns.k, COLUMNS);
    for start in (0..columns.count).step_by(span) {
        let end = columns.count.min(start + span);
        for first in (0..product.row_count).step_by(ROWS) {
            // A block past the end repeats the last row and drops the copies.
            let row = |index: usize| {
                let row = (first + index).min(product.row_count - 1);
                // SAFETY: `row` is one of the rows the caller owes.
                unsafe { product.weights.add(row * product.row_bytes) }
            };
            let rows = [row(0), row(1), row(2), row(3)];
            let mut column = start;
            while column < end {
                // SAFETY: the rows have `blocks` blocks, the columns exist, and so does their output.
                unsafe {
                    match end - column {
                        COLUMNS.. => {
                            let sums = F::products::<D, COLUMNS>(rows, blocks, columns, column);
                            store(&product, first, column, &sums);
                            column += COLUMNS;
                        }
                        _ => {
                            let sums = F::products::<D, 1>(rows, blocks, columns, column);
                            store(&product, first, column, &sums);
                            column += 1;
                        }
                    }
                }
            }
        }
    }
}

/// Stores the sums of rows `first..` (as many as exist) of columns `column..`.
///
/// # Safety
/// See [`crate::op::matmul::Kernel`]; the rows and columns must be the product's.
#[inline(always)]
unsafe fn store<const M: usize>(
    product: &Product<'_>,
    first: usize,
    column: usize,
    sums: &[float32x4_t; M],
) {
    let row_count = (product.row_count - first).min(ROWS);
    for (index, &sum) in sums.iter().enumerate() {
        // SAFETY: the caller owes the output of these rows and columns; the array takes a whole vector.
        unsafe {
            let output = product
                .output
                .add((column + index) * product.stride + first);
            if row_count == ROWS {
                vst1q_f32(output, sum);
            } else {
                let mut lanes = [0.0f32; ROWS];
                vst1q_f32(lanes.as_mut_ptr(), sum);
                core::ptr::copy_nonoverlapping(lanes.as_ptr(), output, row_count);
            }
        }
    }
}

/// One group's levels of a row: elements 0..16 and 16..32.
pub(super) type Levels = [int8x16_t; 2];

/// One group of one column.
#[derive(Clone, Copy)]
pub(super) struct Activation {
    pub(super) levels: Levels,
    pub(super) group: Group,
}

/// Group `group` of column `column`.
///
/// # Safety
/// The column must have it.
#[inline(always)]
pub(super) unsafe fn activation(columns: &Columns<'_>, column: usize, group: usize) -> Activation {
    let at = column * (columns.k / GROUP) + group;
    // SAFETY: `at` is a group of the column, with 32 levels.
    unsafe {
        let levels = columns.quantized.levels.as_ptr().add(at * GROUP);
        Activation {
            levels: [vld1q_s8(levels), vld1q_s8(levels.add(16))],
            group: *columns.quantized.groups.as_ptr().add(at),
        }
    }
}

/// Adds four vectors of partial sums, one for each row, into one sum per lane.
#[inline(always)]
fn rows_in_lanes([a, b, c, d]: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}

/// Integer dot products of four rows with a column, plus `start`.
///
/// # Safety
/// The instruction set of `D` must be supported.
#[inline(always)]
pub(super) unsafe fn dots<D: Multiply>(
    weights: &[Levels; ROWS],
    x: &Levels,
    start: i32,
) -> int32x4_t {
    let zero = vdupq_n_s32(0);
    // SAFETY: passed on.
    let dot = |[low, high]: Levels| unsafe { D::dot(D::dot(zero, low, x[0]), high, x[1]) };
    let sums = rows_in_lanes([
        dot(weights[0]),
        dot(weights[1]),
        dot(weights[2]),
        dot(weights[3]),
    ]);
    vaddq_s32(sums, vdupq_n_s32(start))
}

/// [`dots`] of half `half` of a group.
///
/// # Safety
/// The instruction set of `D` must be supported.
#[inline(always)]
pub(super) unsafe fn half_dots<D: Multiply>(
    weights: &[Levels; ROWS],
    x: &Levels,
    half: usize,
    start: i32,
) -> int32x4_t {
    let zero = vdupq_n_s32(0);
    // SAFETY: passed on.
    let dot = |levels: Levels| unsafe { D::dot(zero, levels[half], x[half]) };
    let sums = rows_in_lanes([
        dot(weights[0]),
        dot(weights[1]),
        dot(weights[2]),
        dot(weights[3]),
    ]);
    vaddq_s32(sums, vdupq_n_s32(start))
}

/// The f16 at `offset` of each row, as floats.
///
/// # Safety
/// The bytes must be readable.
#[inline(always)]
pub(super) unsafe fn halves(rows: &Pointers, offset: usize) -> float32x4_t {
    // SAFETY: the caller owes the bytes.
    let at = |row: usize| unsafe { rows[row].add(offset).cast::<u16>().read_unaligned() };
    let halves = [at(0), at(1), at(2), at(3)];
    // SAFETY: the array has four elements.
    vcvt_f32_f16(vreinterpret_f16_u16(unsafe { vld1_u16(halves.as_ptr()) }))
}

/// The bits of 32 bytes from bit `shift` on that `mask` keeps.
///
/// # Safety
/// The bytes must be readable.
#[inline(always)]
pub(super) unsafe fn fields(from: *const u8, shift: usize, mask: u8) -> [uint8x16_t; 2] {
    // A negative shift goes to the right.
    let (shift, mask) = (vdupq_n_s8(-(shift as i8)), vdupq_n_u8(mask));
    // SAFETY: the caller owes the bytes.
    unsafe {
        [
            vandq_u8(vshlq_u8(vld1q_u8(from), shift), mask),
            vandq_u8(vshlq_u8(vld1q_u8(from.add(16)), shift), mask),
        ]
    }
}

/// Levels that have no sign, as ones that have.
#[inline(always)]
pub(super) fn signed([low, high]: [uint8x16_t; 2]) -> Levels {
    [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
}
