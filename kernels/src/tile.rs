//! Output matrices shared out to threads in tiles of consecutive rows.
//!
//! Every thread begins with a run of tiles of its own, so that it reads consecutive weights, and takes half of what
//! another has left when it is through: cores of any speed end within a tile of each other.
//!
//! Invariant: a [`Shares`] hands out each number at most once, so no two live [`Tile`]s that came with its numbers
//! share an element. That is what makes writing through them from several threads sound.

use crate::activation::{GROUP, Group, QuantizedMut};
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// The range of numbers that a thread has left: its start in the low half, its end in the high half. On cache lines of
/// its own, two of them because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Share(AtomicU64);

impl Share {
    fn range(word: u64) -> Range<u32> {
        word as u32..(word >> 32) as u32
    }

    fn word(range: Range<u32>) -> u64 {
        u64::from(range.end) << 32 | u64::from(range.start)
    }

    /// Takes from the range by `cut`, which gives what is taken and what stays of a range that is not empty.
    fn take(&self, cut: impl Fn(Range<u32>) -> (Range<u32>, Range<u32>)) -> Option<Range<u32>> {
        // Relaxed throughout: numbers only share out work; the pool's barrier orders the data. A range that was left
        // never comes back, since one of its numbers has been handed out, so a word that compares equal is the same.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let range = Share::range(word);
            if range.is_empty() {
                return None;
            }
            let (taken, left) = cut(range);
            match self.0.compare_exchange_weak(
                word,
                Share::word(left),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(taken),
                Err(now) => word = now,
            }
        }
    }
}

/// The numbers below some count on their way to threads.
#[derive(Debug)]
struct Shares<'a> {
    shares: &'a [Share],
}

impl<'a> Shares<'a> {
    /// Deals `0..count` out, a run of consecutive numbers to each of `shares`, one for each thread.
    ///
    /// # Panics
    /// If there is no share, or `count` is not below 2^32.
    #[must_use]
    fn deal(shares: &'a mut [Share], count: usize) -> Shares<'a> {
        let threads = shares.len() as u64;
        let count = u64::from(u32::try_from(count).expect("tiles can be counted"));
        assert!(threads > 0, "somebody takes the tiles");
        for (index, share) in (0u64..).zip(&mut *shares) {
            // At most `count`, which fits.
            let start = |index: u64| (count * index / threads) as u32;
            *share.0.get_mut() = Share::word(start(index)..start(index + 1));
        }
        Shares { shares }
    }

    /// The next number for `thread`; `None` when none are left that it could take. One thread at a time may use a
    /// number of a thread, or numbers are lost.
    ///
    /// # Panics
    /// If there is no share for the thread.
    #[inline]
    fn take(&self, thread: usize) -> Option<usize> {
        let own = &self.shares[thread];
        let first = own.take(|range| (range.start..range.start + 1, range.start + 1..range.end));
        match first {
            Some(taken) => Some(taken.start as usize),
            None => self.take_from_others(thread),
        }
    }

    fn take_from_others(&self, thread: usize) -> Option<usize> {
        let (before, after) = self.shares.split_at(thread);
        let others = after[1..].iter().chain(before);
        let taken = others.into_iter().find_map(|other| {
            other.take(|range| {
                let middle = range.start + range.len() as u32 / 2;
                (middle..range.end, range.start..middle)
            })
        })?;
        let left = Share::word(taken.start + 1..taken.end);
        self.shares[thread].0.store(left, Ordering::Relaxed);
        Some(taken.start as usize)
    }
}

/// A mutable matrix of columns of `rows` elements each, of which parts are given to several holders.
#[derive(Debug)]
struct Output<'a, T> {
    base: *mut T,
    rows: usize,
    columns: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: `base` stands for a `&mut [T]`, and who takes parts of it takes each row once (`Output::tile`).
unsafe impl<T: Send> Sync for Output<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    fn new(output: &'a mut [T], rows: usize, columns: usize) -> Output<'a, T> {
        assert_eq!(
            Some(output.len()),
            rows.checked_mul(columns),
            "tiles cover the output"
        );
        Output {
            base: output.as_mut_ptr(),
            rows,
            columns,
            borrow: PhantomData,
        }
    }

    /// # Safety
    /// The rows must exist, and no other tile of this output may have one of them.
    unsafe fn tile(&self, rows: Range<usize>) -> Tile<'_, T> {
        Tile {
            base: self.base,
            stride: self.rows,
            column_count: self.columns,
            rows,
            borrow: PhantomData,
        }
    }
}

