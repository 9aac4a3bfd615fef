//! One sequence's positions in the cache, and the pages that no sequence needs.

use super::free::Free;
use super::name::PageName;
use super::prefix::{Prefixes, Worthy};
use super::{PAGE, SPAN};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of how many spans the pages of one are free at most that could be remembered, so that sequences get neighbours.
const SPARE_OF: usize = 8;

/// Who holds which page.
#[derive(Debug)]
struct Ledger {
    free: Free,
    /// Sequences that hold each page.
    holders: Vec<u32>,
    prefixes: Prefixes,
    /// Whether full pages are kept for sequences that begin the same.
    remembers: bool,
    /// Counts releases: the clock of the least recent use.
    clock: u64,
    /// How often all was forgotten.
    generation: u64,
}

impl Ledger {
    fn available(&self) -> usize {
        self.free.count() + self.prefixes.idle_count()
    }

    /// Sees to it that `count` pages are free; false if there are too few.
    ///
    /// If remembered pages gave way one at a time, a cache that has filled up once would have no neighbours to give; so
    /// where no span is free, more of them do.
    fn make_room(&mut self, count: usize) -> bool {
        if self.available() < count {
            return false;
        }
        let wanted = if count == 0 || self.free.has_whole_span() {
            count
        } else {
            count + self.holders.len() / SPAN / SPARE_OF * SPAN
        };
        while self.free.count() < wanted {
            let Some(page) = self.prefixes.evict() else {
                break;
            };
            self.free.put(page);
        }
        self.free.count() >= count
    }

    /// A free page, to be the one after `pages`.
    fn take(&mut self, pages: &[u32]) -> Option<u32> {
        let page = self.free.take(pages.last().copied(), pages.len())?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    fn hold(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders += 1;
        if *holders == 1 {
            self.prefixes.wake(page);
        }
    }

    /// Lets go of pages, the last first.
    fn release(&mut self, pages: impl Iterator<Item = u32>) {
        self.clock += 1;
        for page in pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 && !self.prefixes.rest(page, self.clock) {
                self.free.put(page);
            }
        }
    }

    /// The pages that a sequence holds or that are remembered.
    fn taken(&self) -> Vec<u32> {
        let pages = 0..u32::try_from(self.holders.len()).unwrap_or(u32::MAX);
        pages
            .filter(|&page| !self.free.is_free(page as usize))
            .collect()
    }

    /// Whether one sequence alone holds the page and it is not in the tree.
    fn is_writable(&self, page: u32) -> bool {
        self.holders[page as usize] == 1 && !self.prefixes.contains(page)
    }
}

/// Which page of which text.
#[derive(Debug)]
pub(crate) struct Named {
    /// The name of the page before it, or of the empty text.
    pub(crate) parent: PageName,
    pub(crate) name: PageName,
    /// Its number in the text, from 0.
    pub(crate) depth: usize,
    pub(crate) tokens: Box<[u32]>,
}

/// What a cache remembers, to be forgotten from any thread.
#[derive(Clone, Debug)]
pub struct Remembered(pub(super) Arc<Pages>);

impl Remembered {
    /// Has the cache remember nothing of what sequences had so far; those that there are are not remembered either.
    pub fn forget(&self) {
        let mut ledger = self.0.lock();
        ledger.generation += 1;
        for page in ledger.prefixes.emptied() {
            ledger.free.put(page);
        }
    }
}

/// The pages of one cache, shared between it and its sequences.
#[derive(Debug)]
pub(super) struct Pages {
    ledger: Mutex<Ledger>,
}

impl Pages {
    /// Pages `0..count`, all free. With `remembers`, full pages stay known after their sequence has gone.
    pub(super) fn new(count: u32, remembers: bool) -> Arc<Pages> {
        Arc::new(Pages {
            ledger: Mutex::new(Ledger {
                free: Free::new(count),
                holders: vec![0; count as usize],
                prefixes: Prefixes::new(count),
                remembers,
                clock: 0,
                generation: 0,
            }),
        })
    }

    /// Gives the pages names that are remembered from now on.
    pub(super) fn set_root(&self, root: PageName) {
        self.lock().prefixes.set_root(root);
    }

    /// The pages that a sequence holds or that are remembered.
    pub(super) fn taken(&self) -> Vec<u32> {
        self.lock().taken()
    }

    /// Has idle pages be worth keeping that are not yet, the last used before others.
    pub(super) fn all_found(&self, most: usize) {
        self.lock().prefixes.all_found(most);
    }

    /// The next page that is worth keeping, and which it is.
    pub(super) fn next_worthy(&self) -> Option<(Worthy, Named)> {
        let mut ledger = self.lock();
        let prefixes = &mut ledger.prefixes;
        let worthy = prefixes.next_worthy()?;
        let (above, tokens) = prefixes.place(worthy.page)?;
        let named = Named {
            parent: prefixes.name(above)?,
            name: prefixes.name(Some(worthy.page))?,
            depth: prefixes.depth(worthy.page),
            tokens: tokens.into(),
        };
        Some((worthy, named))
    }

