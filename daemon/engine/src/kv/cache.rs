//! The memory of the pages and where things lie in it.

use super::PAGE;
use super::sequence::{Copy, Pages, Sequence};
use andon_kernels::op::attention::key_index;
use std::ops::Range;
use std::sync::Arc;

/// What a page must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Layers with attention.
    pub layer_count: usize,
    /// Key/value heads of a layer.
    pub head_count: usize,
    /// Dimensions of a head, of keys and of values.
    pub head_dim: usize,
}

impl Geometry {
    /// f16 elements of a page's keys (or values) of one head.
    fn head_elements(&self) -> usize {
        PAGE * self.head_dim
    }

    /// f16 elements of a page.
    fn page_elements(&self) -> usize {
        self.layer_count * 2 * self.head_count * self.head_elements()
    }

    /// Bytes that one token takes.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        self.page_elements() / PAGE * size_of::<u16>()
    }
}

/// Every page, and who holds it.
#[derive(Debug)]
pub struct Cache {
    geometry: Geometry,
    data: Vec<u16>,
    page_count: usize,
    pages: Arc<Pages>,
}

impl Cache {
    /// A cache for `tokens` tokens, rounded up to whole pages; `None` if that many cannot be counted or allocated.
    ///
    /// With `remembers`, full pages stay after their sequence has gone, until their room is needed, and
    /// [`Cache::sequence_of`] finds them.
    #[must_use]
    pub fn new(geometry: Geometry, tokens: usize, remembers: bool) -> Option<Cache> {
        let page_count = tokens.div_ceil(PAGE);
        let elements = page_count.checked_mul(geometry.page_elements())?;
        if elements > isize::MAX as usize / size_of::<u16>() {
            return None;
        }
        let pages = u32::try_from(page_count).ok()?;
        // `vec!` aborts where there is not enough memory, so ask first, in a way that may fail; the black box keeps
        // the compiler from leaving out what nobody uses.
        let mut probe = Vec::<u16>::new();
        probe.try_reserve_exact(elements).ok()?;
        drop(std::hint::black_box(probe));
        // Zeroed memory comes untouched from the system: it is resident only once written.
        Some(Cache {
            geometry,
            data: vec![0; elements],
            page_count,
            pages: Pages::new(pages, remembers),
        })
    }

    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::new(Arc::clone(&self.pages))
    }

    /// A sequence that begins with as much of `tokens` as is remembered: whole pages, and never all of it.
    #[must_use]
    pub fn sequence_of(&self, tokens: &[u32]) -> Sequence {
        Sequence::beginning(Arc::clone(&self.pages), tokens)
    }

    /// A second sequence of the same tokens: full pages are shared, a begun one is copied. `None` if there is no
    /// page for the copy.
    #[must_use]
    pub fn fork(&mut self, sequence: &Sequence) -> Option<Sequence> {
        let (fork, copy) = sequence.fork()?;
        self.copy(copy);
        Some(fork)
    }

    /// Takes pages so that `sequence` can be appended to, up to `tokens` tokens in all; false, and nothing taken, if
    /// there are too few.
    pub(crate) fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> bool {
        let Some(copy) = sequence.reserve(tokens) else {
            return false;
        };
        self.copy(copy);
        true
    }

    fn copy(&mut self, copy: Option<Copy>) {
        if let Some(Copy { from, to }) = copy {
            let elements = self.geometry.page_elements();
            let from = from as usize * elements;
            self.data
                .copy_within(from..from + elements, to as usize * elements);
        }
    }

    /// Whether `sequence` was made by this cache.
    #[must_use]
    pub fn owns(&self, sequence: &Sequence) -> bool {
        sequence.belongs_to(&self.pages)
    }

    /// Tokens that all pages together hold.
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.page_count * PAGE
    }

    /// Tokens that the pages hold which no sequence does: free ones, and those kept in case they are wanted again.
    #[must_use]
    pub fn tokens_free(&self) -> usize {
        self.pages.available() * PAGE
    }

    /// What the pages hold.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn head_range(&self, page: u32, layer: usize, values: bool, head: usize) -> Range<usize> {
        let geometry = &self.geometry;
        let index = (layer * 2 + usize::from(values)) * geometry.head_count + head;
        let start = page as usize * geometry.page_elements() + index * geometry.head_elements();
        start..start + geometry.head_elements()
    }

    /// The keys of a page, in tiles.
    pub(crate) fn keys(&self, page: u32, layer: usize, head: usize) -> &[u16] {
        &self.data[self.head_range(page, layer, false, head)]
    }

    /// The values of a page, in rows.
    pub(crate) fn values(&self, page: u32, layer: usize, head: usize) -> &[u16] {
        &self.data[self.head_range(page, layer, true, head)]
    }

    /// Stores the keys and values of all heads of a layer at a position of a page.
    pub(crate) fn store(
        &mut self,
        page: u32,
        layer: usize,
        position: usize,
        keys: &[u16],
        values: &[u16],
    ) {
        let dim = self.geometry.head_dim;
        for (head, (key, value)) in keys
            .chunks_exact(dim)
            .zip(values.chunks_exact(dim))
            .enumerate()
        {
            let range = self.head_range(page, layer, false, head);
            let page_keys = &mut self.data[range];
            for (index, &element) in key.iter().enumerate() {
                page_keys[key_index(position, index, dim)] = element;
            }
            let range = self.head_range(page, layer, true, head);
            self.data[range][position * dim..][..dim].copy_from_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, Geometry, PAGE};

    const GEOMETRY: Geometry = Geometry {
        layer_count: 2,
        head_count: 3,
        head_dim: 4,
    };

    #[test]
    fn pages_are_taken_and_freed_whole() {
        let mut cache = Cache::new(GEOMETRY, 3 * PAGE - 1, false).expect("small");
        assert_eq!(cache.tokens_max(), 3 * PAGE);
        let mut first = cache.sequence();
        assert!(cache.reserve(&mut first, PAGE + 1));
        assert_eq!(cache.tokens_free(), PAGE);
        let mut second = cache.sequence();
        assert!(
            !cache.reserve(&mut second, PAGE + 1),
            "only one page is left"
        );
        assert_eq!(
            cache.tokens_free(),
            PAGE,
            "a refused reservation takes nothing"
        );
        first.append(&[7; PAGE + 1]);
        first.truncate(PAGE);
        assert_eq!(cache.tokens_free(), 2 * PAGE);
        drop(first);
        assert_eq!(cache.tokens_free(), 3 * PAGE);
    }

    #[test]
    fn more_than_there_is_memory_for_is_refused() {
        assert!(Cache::new(GEOMETRY, usize::MAX / 2, false).is_none());
        // No machine addresses 2^60 bytes, but they can be counted.
        let geometry = Geometry {
            head_dim: 1 << 30,
            ..GEOMETRY
        };
        let tokens = (1 << 60) / geometry.token_bytes();
        assert!(u32::try_from(tokens.div_ceil(PAGE)).is_ok());
        assert!(Cache::new(geometry, tokens, false).is_none());
    }

    #[test]
    fn stored_heads_are_found_again() {
        let mut cache = Cache::new(GEOMETRY, 2 * PAGE, false).expect("small");
        for position in 0..PAGE {
            let keys: Vec<u16> = (0..12)
                .map(|index| (position * 100 + index) as u16)
                .collect();
            let values: Vec<u16> = keys.iter().map(|key| key + 50).collect();
            cache.store(1, 1, position, &keys, &values);
        }
        let keys = cache.keys(1, 1, 2);
        assert_eq!(keys[super::key_index(17, 3, 4)], 17 * 100 + 8 + 3);
        assert_eq!(cache.values(1, 1, 2)[17 * 4 + 3], 17 * 100 + 8 + 3 + 50);
        assert!(cache.keys(0, 1, 2).iter().all(|&element| element == 0));
        assert!(cache.keys(1, 0, 2).iter().all(|&element| element == 0));
    }

    fn keys_of(cache: &Cache, page: u32) -> Vec<u16> {
        cache.keys(page, 1, 2).to_vec()
    }

    /// Appends `tokens` and writes keys made of each token and its position.
    fn write(cache: &mut Cache, sequence: &mut super::Sequence, tokens: &[u32]) {
        let length = sequence.len() + tokens.len();
        assert!(cache.reserve(sequence, length));
        for (position, &token) in (sequence.len()..).zip(tokens) {
            let page = sequence.pages()[position / PAGE];
            let keys = [token as u16 * 1000 + position as u16; 12];
            for layer in 0..2 {
                cache.store(page, layer, position % PAGE, &keys, &keys);
            }
        }
        sequence.append(tokens);
    }

    #[test]
    fn a_beginning_is_shared_and_what_is_idle_counts_as_free() {
        let mut cache = Cache::new(GEOMETRY, 4 * PAGE, true).expect("small");
        let tokens: Vec<u32> = (0..2 * PAGE as u32 + 5).map(|token| token % 9).collect();
        let mut first = cache.sequence_of(&tokens);
        assert_eq!(first.len(), 0);
        write(&mut cache, &mut first, &tokens);
        assert_eq!(cache.tokens_free(), PAGE);
        let second = cache.sequence_of(&tokens);
        assert_eq!(
            (second.len(), second.pages()),
            (2 * PAGE, &first.pages()[..2])
        );
        assert_eq!(cache.tokens_free(), PAGE, "nothing was taken");
        drop(first);
        assert_eq!(cache.tokens_free(), 2 * PAGE, "two pages are still held");
        drop(second);
        assert_eq!(cache.tokens_free(), 4 * PAGE);
        // At least one token is left to compute.
        assert_eq!(cache.sequence_of(&tokens[..2 * PAGE]).len(), PAGE);
        assert_eq!(cache.sequence_of(&tokens[..PAGE]).len(), 0);
        let mut other = tokens.clone();
        other[PAGE] += 1;
        assert_eq!(cache.sequence_of(&other).len(), PAGE);
        other[0] += 1;
        assert_eq!(cache.sequence_of(&other).len(), 0);
        // All pages can be had, and then nothing is remembered.
        let mut all = cache.sequence();
        assert!(cache.reserve(&mut all, 4 * PAGE));
        assert_eq!(cache.sequence_of(&tokens).len(), 0);
    }

    #[test]
    fn the_longest_unused_page_gives_way_and_held_ones_stay() {
        let mut cache = Cache::new(GEOMETRY, 3 * PAGE, true).expect("small");
        let prompt = |token: u32| vec![token; PAGE + 1];
        for token in [1, 2, 3] {
            let mut sequence = cache.sequence_of(&prompt(token));
            write(&mut cache, &mut sequence, &prompt(token)[..PAGE]);
        }
        let held = cache.sequence_of(&prompt(1));
        assert_eq!(held.len(), PAGE);
        let mut new = cache.sequence();
        assert!(cache.reserve(&mut new, PAGE));
        assert_eq!(cache.sequence_of(&prompt(2)).len(), 0, "it rested longest");
        assert_eq!(cache.sequence_of(&prompt(3)).len(), PAGE);
        assert!(!cache.reserve(&mut new, 3 * PAGE), "one page is held");
        assert_eq!(
            cache.sequence_of(&prompt(3)).len(),
            PAGE,
            "a refusal takes nothing"
        );
        assert!(cache.reserve(&mut new, 2 * PAGE));
        assert_eq!(cache.sequence_of(&prompt(1)).len(), PAGE);
    }

    #[test]
    fn equal_pages_become_one() {
        let mut cache = Cache::new(GEOMETRY, 6 * PAGE, true).expect("small");
        let tokens = vec![4; 2 * PAGE];
        let (mut first, mut second) = (cache.sequence(), cache.sequence());
        write(&mut cache, &mut first, &tokens);
        write(&mut cache, &mut second, &tokens);
        assert_eq!(first.pages(), second.pages());
        assert_eq!(cache.tokens_free(), 4 * PAGE);
    }

    #[test]
    fn a_shared_page_is_copied_before_it_is_written() {
        let mut cache = Cache::new(GEOMETRY, 6 * PAGE, true).expect("small");
        let tokens = vec![5; PAGE + 3];
        let mut first = cache.sequence();
        write(&mut cache, &mut first, &tokens);
        let mut fork = cache.fork(&first).expect("a page");
        assert_eq!(fork.pages()[0], first.pages()[0]);
        assert_ne!(fork.pages()[1], first.pages()[1]);
        assert_eq!(
            keys_of(&cache, fork.pages()[1]),
            keys_of(&cache, first.pages()[1])
        );
        let before = keys_of(&cache, first.pages()[1]);
        write(&mut cache, &mut fork, &[6]);
        assert_eq!(keys_of(&cache, first.pages()[1]), before);
        // Cut into the page that is known, and written anew.
        let known = first.pages()[0];
        let before = keys_of(&cache, known);
        first.truncate(10);
        assert_eq!(first.pages_missing(11), 1);
        write(&mut cache, &mut first, &[7]);
        assert_ne!(first.pages()[0], known);
        assert_eq!(keys_of(&cache, known), before);
        assert_eq!(
            keys_of(&cache, first.pages()[0])[super::key_index(9, 0, 4)],
            before[super::key_index(9, 0, 4)]
        );
        drop((first, fork));
        assert_eq!(cache.tokens_free(), 6 * PAGE);
    }
}