/// Rows `rows` of every column of a matrix (column `c` starts at element `c * row_count`), writable by its one holder.
#[derive(Debug)]
pub struct Tile<'a, T = f32> {
    base: *mut T,
    stride: usize,
    column_count: usize,
    rows: Range<usize>,
    borrow: PhantomData<&'a mut [T]>,
}

/// A matrix that products are written to, as [`Tiles`] takes it.
#[derive(Debug)]
pub struct TilesOf<'a> {
    /// The matrix, `[column][row]`.
    pub output: &'a mut [f32],
    /// Rows of a column.
    pub row_count: usize,
    /// Rows of a tile; the last may have fewer.
    pub tile_rows: usize,
}

/// Several matrices of as many columns each, cut into tiles.
#[derive(Debug)]
pub struct Tiles<'a, const N: usize> {
    shares: Shares<'a>,
    /// Each matrix with the rows of its tiles and the number of its first tile.
    outputs: [(Output<'a, f32>, usize, usize); N],
}

impl<'a, const N: usize> Tiles<'a, N> {
    /// Cuts the matrices and deals their tiles out to threads, one for each of `shares`.
    ///
    /// # Panics
    /// If a matrix has not exactly as many elements as its rows and columns say, or tiles have no rows.
    #[must_use]
    pub fn new(
        shares: &'a mut [Share],
        column_count: usize,
        matrices: [TilesOf<'a>; N],
    ) -> Tiles<'a, N> {
        let mut count = 0;
        let outputs = matrices.map(|matrix| {
            assert!(matrix.tile_rows > 0, "tiles have rows");
            let first = count;
            count += matrix.row_count.div_ceil(matrix.tile_rows);
            let output = Output::new(matrix.output, matrix.row_count, column_count);
            (output, matrix.tile_rows, first)
        });
        Tiles {
            shares: Shares::deal(shares, count),
            outputs,
        }
    }

    /// The next tile for `thread`, and which matrix it is of; see [`Shares::take`].
    #[inline]
    pub fn next(&self, thread: usize) -> Option<(usize, Tile<'_>)> {
        let number = self.shares.take(thread)?;
        let matrix = self
            .outputs
            .iter()
            .rposition(|&(_, _, first)| first <= number)?;
        let (output, tile_rows, first) = &self.outputs[matrix];
        let start = (number - first) * tile_rows;
        let end = output.rows.min(start + tile_rows);
        // SAFETY: the number is below the count of tiles, which ends with the last rows of the last matrix, and it is
        // handed out once; matrices without rows have no numbers, and of those with the same first number the last
        // has rows.
        Some((matrix, unsafe { output.tile(start..end) }))
    }
}

/// What becomes of two matrices that are computed row by row together, cut into tiles: neither is kept.
#[derive(Debug)]
pub struct GatedTiles<'a> {
    shares: Shares<'a>,
    tile_rows: usize,
    row_count: usize,
    output: GatedOutput<'a>,
}

#[derive(Debug)]
enum GatedOutput<'a> {
    Values(Output<'a, f32>),
    Levels(Output<'a, i8>, Output<'a, Group>),
}

/// A tile of a [`GatedTiles`].
#[derive(Debug)]
pub struct GatedTile<'a> {
    rows: Range<usize>,
    output: GatedTileOutput<'a>,
}

#[derive(Debug)]
enum GatedTileOutput<'a> {
    Values(Tile<'a>),
    Levels(Tile<'a, i8>, Tile<'a, Group>),
}

