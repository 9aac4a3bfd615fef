//! Products of packed weights, see [`crate::pack`] and [`crate::op::matmul`], by `smmla`: two rows with two columns at a
//! time, eight elements deep.
//!
//! Two vectors of four elements of four rows, zipped, become two operands of eight elements of two rows. Eight elements
//! of two columns become an operand once for each block of the tile and are used by all its rows.

use super::super::dotprod::matmul::Dotprod;
use super::super::instructions::smmla;
use super::super::neon::packed::{self, Block, Scales, TileProducts, X, store, unpack};
use crate::Format;
use crate::arch::aarch64::vector::{
    vdupq_n_f32, vdupq_n_s8, vdupq_n_s32, vreinterpretq_s8_s32, vreinterpretq_s8_s64,
    vreinterpretq_s32_s8, vreinterpretq_s64_s8, vsetq_lane_s32, vuzp1q_s32, vuzp2q_s32, vzip1q_s32,
    vzip1q_s64, vzip2q_s32, vzip2q_s64,
};
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::{BLOCK_GROUPS, GroupScales, Packed};
use core::arch::aarch64::{float32x4_t, int8x16_t, int32x4_t};
use core::ops::Range;

/// The kernel of a format; `None` if it has no packed layout.
pub(crate) const fn kernel(format: Format) -> Option<PackedKernel> {
    packed::kernel::<I8mm>(format)
}

/// By `smmla`, pairs of columns.
struct I8mm;

impl TileProducts for I8mm {
    const FEW_COLUMNS: bool = true;

    #[inline(never)]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn some_columns<F: Packed, const M: usize>(
        product: &PackedProduct<'_>,
        tile: *const u8,
        first: usize,
        columns: Range<usize>,
    ) {
        // SAFETY: passed on; processors that this is used on have `sdot` too.
        unsafe {
            match M {
                1 => Dotprod::some_columns::<F, M>(product, tile, first, columns),
                2 => pairs::<F, 2, 1>(product, tile, first, columns),
                3 | 4 => pairs::<F, 4, 2>(product, tile, first, columns),
                5 | 6 => pairs::<F, 6, 3>(product, tile, first, columns),
                _ => pairs::<F, 8, 4>(product, tile, first, columns),
            }
        }
    }
}

/// The operands of a block's groups: of each half of a group, of each pair of columns, elements 0..8 and 8..16.
type Operands<const P: usize> = [[[[int8x16_t; 2]; P]; 2]; BLOCK_GROUPS];

/// [`TileProducts::some_columns`] as `P` pairs of columns, which are `M`.
///
/// # Safety
/// See that method.
#[inline(never)]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn pairs<F: Packed, const M: usize, const P: usize>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    columns: Range<usize>,
) {
    const { assert!(M == 2 * P) };
    let mut all = [[[vdupq_n_f32(0.0); 2]; P]; 4];
    let mut operands: Operands<P> = [[[[vdupq_n_s8(0); 2]; P]; 2]; BLOCK_GROUPS];
    // SAFETY: the columns exist.
    let mut x = unsafe { X::<M>::new(&product.columns, columns.start, columns.len()) };
    let mut block = Block::<F>::first(tile, product.columns.k);
    while block.count > 0 {
        // SAFETY: the tile has this block, and the columns its groups.
        unsafe {
            for (group, operands) in operands.iter_mut().enumerate().take(block.count) {
                for (half, operands) in operands.iter_mut().enumerate() {
                    for (pair, operands) in operands.iter_mut().enumerate() {
                        let a = x.levels(2 * pair, group, half);
                        let b = x.levels(2 * pair + 1, group, half);
                        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
                        *operands = [
                            vreinterpretq_s8_s64(vzip1q_s64(a, b)),
                            vreinterpretq_s8_s64(vzip2q_s64(a, b)),
                        ];
                    }
                }
            }
            for (quarter, all) in all.iter_mut().enumerate() {
                add_block::<F, M, P>(all, &block, quarter, &operands, &x);
            }
            x = x.after(block.count);
            block = block.next();
        }
    }
    for (quarter, sums) in all.iter().enumerate() {
        for (index, &sum) in sums.as_flattened().iter().enumerate().take(columns.len()) {
            // SAFETY: the caller owes the output.
            unsafe { store(product, first + 4 * quarter, columns.start + index, sum) };
        }
    }
}

/// Adds a block to the sums of quarter `quarter` of its rows.
///
/// # Safety
/// The block must be readable, and the columns have its groups.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn add_block<F: Packed, const M: usize, const P: usize>(
    all: &mut [[float32x4_t; 2]; P],
    block: &Block<F>,
    quarter: usize,
    operands: &Operands<P>,
    x: &X<M>,
) {
    let mut sums = *all;
    // SAFETY: the caller owes the block and the columns.
    unsafe {
        let factors = block.factors(quarter);
        for (group, operands) in operands.iter().enumerate().take(block.count) {
            let scales = Scales::load(block, group, quarter, factors);
            let levels = block.levels(group, quarter);
            let start = |half: usize| {
                let mut starts = [[vdupq_n_s32(0); 2]; P];
                for (pair, starts) in starts.iter_mut().enumerate() {
                    let a = packed::start::<F>(x.group(2 * pair, group), half);
                    let b = packed::start::<F>(x.group(2 * pair + 1, group), half);
                    let start = vsetq_lane_s32::<1>(b, vdupq_n_s32(a));
                    *starts = [vsetq_lane_s32::<3>(b, start); 2];
                }
                starts
            };
            let low = multiply(start(0), unpack::<F>(levels, 0), &operands[0]);
            let carried = if F::GROUP_SCALES == GroupScales::Two {
                start(1)
            } else {
                low
            };
            let high = multiply(carried, unpack::<F>(levels, 1), &operands[1]);
            for pair in 0..P {
                let [low0, low1] = low[pair];
                let [high0, high1] = high[pair];
                let even = [vuzp1q_s32(low0, low1), vuzp1q_s32(high0, high1)];
                let odd = [vuzp2q_s32(low0, low1), vuzp2q_s32(high0, high1)];
                scales.add::<F>(&mut sums[pair][0], x.group(2 * pair, group), even);
                scales.add::<F>(&mut sums[pair][1], x.group(2 * pair + 1, group), odd);
            }
        }
    }
    *all = sums;
}

/// Adds the products of half a group of four rows with pairs of columns: to one vector those of rows 0 and 1, to the other
/// those of rows 2 and 3.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn multiply<const P: usize>(
    mut sums: [[int32x4_t; 2]; P],
    [a, b, c, d]: [int8x16_t; 4],
    operands: &[[int8x16_t; 2]; P],
) -> [[int32x4_t; 2]; P] {
    let zip = |a: int8x16_t, b: int8x16_t| {
        let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
        [
            vreinterpretq_s8_s32(vzip1q_s32(a, b)),
            vreinterpretq_s8_s32(vzip2q_s32(a, b)),
        ]
    };
    let (first, second) = (zip(a, b), zip(c, d));
    for (sums, operands) in sums.iter_mut().zip(operands) {
        for rows in 0..2 {
            sums[rows] = smmla(sums[rows], first[rows], operands[0]);
            sums[rows] = smmla(sums[rows], second[rows], operands[1]);
        }
    }
    sums
}
