//! What differs from pass to pass: which tokens there are, where they are, and numbers that follow from that. It is written
//! to the device by one copy before each pass, which nobody waits for.

use crate::attention::PAGE;
use crate::buffer::Buffer;
use crate::device::{Device, Element};
use crate::error::Error;
use crate::host::HostWords;
use crate::matmul::int;
use std::collections::HashSet;
use std::marker::PhantomData;
use std::ops::{Deref, Range};

/// Words before those of runs.
const HEAD: usize = 4;
/// Words of a run.
const RUN: usize = 4;
/// Words of a column.
const COLUMN: usize = 2;
/// Words that parts begin at multiples of.
const ALIGNED: usize = 4;

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

/// What there is to be room for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// Columns of a pass.
    pub columns: usize,
    /// Pages that its sequences have together.
    pub pages: usize,
    /// Pages of the caches that they are of.
    pub page_count: usize,
    /// Columns that something is to be done with alone.
    pub outputs: usize,
    /// Numbers that kernels are given.
    pub numbers: usize,
}

/// What a pass is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// Where its columns are: those of each run behind those of the one before.
    pub runs: &'a [Run<'a>],
    /// As many positions as the pass is made for, at least as many as the longest of the sequences has with its columns.
    pub reach: usize,
    /// The tokens of the columns.
    pub tokens: &'a [u32],
    /// Some of the columns.
    pub outputs: &'a [u32],
    /// Numbers, for instance rotations.
    pub numbers: &'a [f32],
}

/// Where the columns of a pass are, and what else it is given. What kernels read of it is in the device's memory, so a
/// recorded pass is repeated at other places.
#[derive(Debug)]
pub struct Places {
    words: Buffer<u32>,
    /// Those of them that say where columns are.
    pub(crate) data: Buffer<i32>,
    room: Room,
    /// Pages of the caches that these can be places in.
    pub(crate) page_count: usize,
    pub(crate) extent: Extent,
    /// What is copied, in turn: one is filled while the other may be on its way.
    halves: [HostWords; 2],
}

/// How much there is at places. Where it is the same, everything is at the same addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Columns of all runs.
    pub(crate) columns: usize,
    /// Runs.
    pub(crate) runs: usize,
    /// Positions that no run ends behind.
    pub(crate) reach: usize,
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
    pub(crate) numbers: usize,
}

impl Extent {
    /// Where outputs, numbers and places begin; tokens are first.
    fn firsts(&self) -> [usize; 3] {
        let outputs = self.tokens.next_multiple_of(ALIGNED);
        let numbers = outputs + self.outputs.next_multiple_of(ALIGNED);
        let places = numbers + self.numbers.next_multiple_of(ALIGNED);
        [outputs, numbers, places]
    }

    /// Whether what was recorded for these can be started at `now`, for all that addresses say.
    pub(crate) fn lies_as(&self, now: &Extent) -> bool {
        (self.columns, self.tokens, self.outputs, self.numbers)
            == (now.columns, now.tokens, now.outputs, now.numbers)
    }
}

impl Room {
    /// Words of this, on the device and each of two times here.
    #[must_use]
    pub fn words(&self) -> usize {
        let others = [self.columns, self.outputs, self.numbers];
        let others = others.map(|words| words.next_multiple_of(ALIGNED));
        let places = HEAD + (RUN + COLUMN) * self.columns;
        others.iter().sum::<usize>() + places.saturating_add(self.pages)
    }
}

impl Places {
    /// Columns that are somewhere.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.extent.columns
    }

    /// The tokens that were given.
    #[must_use]
    pub fn tokens(&self) -> Part<'_, u32> {
        Part::of(self, 0, self.extent.tokens)
    }

    /// Those of the outputs that were given.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn outputs(&self, range: Range<usize>) -> Part<'_, i32> {
        assert!(range.end <= self.extent.outputs, "they were given");
        let [first, ..] = self.extent.firsts();
        Part::of(self, first + range.start, range.len())
    }

    /// Those of the numbers that were given.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn numbers(&self, range: Range<usize>) -> Part<'_, f32> {
        assert!(range.end <= self.extent.numbers, "they were given");
        let [_, first, _] = self.extent.firsts();
        Part::of(self, first + range.start, range.len())
    }
}

/// Some of what was given, to be read. What is given next may lie there otherwise, so it is not kept beyond that; nor can it
/// be written, since kernels trust what lies beside it.
#[derive(Debug)]
pub struct Part<'a, T> {
    buffer: Buffer<T>,
    _places: PhantomData<&'a Places>,
}

impl<'a, T: Element> Part<'a, T> {
    fn of(places: &'a Places, first: usize, len: usize) -> Part<'a, T> {
        Part {
            buffer: places.words.part(first, len),
            _places: PhantomData,
        }
    }
}

impl<T> Deref for Part<'_, T> {
    type Target = Buffer<T>;

