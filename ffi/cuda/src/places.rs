//! Where columns are: positions and pages of sequences, written to the device before each pass.

use crate::attention::PAGE;
use crate::buffer::Buffer;
use crate::device::Device;
use crate::error::Error;
use crate::matmul::int;
use std::collections::HashSet;

/// Words before those of runs.
const HEAD: usize = 4;
/// Words of a run.
const RUN: usize = 4;
/// Words of a column.
const COLUMN: usize = 2;

/// Consecutive columns of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// How many.
    pub columns: usize,
    /// Position of the first.
    pub position: usize,
    /// Pages of the sequence, in the order of its positions.
    pub pages: &'a [u32],
}

/// Where the columns of a pass are. What kernels read of it is in the device's memory, so a recorded pass is repeated at
/// other places.
#[derive(Debug)]
pub struct Places {
    pub(crate) data: Buffer<i32>,
    pub(crate) columns_max: usize,
    pages_max: usize,
    /// Pages of the caches that these can be places in.
    pub(crate) page_count: usize,
    pub(crate) extent: Extent,
    words: Vec<i32>,
}

/// How much there is at places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Columns of all runs.
    pub(crate) columns: usize,
    /// Runs.
    pub(crate) runs: usize,
    /// Positions that no run ends behind.
    pub(crate) reach: usize,
}

impl Places {
    /// Columns that are somewhere.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.extent.columns
    }
}

impl Device {
    /// Room for up to `columns` columns, of sequences that have up to `pages` pages together, in caches of `page_count` pages.
    ///
    /// # Errors
    /// If there is none.
    pub fn places(&self, columns: usize, pages: usize, page_count: usize) -> Result<Places, Error> {
        let words = HEAD + (RUN + COLUMN) * columns + pages;
        Ok(Places {
            data: self.zeros(words)?,
            columns_max: columns,
            pages_max: pages,
            page_count,
            extent: Extent::default(),
            words: Vec::with_capacity(words),
        })
    }

    /// Says where the columns of the next pass are: those of each run behind those of the one before. `reach` is as many
    /// positions as the pass is made for, at least as many as the longest of the sequences has with its columns.
    ///
    /// # Errors
    /// If it cannot be copied to the device.
    ///
    /// # Panics
    /// If there are more columns or pages than there is room for, a run has none or too few pages or ends behind `reach`,
    /// a page is not of the caches, or two columns are at one place.
    pub fn place(&self, runs: &[Run<'_>], reach: usize, places: &mut Places) -> Result<(), Error> {
        let columns: usize = runs.iter().map(|run| run.columns).sum();
        let pages: usize = runs.iter().map(|run| run.pages.len()).sum();
        assert!(columns <= places.columns_max && pages <= places.pages_max);
        let words = &mut places.words;
        words.clear();
        words.extend([int(runs.len()), 0, 0, 0]);
        let (mut first, mut table) = (0, 0);
        let mut written = HashSet::new();
        for run in runs {
            let end = run.position + run.columns;
            assert!(run.columns > 0 && end <= reach && end <= run.pages.len() * PAGE);
            assert!(
                run.pages
                    .iter()
                    .all(|&page| (page as usize) < places.page_count),
                "pages of the caches"
            );
            for &page in &run.pages[run.position / PAGE..end.div_ceil(PAGE)] {
                assert!(written.insert(page), "a page that one run writes to");
            }
            words.extend([first, run.columns, run.position, table].map(int));
            first += run.columns;
            table += run.pages.len();
        }
        words.resize(HEAD + RUN * places.columns_max, 0);
        let mut table = 0;
        for run in runs {
            for column in 0..run.columns {
                words.extend([int(run.position + column), int(table)]);
            }
            table += run.pages.len();
        }
        while words.len() < HEAD + (RUN + COLUMN) * places.columns_max {
            words.extend([-1, 0]);
        }
        let numbers = runs.iter().flat_map(|run| run.pages);
        words.extend(numbers.map(|&page| int(page as usize)));
        self.write(words, &mut places.data)?;
        places.extent = Extent {
            columns,
            runs: runs.len(),
            reach,
        };
        Ok(())
    }
}
