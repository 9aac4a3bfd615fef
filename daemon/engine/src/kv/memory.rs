//! Zeroed memory that begins at a page of the system's.
//!
//! Invariant: none of it is resident before it is written.

use std::ops::{Deref, DerefMut};

/// Bytes of the system's pages; where they are larger, a piece may begin within one.
const SYSTEM_PAGE: usize = 4096;

/// Elements, at first zeros. They begin at a page of the system's, so that a vector of them is never in two lines of a
/// cache, and a head's part of a page in as few of the system's as it can be.
#[derive(Debug)]
pub(super) struct Memory<T> {
    all: Vec<T>,
    start: usize,
    count: usize,
}

impl<T: Clone + Default> Memory<T> {
    /// `count` zeros; `None` if there is not enough memory.
    pub(super) fn zeros(count: usize) -> Option<Memory<T>> {
        let room = if count == 0 {
            0
        } else {
            SYSTEM_PAGE / size_of::<T>()
        };
        let all = zeros::<T>(count.checked_add(room)?)?;
        let start = all.as_ptr().align_offset(SYSTEM_PAGE);
        let start = if start <= room { start } else { 0 };
        Some(Memory { all, start, count })
    }
}

impl<T> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[self.start..self.start + self.count]
    }
}

impl<T> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[self.start..self.start + self.count]
    }
}

/// `count` zeros; `None` if there is not enough memory.
pub(super) fn zeros<T: Clone + Default>(count: usize) -> Option<Vec<T>> {
    if count > isize::MAX as usize / size_of::<T>() {
        return None;
    }
    // `vec!` aborts where there is not enough memory, so ask first, in a way that may fail; the black box keeps the
    // compiler from leaving out what nobody uses.
    let mut probe = Vec::<T>::new();
    probe.try_reserve_exact(count).ok()?;
    drop(std::hint::black_box(probe));
    // Zeroed memory comes untouched from the system: it is resident only once written.
    Some(vec![T::default(); count])
}

#[cfg(test)]
mod tests {
    use super::{Memory, SYSTEM_PAGE};

    #[test]
    fn it_begins_at_a_page_and_has_its_length() {
        for count in [0, 1, 4096, 100_000] {
            let mut memory = Memory::<u16>::zeros(count).expect("small");
            assert_eq!(memory.len(), count);
            assert!(memory.iter().all(|&element| element == 0));
            memory.fill(1);
            assert!(count == 0 || memory.as_ptr().addr().is_multiple_of(SYSTEM_PAGE));
        }
        assert!(Memory::<u16>::zeros(usize::MAX / 2).is_none());
    }
}
