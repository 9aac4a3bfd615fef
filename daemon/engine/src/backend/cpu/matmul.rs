//! Matrices on all threads.

use super::threads::{SCRATCH_ELEMENTS, Threads};
use crate::weights::{Matrix, Place, Weights};
use andon_kernels::activation::{Columns, GROUP};
use andon_kernels::{ColumnsMut, GatedTiles, Table, Tile, Tiles, TilesOf};
use std::sync::PoisonError;

/// Weight bytes of a tile: what many columns pass over stays in L1, and what is read once takes a few microseconds at
/// most, which threads may wait for each other; less than the least would be felt in the taking.
const TILE_BYTES: std::ops::RangeInclusive<usize> = 8 * 1024..=64 * 1024;

/// See [`TILE_BYTES`]: of matrices that many columns pass over.
const PANEL_TILE_BYTES: usize = 16 * 1024;

/// Tiles that a thread's part of a phase has where [`TILE_BYTES`] does not say otherwise: threads end within one of
/// each other.
const TILES_EACH: usize = 16;

/// Tiles have whole blocks of rows of every instruction set, and whole tiles of packed matrices.
const TILE_ROWS: usize = 16;

/// Columns up to which a tile's weights are read once: kernels pass over its rows a single time.
const ONE_PASS_COLUMNS_MAX: usize = 8;

/// Columns that kernels compute together at most, or a multiple: parts of a product of so many cost nothing.
const PASS_COLUMNS: usize = 16;

/// Rows of a tile of two matrices at most, so that scratch has room for [`PASS_COLUMNS`] of each.
const GATED_ROWS_MAX: usize = SCRATCH_ELEMENTS / 2 / PASS_COLUMNS;

/// A matrix of the model's weights times columns, into `output` (`[column][row]`).
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) output: &'a mut [f32],
}

/// Two matrices of as many rows, multiplied with the same columns row by row together.
pub(super) struct Gated<'a> {
    pub(super) matrices: [&'a Matrix; 2],
    /// What becomes of both, a column of as many rows for each.
    pub(super) output: ColumnsMut<'a>,
}

/// Rows of a tile of `matrix`, one of several in a phase that have `phase_bytes` together, in whole multiples of
/// `multiple`.
fn tile_rows(
    matrix: &Matrix,
    phase_bytes: usize,
    threads: usize,
    columns: usize,
    multiple: usize,
) -> usize {
    let bytes = if columns <= ONE_PASS_COLUMNS_MAX {
        (phase_bytes / (threads * TILES_EACH)).clamp(*TILE_BYTES.start(), *TILE_BYTES.end())
    } else {
        PANEL_TILE_BYTES
    };
    let rows = (bytes / matrix.row_bytes().max(1)).max(1);
    rows.next_multiple_of(multiple)
}

/// Computes a tile of a matrix that is in `place`.
fn compute(
    table: &Table,
    matrix: &Matrix,
    place: Place<'_>,
    columns: Columns<'_>,
    tile: &mut Tile<'_>,
) {
    match place {
        Place::Raw(bytes) => table.matmul(matrix.format, bytes, columns, tile),
        Place::Packed(bytes) => table.matmul_packed(matrix.format, bytes, columns, tile),
    }
}

/// Multiplies several matrices with the same columns in one phase.
pub(super) fn multiply<const N: usize>(
    table: &Table,
    threads: &mut Threads,
    weights: Weights<'_>,
    columns: Columns<'_>,
    products: [Product<'_>; N],
) {
    let count = threads.threads();
    let bytes = products
        .iter()
        .map(|product| product.matrix.range.len())
        .sum();
    let matrices = products.each_ref().map(|product| product.matrix);
    let places = weights.places(matrices, &mut threads.pool);
    let outputs = products.map(|Product { matrix, output }| TilesOf {
        output: &mut output[..matrix.row_count * columns.count],
        row_count: matrix.row_count,
        tile_rows: tile_rows(matrix, bytes, count, columns.count, TILE_ROWS),
    });
    let tiles = Tiles::new(&mut threads.shares, columns.count, outputs);
    threads.pool.run(&|thread| {
        while let Some((index, mut tile)) = tiles.next(thread) {
            compute(table, matrices[index], places[index], columns, &mut tile);
        }
    });
}

/// Multiplies two matrices with the same columns in one phase. Whoever has computed a tile of both makes of it, column by
/// column, what becomes of both, with `finish`, which is given the first row and the two results. Neither is kept: a few
/// columns at a time fit a near cache, and all of them would go to memory and back.
pub(super) fn multiply_gated(
    table: &Table,
    threads: &mut Threads,
    weights: Weights<'_>,
    columns: Columns<'_>,
    gated: Gated<'_>,
    finish: impl Fn(usize, &mut [f32], &mut [f32], ColumnsMut<'_>) + Sync,
) {
    let [gate, up] = gated.matrices;
    let bytes = gate.range.len() + up.range.len();
    let [gate_place, up_place] = weights.places(gated.matrices, &mut threads.pool);
    // A tile is of both.
    let rows = tile_rows(gate, bytes, 2 * threads.threads(), columns.count, GROUP);
    let rows = rows.min(GATED_ROWS_MAX);
    let tiles = GatedTiles::new(
        &mut threads.shares,
        gated.output,
        gate.row_count,
        columns.count,
        rows,
    );
    let scratch = &threads.scratch;
    threads.pool.run(&|thread| {
        // Each thread has its own; the lock is never contended.
        let mut scratch = scratch[thread]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (gates, ups) = scratch.split_at_mut(SCRATCH_ELEMENTS / 2);
        while let Some(mut tile) = tiles.next(thread) {
            let rows = tile.rows();
            let each = SCRATCH_ELEMENTS / 2 / rows.len() / PASS_COLUMNS * PASS_COLUMNS;
            for first in (0..columns.count).step_by(each) {
                let columns = columns.range(first..columns.count.min(first + each));
                let elements = rows.len() * columns.count;
                let (gates, ups) = (&mut gates[..elements], &mut ups[..elements]);
                for (matrix, place, output) in
                    [(gate, gate_place, &mut *gates), (up, up_place, &mut *ups)]
                {
                    let mut tile = Tile::part(output, rows.clone(), columns.count);
                    compute(table, matrix, place, columns, &mut tile);
                }
                let results = gates
                    .chunks_exact_mut(rows.len())
                    .zip(ups.chunks_exact_mut(rows.len()));
                for (column, (gate, up)) in results.enumerate() {
                    finish(rows.start, gate, up, tile.column_mut(first + column));
                }
            }
        }
    });
}
