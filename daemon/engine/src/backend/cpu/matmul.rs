//! Matrices on all threads.

use crate::weights::Matrix;
use andon_kernels::activation::Columns;
use andon_kernels::{Table, Tiles};
use andon_os::{Mapping, Pool};

/// Weight bytes of a tile: small enough that threads finish together and the tile stays in L1, large enough that
/// taking it costs nothing.
const TILE_BYTES: usize = 16 * 1024;

/// Tiles have whole blocks of rows of every instruction set.
const TILE_ROWS: usize = 16;

/// A matrix of `weights` (the maps of the model's files) times columns, into `output` (`[column][row]`).
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) output: &'a mut [f32],
}

/// Multiplies several matrices with the same columns in one phase.
pub(super) fn multiply<const N: usize>(
    table: &Table,
    pool: &mut Pool,
    weights: &[Mapping],
    columns: Columns<'_>,
    products: [Product<'_>; N],
) {
    let jobs = products.map(|product| {
        let matrix = product.matrix;
        let rows = (TILE_BYTES / matrix.row_bytes().max(1))
            .next_multiple_of(TILE_ROWS)
            .max(TILE_ROWS);
        let output = &mut product.output[..matrix.row_count * columns.count];
        (
            matrix,
            Tiles::new(output, matrix.row_count, columns.count, rows),
        )
    });
    pool.run(&|_| {
        for (matrix, tiles) in &jobs {
            while let Some(mut tile) = tiles.next() {
                table.matmul(matrix.format, matrix.bytes(weights), columns, &mut tile);
            }
        }
    });
}
