//! Logits of the last pass, which stay on the device: their best are read after each pass, all of a row once somebody asks.

use super::Cuda;
use crate::backend::{DeviceCounts, cpu::Sizes};
use crate::sample::{LogitRow, Rows};
use andon_cuda::{Device, Error, TopK};
use std::cell::{Cell, OnceCell, RefCell};

/// Best logits of a row that are read: as many as those who ask for top-k mostly ask for, and some that penalties or a shape
/// may leave out.
const BEST: usize = 64;

/// What of them is in this machine's memory.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Outputs of the last pass.
    count: usize,
    /// `[output][best]`, the largest first.
    best: Vec<(u32, f32)>,
    /// How many of those each output has: none where some logit is not sound.
    best_counts: Vec<usize>,
    /// All rows, where that was asked for or the device has no room for them: `[output][vocabulary]`.
    pub(super) all: Vec<f32>,
    /// Single rows that were asked for.
    single: Vec<OnceCell<Vec<f32>>>,
    /// Memory of rows that were.
    spare: RefCell<Vec<Vec<f32>>>,
    /// How many rows were read in all.
    rows: Cell<u64>,
    failed: Cell<Option<Error>>,
}

/// How many best ones are looked for.
pub(super) fn best_count(sizes: &Sizes) -> usize {
    BEST.min(sizes.vocabulary)
}

impl Read {
    /// Forgets the rows of the last pass, keeps their memory.
    pub(super) fn begin(&mut self) {
        self.count = 0;
        self.best.clear();
        self.best_counts.clear();
        self.all.clear();
        self.failed.take();
        let spare = self.spare.get_mut();
        spare.extend(self.single.iter_mut().filter_map(OnceCell::take));
    }

    /// Notes that a pass of `count` outputs is done and reads what was found of them; nothing where all rows were read.
    pub(super) fn end(
        &mut self,
        device: &Device,
        top: &mut TopK,
        count: usize,
    ) -> Result<(), Error> {
        self.count = count;
        if !self.all.is_empty() {
            self.count_rows(count);
            return Ok(());
        }
        self.single.resize_with(count, OnceCell::new);
        for best in device.read_top_k(top, count)? {
            let best = best.unwrap_or_default();
            self.best_counts.push(best.len());
            self.best.extend(best);
        }
        Ok(())
    }

    fn count_rows(&self, count: usize) {
        self.rows.set(self.rows.get() + count as u64);
    }

    /// The best of an output, if they are known.
    fn best(&self, index: usize) -> &[(u32, f32)] {
        let count = |index: &usize| *index;
        let Some(len) = self.best_counts.get(index) else {
            return &[];
        };
        let first: usize = self.best_counts[..index].iter().map(count).sum();
        &self.best[first..first + len]
    }
}

impl Cuda {
    /// An output of the last pass.
    ///
    /// # Panics
    /// If there is no such output.
    pub(crate) fn row(&self, index: usize) -> LogitRow<'_> {
        assert!(index < self.read.count, "an output of the last pass");
        let best = self.read.best(index);
        LogitRow::there(self.sizes.vocabulary, best, (self, index))
    }

    /// Reads all rows of the last pass.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn read_all(&mut self) -> Result<(), Error> {
        let read = &mut self.read;
        let len = read.count * self.sizes.vocabulary;
        if read.all.len() != len {
            read.all.resize(len, 0.0);
            self.device.read(&self.buffers.logits, &mut read.all)?;
            read.count_rows(read.count);
        }
        Ok(())
    }

    /// All rows, once they were read.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.read.all
    }

    /// Why a row could not be read since the last pass, if one could not.
    pub(crate) fn unread(&self) -> Option<Error> {
        self.read.failed.get()
    }

    /// What was done, in all passes.
    pub(crate) fn counts(&self) -> DeviceCounts {
        DeviceCounts {
            rows_read: self.read.rows.get(),
            ..self.graphs.counts
        }
    }
}

impl Rows for Cuda {
    fn row(&self, index: usize) -> Option<&[f32]> {
        let (read, vocabulary) = (&self.read, self.sizes.vocabulary);
        let range = index * vocabulary..(index + 1) * vocabulary;
        if let Some(row) = read.all.get(range.clone()) {
            return Some(row);
        }
        let cell = read.single.get(index)?;
        if let Some(row) = cell.get() {
            return Some(row);
        }
        let mut row = read.spare.borrow_mut().pop().unwrap_or_default();
        row.resize(vocabulary, 0.0);
        let done = self
            .device
            .read_range(&self.buffers.logits, range, &mut row);
        if let Err(error) = done {
            read.failed.set(Some(error));
            return None;
        }
        read.count_rows(1);
        Some(cell.get_or_init(|| row))
    }
}