/// Columns, or a part of one, in the form that the next matrix takes.
#[derive(Debug)]
pub enum ColumnsMut<'a> {
    /// In f32.
    Values(&'a mut [f32]),
    /// In 8 bits.
    Quantized(QuantizedMut<'a>),
}

impl<'a> GatedTiles<'a> {
    /// Cuts `output` into tiles of `tile_rows` rows (the last may have fewer) and deals them out to threads, one for each
    /// of `shares`.
    ///
    /// # Panics
    /// If the output has not exactly as many elements as its rows and columns say, or tiles have no rows, or the output is
    /// quantized and rows or tiles are not whole groups.
    #[must_use]
    pub fn new(
        shares: &'a mut [Share],
        output: ColumnsMut<'a>,
        row_count: usize,
        column_count: usize,
        tile_rows: usize,
    ) -> GatedTiles<'a> {
        assert!(tile_rows > 0, "tiles have rows");
        let output = match output {
            ColumnsMut::Values(values) => {
                GatedOutput::Values(Output::new(values, row_count, column_count))
            }
            ColumnsMut::Quantized(quantized) => {
                assert!(
                    row_count.is_multiple_of(GROUP) && tile_rows.is_multiple_of(GROUP),
                    "tiles are whole groups"
                );
                GatedOutput::Levels(
                    Output::new(quantized.levels, row_count, column_count),
                    Output::new(quantized.groups, row_count / GROUP, column_count),
                )
            }
        };
        GatedTiles {
            shares: Shares::deal(shares, row_count.div_ceil(tile_rows)),
            tile_rows,
            row_count,
            output,
        }
    }

    /// The next tile for `thread`; see [`Shares::take`].
    #[inline]
    pub fn next(&self, thread: usize) -> Option<GatedTile<'_>> {
        let start = self.shares.take(thread)? * self.tile_rows;
        let end = self.row_count.min(start + self.tile_rows);
        // SAFETY: the number is below the count of tiles, which ends with the last rows of the matrices, and it is
        // handed out once. Tiles of levels are whole groups.
        let output = unsafe {
            match &self.output {
                GatedOutput::Values(values) => GatedTileOutput::Values(values.tile(start..end)),
                GatedOutput::Levels(levels, groups) => GatedTileOutput::Levels(
                    levels.tile(start..end),
                    groups.tile(start / GROUP..end / GROUP),
                ),
            }
        };
        let rows = start..end;
        Some(GatedTile { rows, output })
    }
}

impl GatedTile<'_> {
    /// The rows of the matrices that become this tile.
    #[inline]
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// This tile's rows of column `column`.
    ///
    /// # Panics
    /// If there is no such column.
    #[inline]
    pub fn column_mut(&mut self, column: usize) -> ColumnsMut<'_> {
        match &mut self.output {
            GatedTileOutput::Values(values) => ColumnsMut::Values(values.column_mut(column)),
            GatedTileOutput::Levels(levels, groups) => ColumnsMut::Quantized(QuantizedMut {
                levels: levels.column_mut(column),
                groups: groups.column_mut(column),
            }),
        }
    }
}