    /// Forgets what no sequence holds, and says which spans are free then.
    pub(super) fn shed(&self) -> Vec<usize> {
        let mut ledger = self.lock();
        while let Some(page) = ledger.prefixes.evict() {
            ledger.free.put(page);
        }
        ledger.free.whole_spans().collect()
    }

    /// Pages that a sequence could take: those free and those kept only in case they are wanted again.
    pub(super) fn available(&self) -> usize {
        self.lock().available()
    }

    /// Pages that nobody holds and that hold nothing worth remembering.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.lock().free.count()
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Every critical section leaves the ledger whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page whose content must be copied before the sequence may append to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) from: u32,
    pub(super) to: u32,
}

/// The cached positions of one sequence of tokens. Dropping it lets go of its pages.
///
/// Pages may be held by several sequences; only positions after its tokens are written through a sequence, and
/// only in pages that it alone holds.
#[derive(Debug)]
pub struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<u32>,
    /// Leading pages that are known to the cache.
    remembered: usize,
    /// How often all had been forgotten when it began.
    generation: u64,
    owner: Arc<Pages>,
}

impl Sequence {
    pub(super) fn new(owner: Arc<Pages>) -> Sequence {
        let generation = owner.lock().generation;
        Sequence {
            tokens: Vec::new(),
            pages: Vec::new(),
            remembered: 0,
            generation,
            owner,
        }
    }

    /// A sequence of the longest beginning of `tokens` whose pages are known: whole pages, and never all of `tokens`,
    /// since only a token that is computed has logits.
    pub(super) fn beginning(owner: Arc<Pages>, tokens: &[u32]) -> Sequence {
        let mut sequence = Sequence::new(owner);
        let most = tokens.len().saturating_sub(1) / PAGE;
        let mut ledger = sequence.owner.lock();
        for tokens in tokens.chunks_exact(PAGE).take(most) {
            let above = sequence.pages.last().copied();
            let Some(page) = ledger.prefixes.find(above, tokens) else {
                break;
            };
            ledger.hold(page);
            ledger.prefixes.found(page);
            sequence.pages.push(page);
            sequence.tokens.extend_from_slice(tokens);
        }
        sequence.generation = ledger.generation;
        drop(ledger);
        sequence.remembered = sequence.pages.len();
        sequence
    }

