//! Keys and values in pages.

use crate::attention::PAGE;
use crate::buffer::Buffer;
use crate::device::Device;
use crate::error::Error;
use crate::matmul::GROUP;
use crate::places::Places;
use std::ops::Range;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// In f16.
    F16,
    /// In 8 bits, with f16 scales: of 32 dimensions of a key, and of a head's value.
    Q8,
}

/// Pages of keys and values of one layer.
#[derive(Debug)]
pub struct Cache {
    pub(crate) pages: Buffer<u8>,
    count: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) kv_type: KvType,
}

impl KvType {
    /// What a page takes of one head: bytes of levels of keys and of values, and 16-bit elements or scales of them.
    fn sizes(self, head_dim: usize) -> [[usize; 2]; 2] {
        match self {
            KvType::F16 => [[0, 0], [PAGE * head_dim; 2]],
            KvType::Q8 => [[PAGE * head_dim; 2], [PAGE * head_dim / GROUP, PAGE]],
        }
    }

    /// Bytes that a page takes of one layer.
    #[must_use]
    pub fn page_bytes(self, kv_heads: usize, head_dim: usize) -> usize {
        let [levels, halves] = self.sizes(head_dim);
        let halves: usize = halves.iter().sum();
        kv_heads * (levels.iter().sum::<usize>() + 2 * halves)
    }
}

impl Cache {
    /// Panics unless places are of so many pages as there are, or fewer.
    pub(crate) fn assert_has(&self, places: &Places) {
        assert!(places.page_count <= self.count, "pages of the cache");
    }

    /// Pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.count
    }

    fn page_bytes(&self) -> usize {
        self.kv_type.page_bytes(self.kv_heads, self.head_dim)
    }

    fn range(&self, page: u32) -> Range<usize> {
        let (page, bytes) = (page as usize, self.page_bytes());
        assert!(page < self.count, "a page of the cache");
        page * bytes..(page + 1) * bytes
    }

    /// The pieces of a page, in order: whether each is levels, and its bytes.
    fn pieces(&self) -> impl Iterator<Item = (bool, usize)> + use<> {
        let [levels, halves] = self.kv_type.sizes(self.head_dim);
        let of_head = [
            (true, levels[0]),
            (false, 2 * halves[0]),
            (true, levels[1]),
            (false, 2 * halves[1]),
        ];
        (0..self.kv_heads).flat_map(move |_| of_head)
    }
}

impl Device {
    /// Room for `count` pages of `kv_heads` heads of `head_dim` dimensions.
    ///
    /// # Errors
    /// If there is none.
    ///
    /// # Panics
    /// If there is no attention for such heads.
    pub fn cache(
        &self,
        count: usize,
        kv_heads: usize,
        head_dim: usize,
        kv_type: KvType,
    ) -> Result<Cache, Error> {
        assert!(Device::attends(head_dim), "there are kernels for the heads");
        Ok(Cache {
            pages: self.zeros(count * kv_type.page_bytes(kv_heads, head_dim))?,
            count,
            kv_heads,
            head_dim,
            kv_type,
        })
    }

    /// Appends what a page holds: of each head the keys and then the values, levels and 16-bit elements (or scales) apart, as
    /// the processor's cache has them.
    ///
    /// # Errors
    /// If it cannot be copied.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn read_page(
        &self,
        cache: &Cache,
        page: u32,
        levels: &mut Vec<u8>,
        halves: &mut Vec<u16>,
    ) -> Result<(), Error> {
        let range = cache.range(page);
        let mut bytes = vec![0; range.len()];
        self.read_range(&cache.pages, range, &mut bytes)?;
        let mut rest = bytes.as_slice();
        for (are_levels, len) in cache.pieces() {
            let (piece, after) = rest.split_at(len);
            if are_levels {
                levels.extend_from_slice(piece);
            } else {
                let (pairs, _) = piece.as_chunks::<2>();
                halves.extend(pairs.iter().map(|&pair| u16::from_le_bytes(pair)));
            }
            rest = after;
        }
        Ok(())
    }

    /// Fills a page with what [`Device::read_page`] gives of one.
    ///
    /// # Errors
    /// If it cannot be copied.
    ///
    /// # Panics
    /// If there is no such page, or what it is to hold has another length.
    pub fn write_page(
        &self,
        cache: &mut Cache,
        page: u32,
        mut levels: &[u8],
        mut halves: &[u16],
    ) -> Result<(), Error> {
        let range = cache.range(page);
        let mut bytes = Vec::with_capacity(range.len());
        for (are_levels, len) in cache.pieces() {
            if are_levels {
                let (piece, rest) = levels.split_at(len);
                bytes.extend_from_slice(piece);
                levels = rest;
            } else {
                let (piece, rest) = halves.split_at(len / 2);
                bytes.extend(piece.iter().flat_map(|half| half.to_le_bytes()));
                halves = rest;
            }
        }
        assert!(levels.is_empty() && halves.is_empty(), "one page");
        self.write_range(&bytes, &mut cache.pages, range)
    }

    /// Copies a page over another, on the device.
    ///
    /// # Errors
    /// If it cannot be copied.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn copy_page(&self, cache: &mut Cache, from: u32, to: u32) -> Result<(), Error> {
        let (from, to) = (cache.range(from), cache.range(to));
        self.copy_within(&mut cache.pages, from, to.start)
    }
}
