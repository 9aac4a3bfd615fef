//! Products of packed weights, see [`crate::pack`] and [`crate::op::matmul`], with vectors of 256 bits.
//!
//! A vector has four elements of each of eight rows, so a product with four activations in every lane adds to eight rows
//! in lane order, and no sum has to be turned. The sixteen rows of a tile are two such vectors, and up to [`COLUMNS`]
//! columns are computed together: their integer sums and what they are multiplied from take the sixteen registers. Few
//! columns take levels straight from the packed bytes; for many, a block is unpacked once to a [`Panel`] in L1.

mod dot;
mod group;
mod source;

pub(crate) use dot::{Dot, Evex, Pairs, Vex};
pub(super) use group::{At, Sums};
pub(super) use source::{Filled, Panel};

use super::super::column_span;
use crate::Format;
use crate::activation::GROUP;
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::{BLOCK_GROUPS, Layout, Packed, ROWS};
use core::arch::x86_64::{__m256, _mm256_setzero_ps, _mm256_storeu_ps};
use core::array;
use core::hint::black_box;
use core::mem::MaybeUninit;
use group::{X, add_group};
use source::{Direct, Source};

/// Columns computed together: two integer sums of each leave room for levels and activations in sixteen registers.
pub(super) const COLUMNS: usize = 4;
/// Columns that a panel is used for before the next tile: their accumulators, and 256 levels of each, share L1 with it.
pub(super) const SPAN_MAX: usize = 64;

/// The kernel of a format that multiplies with `D`; `None` if it has no packed layout.
pub(crate) const fn kernel<D: Dot>(format: Format) -> Option<PackedKernel> {
    Some(match format {
        Format::Q4_0 => product::<Q4_0, D>,
        Format::Q4_1 => product::<Q4_1, D>,
        Format::Q5_0 => product::<Q5_0, D>,
        Format::Q5_1 => product::<Q5_1, D>,
        Format::Q8_0 => product::<Q8_0, D>,
        Format::Q4K => product::<Q4K, D>,
        Format::Q5K => product::<Q5K, D>,
        Format::Q6K => product::<Q6K, D>,
        _ => return None,
    })
}

/// [`PackedKernel`] of a format.
///
/// # Safety
/// See [`PackedKernel`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product<F: Packed, D: Dot>(product: PackedProduct<'_>) {
    let tile_bytes = Layout::<F>::tile_bytes(product.columns.k);
    let count = product.columns.count;
    let span = column_span(product.columns.k, COLUMNS).min(SPAN_MAX);
    for start in (0..count).step_by(span) {
        let end = count.min(start + span);
        for first in (0..product.row_count).step_by(ROWS) {
            let tile = product.tiles.wrapping_add(first / ROWS * tile_bytes);
            // SAFETY: the caller owes the tile, the columns and their output.
            unsafe {
                match end - start {
                    1 => few::<F, D, 1>(&product, tile, first, start, 1),
                    2 => few::<F, D, 2>(&product, tile, first, start, 2),
                    columns @ 3..=COLUMNS => {
                        few::<F, D, COLUMNS>(&product, tile, first, start, columns);
                    }
                    columns => many::<F, D>(&product, tile, first, start, columns),
                }
            }
        }
    }
}

/// Computes and stores `count` columns, at most `M`, of a tile's rows `first..`; the last stands in for those that lack.
///
/// # Safety
/// See [`PackedKernel`]; the tile must be that of row `first`, and the columns must exist.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<F: Packed, D: Dot, const M: usize>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    column: usize,
    count: usize,
) {
    let columns = &product.columns;
    let mut sums: Sums<M> = [[_mm256_setzero_ps(); 2]; M];
    let mut block = tile;
    let groups = columns.k / GROUP;
    for at in (0..groups).step_by(BLOCK_GROUPS) {
        let groups = BLOCK_GROUPS.min(groups - at);
        // SAFETY: the tile has this block, and every column the groups from `at`.
        unsafe {
            let source = Direct::<F, D>::new(block, groups);
            let at = At {
                columns,
                column,
                count,
                group: at,
            };
            add_groups::<F, D, _, M>(&source, groups, at, &mut sums);
        }
        block = block.wrapping_add(Layout::<F>::block_bytes(groups));
    }
    for (index, sums) in sums.iter().take(count).enumerate() {
        // SAFETY: the caller owes the output of the column.
        unsafe {
            let output = product
                .output
                .add((column + index) * product.stride + first);
            store(output, product.row_count - first, sums);
        }
    }
}

