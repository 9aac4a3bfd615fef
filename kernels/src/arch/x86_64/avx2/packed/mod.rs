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

use super::super::column_span;
use crate::Format;
use crate::activation::{Columns, GROUP};
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::{BLOCK_GROUPS, Layout, Packed, ROWS};
use core::arch::x86_64::{__m256, _mm256_setzero_ps, _mm256_storeu_ps};
use core::mem::MaybeUninit;
use group::{Sums, X, add_group};
use source::{Direct, Filled, Panel};

/// Columns computed together: two integer sums of each leave room for levels and activations in sixteen registers.
const COLUMNS: usize = 4;
/// Columns that a panel is used for before the next tile: their accumulators, and 256 levels of each, share L1 with it.
const SPAN_MAX: usize = 64;

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
                    1 => few::<F, D, 1>(&product, tile, first, start),
                    2 => few::<F, D, 2>(&product, tile, first, start),
                    3 => few::<F, D, 3>(&product, tile, first, start),
                    4 => few::<F, D, 4>(&product, tile, first, start),
                    columns => many::<F, D>(&product, tile, first, start, columns),
                }
            }
        }
    }
}

/// Computes and stores `M` columns of a tile's rows `first..`.
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
) {
    let columns = &product.columns;
    let mut sums: Sums<M> = [[_mm256_setzero_ps(); 2]; M];
    let mut block = tile;
    let groups = columns.k / GROUP;
    for at in (0..groups).step_by(BLOCK_GROUPS) {
        let count = BLOCK_GROUPS.min(groups - at);
        // SAFETY: the tile has this block, and every column the groups from `at`.
        unsafe {
            let source = Direct::<F, D>::new(block, count);
            let x = X::<M>::new(columns, column, at);
            for group in 0..count {
                add_group::<F, D, _, M>(&source, group, &x, &mut sums);
            }
        }
        block = block.wrapping_add(Layout::<F>::block_bytes(count));
    }
    for (index, sums) in sums.iter().enumerate() {
        // SAFETY: the caller owes the output of the column.
        unsafe { store(product, first, column + index, sums) };
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
    let mut all = [[_mm256_setzero_ps(); 2]; SPAN_MAX];
    let all = &mut all[..count];
    let mut panel = MaybeUninit::uninit();
    let mut block = tile;
    let groups = columns.k / GROUP;
    for at in (0..groups).step_by(BLOCK_GROUPS) {
        let groups = BLOCK_GROUPS.min(groups - at);
        // SAFETY: the tile has this block, every column the groups from `at`, and the panel is filled with as many.
        unsafe {
            let source = Direct::<F, D>::new(block, groups);
            Panel::fill(&mut panel, &source, groups);
            let panel = Filled(&panel);
            let (blocks, rest) = all.as_chunks_mut::<COLUMNS>();
            let mut column = column;
            for sums in blocks {
                panel_block::<F, D, COLUMNS>(&panel, groups, columns, column, at, sums);
                column += COLUMNS;
            }
            if let Some(sums) = rest.as_mut_array::<3>() {
                panel_block::<F, D, 3>(&panel, groups, columns, column, at, sums);
            } else if let Some(sums) = rest.as_mut_array::<2>() {
                panel_block::<F, D, 2>(&panel, groups, columns, column, at, sums);
            } else if let Some(sums) = rest.as_mut_array::<1>() {
                panel_block::<F, D, 1>(&panel, groups, columns, column, at, sums);
            }
        }
        block = block.wrapping_add(Layout::<F>::block_bytes(groups));
    }
    for (index, sums) in all.iter().enumerate() {
        // SAFETY: the caller owes the output of the column.
        unsafe { store(product, first, column + index, sums) };
    }
}

/// Adds the `groups` groups of a panel, which are those from `at` of the columns, to the sums of `M` columns.
///
/// # Safety
/// The instruction set must be supported, the panel filled, and the columns must have the groups.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel_block<F: Packed, D: Dot, const M: usize>(
    panel: &Filled<'_>,
    groups: usize,
    columns: &Columns<'_>,
    column: usize,
    at: usize,
    sums: &mut Sums<M>,
) {
    // SAFETY: passed on.
    unsafe {
        let x = X::<M>::new(columns, column, at);
        for group in 0..groups {
            add_group::<F, D, _, M>(panel, group, &x, sums);
        }
    }
}

/// Writes the sums of rows `first..` (as many as exist) of a column.
///
/// # Safety
/// See [`PackedKernel`]; the rows and the column must be the product's.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store(product: &PackedProduct<'_>, first: usize, column: usize, sums: &[__m256; 2]) {
    let row_count = (product.row_count - first).min(ROWS);
    // SAFETY: the caller owes the output of these rows; the array takes two vectors.
    unsafe {
        let output = product.output.add(column * product.stride + first);
        if row_count == ROWS {
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