impl<T> Tile<'_, T> {
    /// A tile that is a whole matrix of one thread: `column_count` columns of `row_count` rows.
    ///
    /// # Panics
    /// If `output` has not exactly `row_count * column_count` elements.
    #[must_use]
    pub fn whole(output: &mut [T], row_count: usize, column_count: usize) -> Tile<'_, T> {
        Tile::part(output, 0..row_count, column_count)
    }

    /// A tile of one thread that holds `rows` of a matrix in an output of their own: `column_count` columns of them.
    ///
    /// # Panics
    /// If `output` has not exactly that many elements.
    #[must_use]
    pub fn part(output: &mut [T], rows: Range<usize>, column_count: usize) -> Tile<'_, T> {
        assert_eq!(
            Some(output.len()),
            rows.len().checked_mul(column_count),
            "the tile covers the output"
        );
        Tile {
            base: output.as_mut_ptr().wrapping_sub(rows.start),
            stride: rows.len(),
            column_count,
            rows,
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
    pub fn column_mut(&mut self, column: usize) -> &mut [T] {
        assert!(
            column < self.column_count,
            "column {column} of {}",
            self.column_count
        );
        // SAFETY: the constructors checked that there are `stride` elements in each of `column_count` columns, of which
        // `rows` are these, counted from `base`, and this tile alone holds them (`Output::tile`). Where it is a part,
        // `base` itself may lie before the buffer.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.base
                    .wrapping_add(column * self.stride + self.rows.start),
                self.rows.len(),
            )
        }
    }

    /// Pointer to the first row of column 0, and the distance between columns, for kernels. Without columns it points
    /// to nothing.
    #[inline]
    pub(crate) fn raw(&mut self) -> (*mut T, usize) {
        (self.base.wrapping_add(self.rows.start), self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::{ColumnsMut, GatedTiles, Range, Share, Shares, Tile, Tiles, TilesOf};
    use crate::activation::{GROUP, Group, QuantizedMut};
    use core::sync::atomic::{AtomicUsize, Ordering};
    use std::vec::Vec;

    fn shares(threads: usize) -> Vec<Share> {
        (0..threads).map(|_| Share::default()).collect()
    }

    #[test]
    fn every_number_is_handed_out_once() {
        for (threads, count) in [(1, 5), (4, 0), (4, 3), (4, 10_000), (7, 1001)] {
            let mut shares = shares(threads);
            let shares = Shares::deal(&mut shares, count);
            let taken: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (shares, taken) = (&shares, &taken);
                    scope.spawn(move || {
                        while let Some(number) = shares.take(thread) {
                            taken[number].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            let once = |taken: &AtomicUsize| taken.load(Ordering::Relaxed) == 1;
            assert!(taken.iter().all(once), "{count} to {threads}");
        }
    }

    #[test]
    fn a_thread_alone_takes_runs_of_consecutive_numbers() {
        let mut shares = shares(2);
        let shares = Shares::deal(&mut shares, 12);
        let taken: Vec<usize> = core::iter::from_fn(|| shares.take(1)).collect();
        assert_eq!(taken, [6, 7, 8, 9, 10, 11, 3, 4, 5, 1, 2, 0]);
        assert_eq!(shares.take(0), None);
    }

    #[test]
    fn every_row_of_every_matrix_is_handed_out_once() {
        let mut outputs = [10, 0, 7].map(|rows| std::vec![0.0; rows * 3]);
        let mut shares = shares(4);
        let [first, second, third] = &mut outputs;
        let matrices = [(first, 10), (second, 0), (third, 7)].map(|(output, row_count)| TilesOf {
            output,
            row_count,
            tile_rows: 4,
        });
        let tiles = Tiles::new(&mut shares, 3, matrices);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let tiles = &tiles;
                scope.spawn(move || {
                    while let Some((matrix, mut tile)) = tiles.next(thread) {
                        for column in 0..tile.column_count() {
                            for value in tile.column_mut(column) {
                                *value += 1.0 + matrix as f32;
                            }
                        }
                    }
                });
            }
        });
        for (output, expected) in outputs.iter().zip([1.0, 2.0, 3.0]) {
            assert!(output.iter().all(|&value| value == expected));
        }
    }

    #[test]
    fn gated_tiles_have_the_same_rows_and_groups() {
        let (rows, columns) = (5 * GROUP, 3);
        let mut levels = std::vec![0; rows * columns];
        let mut groups = std::vec![Group::default(); rows * columns / GROUP];
        let quantized = QuantizedMut {
            levels: &mut levels,
            groups: &mut groups,
        };
        let mut shares = shares(2);
        let output = ColumnsMut::Quantized(quantized);
        let tiles = GatedTiles::new(&mut shares, output, rows, columns, 2 * GROUP);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let tiles = &tiles;
                scope.spawn(move || {
                    while let Some(mut tile) = tiles.next(thread) {
                        let Range { start, end } = tile.rows();
                        for column in 0..columns {
                            let ColumnsMut::Quantized(quantized) = tile.column_mut(column) else {
                                panic!("the output is quantized");
                            };
                            assert_eq!(quantized.levels.len(), end - start);
                            quantized.levels.fill(3);
                            for (index, group) in quantized.groups.iter_mut().enumerate() {
                                group.negated_sum += (column * rows + start + index * GROUP) as i32;
                            }
                        }
                    }
                });
            }
        });
        assert!(levels.iter().all(|&level| level == 3));
        for (index, group) in groups.iter().enumerate() {
            assert_eq!(group.negated_sum as usize, index * GROUP);
        }
    }

    #[test]
    fn gated_tiles_of_values_have_every_row_once() {
        let (rows, columns) = (7, 2);
        let mut values = std::vec![0.0; rows * columns];
        let mut shares = shares(1);
        let output = ColumnsMut::Values(&mut values);
        let tiles = GatedTiles::new(&mut shares, output, rows, columns, 4);
        while let Some(mut tile) = tiles.next(0) {
            for column in 0..columns {
                let ColumnsMut::Values(values) = tile.column_mut(column) else {
                    panic!("the output is in f32");
                };
                for value in values {
                    *value += 1.0;
                }
            }
        }
        assert!(values.iter().all(|&value| value == 1.0));
    }

    #[test]
    fn a_part_is_an_output_of_its_own() {
        let mut output: Vec<usize> = (0..6).collect();
        let mut tile = Tile::part(&mut output, 32..35, 2);
        assert_eq!((tile.rows(), tile.column_count()), (32..35, 2));
        assert_eq!(tile.column_mut(0), [0, 1, 2]);
        assert_eq!(tile.column_mut(1), [3, 4, 5]);
        let (base, stride) = tile.raw();
        assert_eq!((base, stride), (output.as_mut_ptr(), 3));
    }
}