/// Computes and stores `count` columns, at most [`SPAN_MAX`], of a tile's rows `first..`.
///
/// # Safety
/// See [`PackedKernel`]; the tile must be that of row `first`, and the columns must exist.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many<F: Packed, D: Dot>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    column: usize,
    count: usize,
) {
    let columns = &product.columns;
    let mut all = [[[_mm256_setzero_ps(); 2]; COLUMNS]; SPAN_MAX / COLUMNS];
    let mut panel = MaybeUninit::uninit();
    let mut block = tile;
    let groups = columns.k / GROUP;
    for at in (0..groups).step_by(BLOCK_GROUPS) {
        let groups = BLOCK_GROUPS.min(groups - at);
        // SAFETY: the tile has this block, every column the groups from `at`, and the panel is filled with as many.
        unsafe {
            let source = Direct::<F, D>::new(block, groups);
            let at = At {
                columns,
                column,
                count,
                group: at,
            };
            // What a panel spares each further four columns must outweigh writing it.
            let direct = match F::BITS {
                8 => true,
                4 => count <= 2 * COLUMNS,
                _ => false,
            };
            if direct {
                add_block::<F, D, _>(&source, groups, at, &mut all);
            } else {
                Panel::fill(&mut panel, &source, groups);
                add_block::<F, D, _>(&Filled(&panel), groups, at, &mut all);
            }
        }
        block = block.wrapping_add(Layout::<F>::block_bytes(groups));
    }
    for (index, sums) in all.as_flattened().iter().take(count).enumerate() {
        // SAFETY: the caller owes the output of the column.
        unsafe {
            let output = product
                .output
                .add((column + index) * product.stride + first);
            store(output, product.row_count - first, sums);
        }
    }
}

/// Adds the `groups` groups of a block to the sums of columns.
///
/// # Safety
/// The instruction set must be supported, and block and columns must have the groups.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_block<F: Packed, D: Dot, S: Source>(
    source: &S,
    groups: usize,
    at: At<'_>,
    sums: &mut [Sums<COLUMNS>],
) {
    for (index, sums) in sums[..at.count.div_ceil(COLUMNS)].iter_mut().enumerate() {
        let left = at.count - index * COLUMNS;
        let at = At {
            column: at.column + index * COLUMNS,
            count: left.min(COLUMNS),
            ..at
        };
        // SAFETY: passed on.
        unsafe {
            match sums {
                [sums, ..] if left == 1 => {
                    add_groups::<F, D, S, 1>(source, groups, at, array::from_mut(sums));
                }
                [sums @ .., _, _] if left == 2 => {
                    add_groups::<F, D, S, 2>(source, groups, at, sums);
                }
                sums => add_groups::<F, D, S, COLUMNS>(source, groups, at, sums),
            }
        }
    }
}

/// Adds the `groups` groups of a block to the sums of up to `M` columns.
///
/// # Safety
/// The instruction set must be supported, and block and columns must have the groups.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_groups<F: Packed, D: Dot, S: Source, const M: usize>(
    source: &S,
    groups: usize,
    at: At<'_>,
    sums: &mut Sums<M>,
) {
    // SAFETY: passed on.
    unsafe {
        let x = X::<M>::new(at);
        for group in 0..groups {
            source.prefetch(group);
            add_group::<F, D, S, M>(source, group, &x, sums);
            if S::BYTES && M == COLUMNS {
                // Integer sums take the registers. The compiler would keep these in some as well, and move them
                // to and fro in every step; so it must believe that somebody reads them here.
                black_box(&raw mut *sums);
            }
        }
    }
}

/// Writes the sums of up to sixteen rows of a column.
///
/// # Safety
/// The instruction set must be supported, and `output` be writable for `row_count` rows, or sixteen if they are more.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn store(output: *mut f32, row_count: usize, sums: &[__m256; 2]) {
    // SAFETY: the caller owes the output; the array takes two vectors.
    unsafe {
        if row_count >= ROWS {
            _mm256_storeu_ps(output, sums[0]);
            _mm256_storeu_ps(output.add(8), sums[1]);
        } else {
            let mut lanes = [0.0f32; ROWS];
            _mm256_storeu_ps(lanes.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[1]);
            core::ptr::copy_nonoverlapping(lanes.as_ptr(), output, row_count);
        }
    }
}
