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

    /// Whether all pages of some span are free.
    pub(super) fn has_whole_span(&self) -> bool {
        self.spans.contains(&WHOLE)
    }

    /// Spans all of whose pages are free.
    pub(super) fn whole_spans(&self) -> impl Iterator<Item = usize> + '_ {
        let spans = self.spans.iter().enumerate();
        spans.filter_map(|(span, &mask)| (mask == WHOLE).then_some(span))
    }

    /// Puts a page back.
    pub(super) fn put(&mut self, page: u32) {
        let page = page as usize;
        self.spans[page / SPAN] |= 1 << (page % SPAN);
        self.count += 1;
    }

    /// Takes a page to be the one numbered `index` of a sequence, after `previous`: the next one in memory if the two
    /// may share a span; else one of a span with room for those that follow; where there is none, the next one all the
    /// same, or the first of as many as there are. Low pages go first, so that little memory is touched.
    pub(super) fn take(&mut self, previous: Option<u32>, index: usize) -> Option<u32> {
        let place = index % SPAN;
        let next = previous
            .map(|previous| previous as usize + 1)
            .filter(|&next| !next.is_multiple_of(SPAN) && self.is_free(next));
        let page = next
            .filter(|&next| next % SPAN == place)
            .or_else(|| {
                let span = self.spans.iter().position(|&mask| mask == WHOLE)?;
                Some(span * SPAN + place)
            })
            .or(next)
            .or_else(|| self.longest_run())?;
        self.spans[page / SPAN] &= !(1 << (page % SPAN));
        self.count -= 1;
        u32::try_from(page).ok()
    }

    /// The first page of the longest run of free ones in a span.
    fn longest_run(&self) -> Option<usize> {
        let runs = self.spans.iter().map(|&mask| run(mask)).enumerate();
        // The last of equals is taken.
        let (span, (length, start)) = runs.rev().max_by_key(|&(_, (length, _))| length)?;
        (length > 0).then_some(span * SPAN + start)
    }

    pub(super) fn is_free(&self, page: usize) -> bool {
        let mask = self.spans.get(page / SPAN).copied().unwrap_or(0);
        mask >> (page % SPAN) & 1 == 1
    }
}

/// Length and first place of the longest run of bits in a mask.
fn run(mask: u8) -> (usize, usize) {
    let (mut starts, mut length) = (mask, 0);
    let mut longer = mask;
    while longer != 0 {
        starts = longer;
        length += 1;
        // Places from which one more is free.
        longer &= mask >> length;
    }
    (length, starts.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::{Free, SPAN, WHOLE, run};

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
    fn what_is_left_of_spans_is_given_in_runs() {
        let mut free = Free::new(2 * SPAN as u32);
        for _ in 0..2 * SPAN {
            free.take(None, 0).expect("a page");
        }
        for page in [0, 2, 5, 6] {
            free.put(page);
        }
        let mut pages = Vec::new();
        while take(&mut free, &mut pages).is_some() {}
        assert_eq!(pages, [5, 6, 0, 2]);
    }

    #[test]
    fn runs_are_found_in_every_mask() {
        for mask in 0..=WHOLE {
            let is_free = |place: usize| mask >> place & 1 == 1;
            let from = |start: usize| (start..SPAN).take_while(|&place| is_free(place)).count();
            let longest = (0..SPAN).map(from).max().expect("a place");
            let (length, start) = run(mask);
            assert_eq!(length, longest, "{mask:b}");
            assert!(mask == 0 || from(start) == longest, "{mask:b}");
        }
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
