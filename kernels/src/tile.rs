//! Output matrices shared out to threads in tiles.
//!
//! Invariant: a [`Tiles`] hands out each tile at most once, so no two live [`Tile`]s of it share an element. That
//! is what makes writing through them from several threads sound.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

/// A mutable matrix of `column_count` columns with `row_count` rows each (column `c` starts at element
/// `c * row_count`), cut into tiles of consecutive rows over all columns.
#[derive(Debug)]
pub struct Tiles<'a> {
    base: *mut f32,
    row_count: usize,
    column_count: usize,
    tile_rows: usize,
    next: AtomicUsize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `base` stands for a `&mut [f32]`, and `next` gives each tile of it to one caller only.
unsafe impl Sync for Tiles<'_> {}
// SAFETY: as above; f32 is Send.
unsafe impl Send for Tiles<'_> {}

/// Rows `rows` of every column of a matrix, writable by its one holder.
#[derive(Debug)]
pub struct Tile<'a> {
    base: *mut f32,
    stride: usize,
    column_count: usize,
    rows: Range<usize>,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> Tiles<'a> {
    /// Cuts `output` into tiles of `tile_rows` rows; the last may be shorter.
    ///
    /// # Panics
    /// If `output` has not exactly `row_count * column_count` elements, or `tile_rows` is zero.
    #[must_use]
    pub fn new(
        output: &'a mut [f32],
        row_count: usize,
        column_count: usize,
        tile_rows: usize,
    ) -> Tiles<'a> {
        assert_eq!(
            Some(output.len()),
            row_count.checked_mul(column_count),
            "tiles cover the output"
        );
        assert!(tile_rows > 0, "tiles have rows");
        Tiles {
            base: output.as_mut_ptr(),
            row_count,
            column_count,
            tile_rows,
            next: AtomicUsize::new(0),
            borrow: PhantomData,
        }
    }

    /// The next tile that nobody has taken; `None` when all are taken.
    #[inline]
    pub fn next(&self) -> Option<Tile<'_>> {
        // Relaxed: the counter only shares out work; the pool's barrier orders the data.
        let start = self
            .next
            .fetch_add(1, Ordering::Relaxed)
            .checked_mul(self.tile_rows)?;
        if start >= self.row_count {
            return None;
        }
        let end = self.row_count.min(start + self.tile_rows);
        Some(Tile {
            base: self.base,
            stride: self.row_count,
            column_count: self.column_count,
            rows: start..end,
            borrow: PhantomData,
        })
    }
}

impl Tile<'_> {
    /// A tile that is a whole matrix of one thread: `column_count` columns of `row_count` rows.
    ///
    /// # Panics
    /// If `output` has not exactly `row_count * column_count` elements.
    #[must_use]
    pub fn whole(output: &mut [f32], row_count: usize, column_count: usize) -> Tile<'_> {
        assert_eq!(
            Some(output.len()),
            row_count.checked_mul(column_count),
            "the tile covers the output"
        );
        Tile {
            base: output.as_mut_ptr(),
            stride: row_count,
            column_count,
            rows: 0..row_count,
            borrow: PhantomData,
        }
    }

    /// The rows of the matrix that this tile holds.
    #[inline]
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Number of columns.
    #[inline]
    #[must_use]
    pub fn column_count(&self) -> usize {
        self.column_count
    }

    /// This tile's rows of column `column`.
    ///
    /// # Panics
    /// If there is no such column.
    #[inline]
    pub fn column_mut(&mut self, column: usize) -> &mut [f32] {
        assert!(
            column < self.column_count,
            "column {column} of {}",
            self.column_count
        );
        // SAFETY: the constructors checked that the matrix has `stride` elements in each of `column_count` columns,
        // `rows` lies within `stride`, and this tile alone holds these rows (`Tiles::next`).
        unsafe {
            core::slice::from_raw_parts_mut(
                self.base.add(column * self.stride + self.rows.start),
                self.rows.len(),
            )
        }
    }

    /// Pointer to the first row of column 0, and the distance between columns, for kernels. Without columns it points
    /// to nothing.
    #[inline]
    pub(crate) fn raw(&mut self) -> (*mut f32, usize) {
        (self.base.wrapping_add(self.rows.start), self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::Tiles;
    use std::vec;

    #[test]
    fn every_row_is_handed_out_once() {
        let mut output = vec![0.0; 10 * 3];
        let tiles = Tiles::new(&mut output, 10, 3, 4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(mut tile) = tiles.next() {
                        for column in 0..tile.column_count() {
                            for value in tile.column_mut(column) {
                                *value += 1.0;
                            }
                        }
                    }
                });
            }
        });
        assert!(output.iter().all(|&value| value == 1.0));
    }
}
