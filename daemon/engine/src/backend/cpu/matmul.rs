//! Matrices on all threads.

use crate::weights::{Matrix, Weights};
use andon_kernels::activation::Columns;
use andon_kernels::{Table, Tiles};
use andon_os::Pool;

/// Weight bytes of a tile: small enough that threads finish together and the tile stays in L1, large enough that
/// taking it costs nothing.
const TILE_BYTES: usize = 16 * 1024;

/// Tiles have whole blocks of rows of every instruction set.
const TILE_ROWS: usize = 16;

/// Columns up to which a tile's weights are read once: kernels pass over its rows a single time.
const ONE_PASS_COLUMNS_MAX: usize = 8;

/// Tiles that a thread takes of a large matrix that is read once. Kernels fetch the rows after those they compute, and
/// at the end of a tile these are mostly another thread's: the fewer ends, the less is fetched twice. The threads end
/// within one tile of each other, 1 / 32 of a thread's share.
const TILES_EACH: usize = 32;

/// A matrix times columns, into `output` (`[column][row]`).
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) output: &'a mut [f32],
}

/// Multiplies several matrices with the same columns in one phase.
pub(super) fn multiply<const N: usize>(
    table: &Table,
    pool: &mut Pool,
    weights: Weights<'_>,
    columns: Columns<'_>,
    products: [Product<'_>; N],
) {
    let threads = pool.threads();
    let jobs = products.map(|product| {
        let matrix = product.matrix;
        let mut rows = (TILE_BYTES / matrix.row_bytes().max(1)).max(1);
        if columns.count <= ONE_PASS_COLUMNS_MAX {
            rows = rows.max(matrix.row_count / (threads * TILES_EACH));
        }
        let rows = rows.next_multiple_of(TILE_ROWS);
        let output = &mut product.output[..matrix.row_count * columns.count];
        (
            matrix,
            Tiles::new(output, matrix.row_count, columns.count, rows),
        )
    });
    pool.run(&|_| {
        for (matrix, tiles) in &jobs {
            while let Some(mut tile) = tiles.next() {
                table.matmul(matrix.format, weights.raw(matrix), columns, &mut tile);
            }
        }
    });
}
