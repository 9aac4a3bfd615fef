//! The memory of the pages and where things lie in it.

use super::PAGE;
use super::sequence::{FreePages, Sequence};
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

/// Every page, and which of them are free.
#[derive(Debug)]
pub struct Cache {
    geometry: Geometry,
    data: Vec<u16>,
    page_count: usize,
    free: Arc<FreePages>,
}

impl Cache {
    /// A cache for `tokens` tokens, rounded up to whole pages; `None` if that many cannot be counted or allocated.
    #[must_use]
    pub fn new(geometry: Geometry, tokens: usize) -> Option<Cache> {
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
            free: FreePages::new(pages),
        })
    }

    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::new(Arc::clone(&self.free))
    }

    /// Whether `sequence` was made by this cache.
    #[must_use]
    pub fn owns(&self, sequence: &Sequence) -> bool {
        sequence.belongs_to(&self.free)
    }

    /// Tokens that all pages together hold.
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.page_count * PAGE
    }

    /// Tokens that the free pages hold.
    #[must_use]
    pub fn tokens_free(&self) -> usize {
        self.free.count() * PAGE
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
        let cache = Cache::new(GEOMETRY, 3 * PAGE - 1).expect("small");
        assert_eq!(cache.tokens_max(), 3 * PAGE);
        let mut first = cache.sequence();
        assert!(first.reserve(PAGE + 1));
        assert_eq!(cache.tokens_free(), PAGE);
        let mut second = cache.sequence();
        assert!(!second.reserve(PAGE + 1), "only one page is left");
        assert_eq!(
            cache.tokens_free(),
            PAGE,
            "a refused reservation takes nothing"
        );
        first.set_length(PAGE + 1);
        first.truncate(PAGE);
        assert_eq!(cache.tokens_free(), 2 * PAGE);
        drop(first);
        assert_eq!(cache.tokens_free(), 3 * PAGE);
    }

    #[test]
    fn more_than_there_is_memory_for_is_refused() {
        assert!(Cache::new(GEOMETRY, usize::MAX / 2).is_none());
        // No machine addresses 2^60 bytes, but they can be counted.
        let geometry = Geometry {
            head_dim: 1 << 30,
            ..GEOMETRY
        };
        let tokens = (1 << 60) / geometry.token_bytes();
        assert!(u32::try_from(tokens.div_ceil(PAGE)).is_ok());
        assert!(Cache::new(geometry, tokens).is_none());
    }

    #[test]
    fn stored_heads_are_found_again() {
        let mut cache = Cache::new(GEOMETRY, 2 * PAGE).expect("small");
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
}
