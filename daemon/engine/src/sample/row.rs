//! The logits behind a token, wherever they are.

use std::fmt;

/// Rows of logits that are not in this machine's memory yet.
pub(crate) trait Rows {
    /// One row; `None` if it cannot be had.
    fn row(&self, index: usize) -> Option<&[f32]>;
}

/// A row of logits, one for each token of the vocabulary. A device keeps them and gives the best of them; the others are
/// read from there once somebody asks.
#[derive(Clone, Copy)]
pub struct LogitRow<'a> {
    count: usize,
    best: &'a [(u32, f32)],
    all: All<'a>,
}

#[derive(Clone, Copy)]
enum All<'a> {
    Here(&'a [f32]),
    There(&'a dyn Rows, usize),
}

impl<'a> LogitRow<'a> {
    /// Row `index` of `rows`, of `count` logits. `best` are the largest with their tokens, the largest first and equal ones by
    /// token; none, unless all logits are so small that bias and penalties cannot make one of them infinite.
    pub(crate) fn there(
        count: usize,
        best: &'a [(u32, f32)],
        (rows, index): (&'a dyn Rows, usize),
    ) -> LogitRow<'a> {
        LogitRow {
            count,
            best,
            all: All::There(rows, index),
        }
    }

    /// How many logits there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Some of the largest with their tokens, the largest first and equal ones by token; none where they are not known.
    #[must_use]
    pub fn best(&self) -> &'a [(u32, f32)] {
        self.best
    }

    /// All of them, read from a device if need be. `None` if that fails.
    #[must_use]
    pub fn all(&self) -> Option<&'a [f32]> {
        match self.all {
            All::Here(logits) => Some(logits),
            All::There(rows, index) => rows.row(index),
        }
    }
}

impl fmt::Debug for LogitRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogitRow")
            .field("count", &self.count)
            .field("best", &self.best)
            .finish_non_exhaustive()
    }
}

impl<'a> From<&'a [f32]> for LogitRow<'a> {
    fn from(logits: &'a [f32]) -> LogitRow<'a> {
        LogitRow {
            count: logits.len(),
            best: &[],
            all: All::Here(logits),
        }
    }
}

impl<'a> From<&'a Vec<f32>> for LogitRow<'a> {
    fn from(logits: &'a Vec<f32>) -> LogitRow<'a> {
        logits.as_slice().into()
    }
}

impl<'a, const COUNT: usize> From<&'a [f32; COUNT]> for LogitRow<'a> {
    fn from(logits: &'a [f32; COUNT]) -> LogitRow<'a> {
        logits.as_slice().into()
    }
}
