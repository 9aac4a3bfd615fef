//! One sequence's positions in the cache.

use super::PAGE;
use std::sync::{Arc, Mutex, PoisonError};

/// The pages that no sequence holds.
#[derive(Debug)]
pub(super) struct FreePages {
    pages: Mutex<Vec<u32>>,
}

impl FreePages {
    /// Pages `0..count`, all free.
    pub(super) fn new(count: u32) -> Arc<FreePages> {
        // Taken from the end: low pages first, so that little memory is touched twice as often.
        Arc::new(FreePages {
            pages: Mutex::new((0..count).rev().collect()),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cached positions of one sequence of tokens. Dropping it frees its pages.
#[derive(Debug)]
pub struct Sequence {
    pages: Vec<u32>,
    length: usize,
    free: Arc<FreePages>,
}

impl Sequence {
    pub(super) fn new(free: Arc<FreePages>) -> Sequence {
        Sequence {
            pages: Vec::new(),
            length: 0,
            free,
        }
    }

    /// Number of cached tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no token is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all but the first `tokens` tokens; keeps everything if there are no more than that.
    pub fn truncate(&mut self, tokens: usize) {
        self.length = self.length.min(tokens);
        self.trim();
    }

    /// The pages in order of position.
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Whether this sequence's pages are those of the cache that `free` belongs to.
    pub(super) fn belongs_to(&self, free: &Arc<FreePages>) -> bool {
        Arc::ptr_eq(&self.free, free)
    }

    /// Pages that holding `tokens` tokens would take beyond those it has.
    pub(crate) fn pages_missing(&self, tokens: usize) -> usize {
        tokens.div_ceil(PAGE).saturating_sub(self.pages.len())
    }

    /// Takes pages for `tokens` tokens in all; false, and nothing taken, if too few are free.
    pub(crate) fn reserve(&mut self, tokens: usize) -> bool {
        let missing = self.pages_missing(tokens);
        let mut free = self.free.lock();
        if free.len() < missing {
            return false;
        }
        let from = free.len() - missing;
        self.pages.extend(free.drain(from..).rev());
        true
    }

    /// Sets the length after tokens were written to reserved pages.
    pub(crate) fn set_length(&mut self, tokens: usize) {
        debug_assert!(tokens.div_ceil(PAGE) <= self.pages.len());
        self.length = tokens;
    }

    /// Frees pages beyond the length.
    pub(crate) fn trim(&mut self) {
        let kept = self.length.div_ceil(PAGE).min(self.pages.len());
        self.free.lock().extend(self.pages.drain(kept..).rev());
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.truncate(0);
    }
}
