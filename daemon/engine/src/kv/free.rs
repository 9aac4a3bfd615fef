//! Pages that nobody holds and nobody remembers, given out so that a sequence's neighbours are neighbours in memory.
//!
//! Invariant: a page is given out once before it is put back, and `count` is the number of pages marked free.

use super::SPAN;

/// Free pages, a mask for each span of [`SPAN`].
#[derive(Debug)]
pub(super) struct Free {
    spans: Vec<u8>,
    count: usize,
}

/// The mask of a span that is all free.
const WHOLE: u8 = (1 << SPAN) - 1;

const _: () = assert!(SPAN < 8, "a mask is a byte");

impl Free {
    /// Pages `0..count`.
    pub(super) fn new(count: u32) -> Free {
        let count = count as usize;
        let mut spans = vec![WHOLE; count / SPAN];
        if !count.is_multiple_of(SPAN) {
            spans.push((1 << (count % SPAN)) - 1);
        }
        Free { spans, count }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Puts a page back.
    pub(super) fn put(&mut self, page: u32) {
        let page = page as usize;
        self.spans[page / SPAN] |= 1 << (page % SPAN);
        self.count += 1;
    }

    /// Takes a page to be the one numbered `index` of a sequence, after `previous`: the next one in memory if the two
    /// may share a span, otherwise one with room for those that follow. Low pages go first, so that little memory is
    /// touched.
    pub(super) fn take(&mut self, previous: Option<u32>, index: usize) -> Option<u32> {
        let place = index % SPAN;
        let next = previous
            .filter(|_| place > 0)
            .map(|previous| previous as usize + 1)
            .filter(|&next| next % SPAN == place && self.is_free(next));
        let page = match next {
            Some(next) => next,
            None => match self.spans.iter().position(|&mask| mask == WHOLE) {
                Some(span) => span * SPAN + place,
                None => {
                    let span = self.spans.iter().position(|&mask| mask != 0)?;
                    span * SPAN + self.spans[span].trailing_zeros() as usize
                }
            },
        };
        self.spans[page / SPAN] &= !(1 << (page % SPAN));
        self.count -= 1;
        u32::try_from(page).ok()
    }

    fn is_free(&self, page: usize) -> bool {
        let mask = self.spans.get(page / SPAN).copied().unwrap_or(0);
        mask >> (page % SPAN) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::{Free, SPAN};

    fn take(free: &mut Free, pages: &mut Vec<u32>) -> Option<u32> {
        let page = free.take(pages.last().copied(), pages.len())?;
        pages.push(page);
        Some(page)
    }

    #[test]
    fn sequences_that_grow_in_turn_get_neighbours() {
        let mut free = Free::new(4 * SPAN as u32);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..2 * SPAN {
            take(&mut free, &mut first).expect("a page");
            take(&mut free, &mut second).expect("a page");
        }
        for pages in [first, second] {
            for span in pages.chunks(SPAN) {
                assert!(span[0].is_multiple_of(SPAN as u32));
                assert!(span.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            }
        }
        assert_eq!((free.count(), free.take(None, 0)), (0, None));
    }

    #[test]
    fn every_page_is_given_once_whatever_the_order() {
        let count = 3 * SPAN as u32 + 1;
        let mut free = Free::new(count);
        let mut taken: Vec<u32> = (0..count as usize)
            .map(|index| free.take(Some(7), index * 3).expect("a page"))
            .collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..count).collect::<Vec<_>>());
        free.put(5);
        assert_eq!(free.count(), 1);
        assert_eq!(free.take(Some(1), 2), Some(5));
        assert_eq!(free.take(None, 0), None);
    }

    #[test]
    fn low_pages_go_first() {
        let mut free = Free::new(3 * SPAN as u32);
        let mut pages = Vec::new();
        for page in 0..SPAN as u32 {
            assert_eq!(take(&mut free, &mut pages), Some(page));
        }
        for &page in pages.iter().rev() {
            free.put(page);
        }
        assert_eq!(free.take(None, 0), Some(0));
    }
}