    /// Goes on with as much of `text`, which it has the beginning of, as the page that is known to begin most like what comes
    /// next has, where it ends with a page and that one is known; never to the end of `text`. That page is then held like a
    /// begun one, and must be copied before it is written.
    pub(super) fn lengthen(&mut self, text: &[u32]) {
        let full = self.tokens.len() / PAGE;
        let rest = text.get(self.tokens.len()..text.len().saturating_sub(1));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
            return;
        };
        if !self.tokens.len().is_multiple_of(PAGE)
            || self.remembered < full
            || self.pages.len() > full
        {
            return;
        }
        let mut ledger = self.owner.lock();
        if ledger.generation != self.generation {
            return;
        }
        let above = self.pages.last().copied();
        if let Some((page, alike)) = ledger.prefixes.closest(above, rest) {
            ledger.hold(page);
            self.pages.push(page);
            self.tokens.extend_from_slice(&rest[..alike]);
        }
    }

    /// The names of its pages, as far as they are remembered and have some.
    pub(crate) fn names(&self) -> Vec<PageName> {
        let ledger = self.owner.lock();
        let known = &self.pages[..self.remembered.min(self.pages.len())];
        known
            .iter()
            .map_while(|&page| ledger.prefixes.name(Some(page)))
            .collect()
    }

    /// The name of the page that its tokens end with, or of the empty text; `None` if they end within a page, or it has no
    /// name.
    pub(crate) fn end(&self) -> Option<PageName> {
        let full = self.tokens.len() / PAGE;
        if !self.tokens.len().is_multiple_of(PAGE) || self.remembered < full {
            return None;
        }
        let last = full.checked_sub(1).map(|last| self.pages[last]);
        let ledger = self.owner.lock();
        // What it holds was forgotten with all that was before.
        if ledger.generation != self.generation {
            return None;
        }
        ledger.prefixes.name(last)
    }

    /// A sequence of the same tokens that holds the same full pages, and a page of its own for the rest, whose
    /// content must be copied there; `None` if no page can be had.
    pub(super) fn fork(&self) -> Option<(Sequence, Option<Copy>)> {
        let mut fork = Sequence::new(Arc::clone(&self.owner));
        let mut ledger = self.owner.lock();
        let full = self.tokens.len() / PAGE;
        let is_begun = !self.tokens.len().is_multiple_of(PAGE);
        if is_begun && !ledger.make_room(1) {
            return None;
        }
        for &page in &self.pages[..full] {
            ledger.hold(page);
            fork.pages.push(page);
        }
        let own = is_begun.then(|| ledger.take(&fork.pages)).flatten();
        drop(ledger);
        let copy = own.map(|to| Copy {
            from: self.pages[full],
            to,
        });
        fork.pages.extend(own);
        fork.tokens.extend_from_slice(&self.tokens);
        fork.remembered = self.remembered;
        fork.generation = self.generation;
        Some((fork, copy))
    }

    /// Number of cached tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Forgets all but the first `tokens` tokens; keeps everything if there are no more than that.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        self.remembered = self.remembered.min(self.tokens.len() / PAGE);
        self.trim();
    }

    /// The pages in order of position.
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Whether this sequence's pages are those of the cache that `owner` belongs to.
    pub(super) fn belongs_to(&self, owner: &Arc<Pages>) -> bool {
        Arc::ptr_eq(&self.owner, owner)
    }

    /// The page that the next token goes to, if it is begun and must not be written.
    fn shared_tail(&self, ledger: &Ledger) -> Option<u32> {
        if self.tokens.len().is_multiple_of(PAGE) {
            return None;
        }
        let page = self.pages.get(self.tokens.len() / PAGE).copied()?;
        (!ledger.is_writable(page)).then_some(page)
    }

    /// Pages that holding `tokens` tokens would take beyond those it has.
    pub(crate) fn pages_missing(&self, tokens: usize) -> usize {
        let copied = self.shared_tail(&self.owner.lock()).is_some();
        tokens.div_ceil(PAGE).saturating_sub(self.pages.len()) + usize::from(copied)
    }

    /// Takes pages for `tokens` tokens in all, and one in place of a begun page that must not be written; its content
    /// must then be copied. `None`, and nothing taken, if there are too few.
    pub(super) fn reserve(&mut self, tokens: usize) -> Option<Option<Copy>> {
        let mut ledger = self.owner.lock();
        let shared = self.shared_tail(&ledger);
        let missing = tokens.div_ceil(PAGE).saturating_sub(self.pages.len());
        if !ledger.make_room(missing + usize::from(shared.is_some())) {
            return None;
        }
        let copy = shared.and_then(|from| {
            let index = self.tokens.len() / PAGE;
            let to = ledger.take(&self.pages[..index])?;
            self.pages[index] = to;
            ledger.release(std::iter::once(from));
            Some(Copy { from, to })
        });
        for _ in 0..missing {
            let page = ledger.take(&self.pages)?;
            self.pages.push(page);
        }
        // Memory for tokens is taken with their pages, so that appending takes none.
        self.tokens
            .reserve(self.pages.len() * PAGE - self.tokens.len());
        Some(copy)
    }

    /// Cuts to the first `tokens` tokens, none of which will be taken back: what [`Sequence::append`] left for that to be
    /// settled is done.
    pub(crate) fn keep(&mut self, tokens: usize) {
        self.truncate(tokens);
        self.remember(self.tokens.len());
    }

    /// Appends tokens that were written to reserved pages; the last `guessed` of them may be taken back.
    pub(crate) fn append(&mut self, tokens: &[u32], guessed: usize) {
        self.tokens.extend_from_slice(tokens);
        debug_assert!(self.tokens.len().div_ceil(PAGE) <= self.pages.len());
        self.remember(self.tokens.len().saturating_sub(guessed));
    }

    /// Pages that the first `tokens` tokens fill become known, if the cache remembers; where it knows a page of the same
    /// tokens already, that one is held instead.
    fn remember(&mut self, tokens: usize) {
        let full = tokens / PAGE;
        if self.remembered >= full {
            return;
        }
        let mut ledger = self.owner.lock();
        if !ledger.remembers || ledger.generation != self.generation {
            return;
        }
        for (index, tokens) in self
            .tokens
            .chunks_exact(PAGE)
            .enumerate()
            .take(full)
            .skip(self.remembered)
        {
            let above = index.checked_sub(1).map(|above| self.pages[above]);
            let page = self.pages[index];
            match ledger.prefixes.find(above, tokens) {
                None => ledger.prefixes.insert(page, above, tokens),
                Some(known) if known == page => {}
                Some(known) => {
                    ledger.hold(known);
                    ledger.release(std::iter::once(page));
                    self.pages[index] = known;
                }
            }
        }
        drop(ledger);
        self.remembered = full;
    }

    /// Lets go of pages beyond the length.
    pub(crate) fn trim(&mut self) {
        let kept = self.tokens.len().div_ceil(PAGE).min(self.pages.len());
        if kept < self.pages.len() {
            self.owner.lock().release(self.pages.drain(kept..).rev());
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.truncate(0);
    }
}
