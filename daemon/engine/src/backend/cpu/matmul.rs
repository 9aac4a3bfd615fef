//! Matrices on all threads.

use super::threads::Threads;
use crate::weights::{Matrix, Place, Weights};
use andon_kernels::activation::{Columns, GROUP, QuantizedMut};
use andon_kernels::{GatedTiles, Table, Tile, Tiles, TilesOf};

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

/// A matrix of the model's weights times columns, into `output` (`[column][row]`).
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) output: &'a mut [f32],
}

/// Two matrices of as many rows, multiplied with the same columns row by row together.
pub(super) struct Gated<'a> {
    pub(super) matrices: [&'a Matrix; 2],
    /// Outputs, `[column][row]`.
    pub(super) outputs: [&'a mut [f32]; 2],
    /// Quantized columns that become of both.
    pub(super) quantized: Option<QuantizedMut<'a>>,
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

/// Multiplies two matrices with the same columns in one phase. Whoever has computed a tile of both finishes it, column
/// by column, with `finish`, which is given the first row, the two results and their place among the quantized columns.
pub(super) fn multiply_gated(
    table: &Table,
    threads: &mut Threads,
    weights: Weights<'_>,
    columns: Columns<'_>,
    gated: Gated<'_>,
    finish: impl Fn(usize, &mut [f32], &mut [f32], Option<QuantizedMut<'_>>) + Sync,
) {
    let [gate, up] = gated.matrices;
    let bytes = gate.range.len() + up.range.len();
    let [gate_place, up_place] = weights.places(gated.matrices, &mut threads.pool);
    // A tile is of both.
    let rows = tile_rows(gate, bytes, 2 * threads.threads(), columns.count, GROUP);
    let elements = gate.row_count * columns.count;
    let tiles = GatedTiles::new(
        &mut threads.shares,
        gated.outputs.map(|output| &mut output[..elements]),
        gated.quantized,
        gate.row_count,
        columns.count,
        rows,
    );
    threads.pool.run(&|thread| {
        while let Some(mut tile) = tiles.next(thread) {
            compute(table, gate, gate_place, columns, &mut tile.gate);
            compute(table, up, up_place, columns, &mut tile.up);
            let first = tile.gate.rows().start;
            for column in 0..columns.count {
                let (gate, up, quantized) = tile.column_mut(column);
                finish(first, gate, up, quantized);
            }
        }
    });
}