    fn deref(&self) -> &Buffer<T> {
        &self.buffer
    }
}

/// Words that are filled from the first on.
struct Filling<'a> {
    words: &'a mut [u32],
    count: usize,
}

impl Filling<'_> {
    fn add(&mut self, words: impl IntoIterator<Item = u32>) {
        for word in words {
            self.words[self.count] = word;
            self.count += 1;
        }
    }

    fn add_sizes(&mut self, sizes: impl IntoIterator<Item = usize>) {
        self.add(sizes.into_iter().map(|size| int(size) as u32));
    }

    /// Goes on at the word `first`, zeros before it.
    fn go_to(&mut self, first: usize) {
        self.words[self.count..first].fill(0);
        self.count = first;
    }
}

impl Device {
    /// Room for places of up to `columns` columns, of sequences that have up to `pages` pages together, in caches of
    /// `page_count` pages.
    ///
    /// # Errors
    /// If there is none.
    pub fn places(&self, columns: usize, pages: usize, page_count: usize) -> Result<Places, Error> {
        self.room(&Room {
            columns,
            pages,
            page_count,
            ..Room::default()
        })
    }

    /// Room for what passes are given.
    ///
    /// # Errors
    /// If there is none.
    pub fn room(&self, room: &Room) -> Result<Places, Error> {
        let count = room.words();
        let words = self.zeros(count)?;
        Ok(Places {
            data: words.part(0, 0),
            words,
            room: *room,
            page_count: room.page_count,
            extent: Extent::default(),
            halves: [self.host_words(count)?, self.host_words(count)?],
        })
    }

    /// Says where the columns of the next pass are: those of each run behind those of the one before. `reach` is as many
    /// positions as the pass is made for, at least as many as the longest of the sequences has with its columns.
    ///
    /// # Errors
    /// As [`Device::give`].
    ///
    /// # Panics
    /// As [`Device::give`].
    pub fn place(&self, runs: &[Run<'_>], reach: usize, places: &mut Places) -> Result<(), Error> {
        let given = Given {
            runs,
            reach,
            ..Given::default()
        };
        self.give(&given, places)
    }

    /// Says what the next pass is given.
    ///
    /// # Errors
    /// If it cannot be copied to the device, or launches are being recorded.
    ///
    /// # Panics
    /// If there is more of something than there is room for, a run has none or too few pages or ends behind `reach`,
    /// a page is not of the caches, two columns are at one place, or there are tokens but not one for each column.
    pub fn give(&self, given: &Given<'_>, places: &mut Places) -> Result<(), Error> {
        let Given { runs, reach, .. } = *given;
        let columns: usize = runs.iter().map(|run| run.columns).sum();
        let pages: usize = runs.iter().map(|run| run.pages.len()).sum();
        let room = &places.room;
        assert!(columns <= room.columns && pages <= room.pages);
        assert!(given.outputs.len() <= room.outputs && given.numbers.len() <= room.numbers);
        assert!(given.tokens.is_empty() || given.tokens.len() == columns);
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
        }
        let extent = Extent {
            columns,
            runs: runs.len(),
            reach,
            tokens: given.tokens.len(),
            outputs: given.outputs.len(),
            numbers: given.numbers.len(),
        };
        // Nothing is anywhere if this fails.
        places.extent = Extent::default();
        places.halves.swap(0, 1);
        let [half, _] = &mut places.halves;
        let count = fill(half.get()?, given, &extent);
        let to = self.address(&places.words);
        // SAFETY: as many words were taken there as here.
        unsafe { half.send(self, to, count) }?;
        let [.., first] = extent.firsts();
        places.data = places.words.part(first, count - first);
        places.extent = extent;
        Ok(())
    }
}

/// Fills `words` with what is given; how many those are.
fn fill(words: &mut [u32], given: &Given<'_>, extent: &Extent) -> usize {
    let [outputs, numbers, places] = extent.firsts();
    let mut to = Filling { words, count: 0 };
    to.add(given.tokens.iter().copied());
    to.go_to(outputs);
    to.add(given.outputs.iter().copied());
    to.go_to(numbers);
    to.add(given.numbers.iter().map(|number| number.to_bits()));
    to.go_to(places);
    to.add_sizes([extent.runs, 0, 0, 0]);
    let (mut first, mut table) = (0, 0);
    for run in given.runs {
        to.add_sizes([first, run.columns, run.position, table]);
        first += run.columns;
        table += run.pages.len();
    }
    to.go_to(places + HEAD + RUN * extent.columns);
    let mut table = 0;
    for run in given.runs {
        for column in 0..run.columns {
            to.add_sizes([run.position + column, table]);
        }
        table += run.pages.len();
    }
    let pages = given.runs.iter().flat_map(|run| run.pages);
    to.add_sizes(pages.map(|&page| page as usize));
    to.count
}
