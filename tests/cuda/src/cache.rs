//! Keys and values as the processor keeps them, and sequences that are somewhere among them.

use crate::Run;
use crate::data::{Draw, Random, scalar, values};
use andon_cuda::{Cache, KvType, PAGE, Places};
use andon_kernels::op::attention::{
    Keys, Values, key_groups, key_index, key_level_index, key_levels, key_scale_index,
};
use anyhow::{Result, ensure};

/// What one page holds: levels, and 16-bit elements or scales.
type Page = (Vec<u8>, Vec<u16>);

/// Pages of one layer, each in the order that the device gives them in.
pub(crate) struct HostCache {
    pub(crate) kv_type: KvType,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) pages: Vec<Page>,
}

impl HostCache {
    pub(crate) fn new(
        kv_type: KvType,
        count: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> HostCache {
        let halves = match kv_type {
            KvType::F16 => 2 * PAGE * head_dim,
            KvType::Q8 => PAGE * (key_groups(head_dim) + 1),
        };
        let levels = match kv_type {
            KvType::F16 => 0,
            KvType::Q8 => 2 * PAGE * head_dim,
        };
        let page = (vec![0; kv_heads * levels], vec![0; kv_heads * halves]);
        HostCache {
            kv_type,
            kv_heads,
            head_dim,
            pages: vec![page; count],
        }
    }

    /// Pages that hold something at every position.
    pub(crate) fn drawn(random: &mut Random, mut empty: HostCache, draw: Draw) -> HostCache {
        let head_dim = empty.head_dim;
        for page in 0..empty.pages.len() {
            for head in 0..empty.kv_heads {
                let drawn = values(random, head_dim, 2 * PAGE, draw);
                for (position, pair) in drawn.chunks_exact(2 * head_dim).enumerate() {
                    let (key, value) = pair.split_at(head_dim);
                    empty.store(page, head, position, Some(key), Some(value));
                }
            }
        }
        empty
    }

    /// Keeps a key and a value of a head.
    pub(crate) fn store(
        &mut self,
        page: usize,
        head: usize,
        position: usize,
        key: Option<&[f32]>,
        value: Option<&[f32]>,
    ) {
        let (table, dim) = (scalar(), self.head_dim);
        let (levels, halves) = &mut self.pages[page];
        let levels_of_head = levels.len() / self.kv_heads;
        let levels = &mut levels[head * levels_of_head..][..levels_of_head];
        let halves_of_head = halves.len() / self.kv_heads;
        let halves = &mut halves[head * halves_of_head..][..halves_of_head];
        match self.kv_type {
            KvType::F16 => {
                let mut row = vec![0; dim];
                if let Some(key) = key {
                    table.to_half(key, &mut row);
                    for (index, &half) in row.iter().enumerate() {
                        halves[key_index(position, index, dim)] = half;
                    }
                }
                if let Some(value) = value {
                    table.to_half(value, &mut row);
                    halves[(PAGE + position) * dim..][..dim].copy_from_slice(&row);
                }
            }
            KvType::Q8 => {
                let mut row = vec![0i8; key_levels(dim)];
                let mut scales = vec![0; key_groups(dim)];
                if let Some(key) = key {
                    table.quantize_key(key, &mut row, &mut scales);
                    for (index, &level) in row.iter().enumerate() {
                        levels[key_level_index(position, index, dim)] = level as u8;
                    }
                    for (group, &scale) in scales.iter().enumerate() {
                        halves[key_scale_index(position, group, dim)] = scale;
                    }
                }
                if let Some(value) = value {
                    let scale = table.quantize_head(value, &mut row);
                    halves[PAGE * key_groups(dim) + position] = scale;
                    for (to, &level) in levels[(PAGE + position) * dim..].iter_mut().zip(&row) {
                        *to = level as u8;
                    }
                }
            }
        }
    }

    /// Levels of every page, signed, for [`HostCache::head`].
    pub(crate) fn levels(&self) -> Vec<Vec<i8>> {
        let signed = |(levels, _): &Page| levels.iter().map(|&level| level as i8).collect();
        self.pages.iter().map(signed).collect()
    }

    /// The keys and values of a head; `levels` are those of all pages.
    pub(crate) fn head<'a>(
        &'a self,
        levels: &'a [Vec<i8>],
        page: usize,
        head: usize,
    ) -> (Keys<'a>, Values<'a>) {
        let halves = &self.pages[page].1;
        let of_head = halves.len() / self.kv_heads;
        let halves = &halves[head * of_head..][..of_head];
        if self.kv_type == KvType::F16 {
            let (keys, values) = halves.split_at(PAGE * self.head_dim);
            return (Keys::F16(keys), Values::F16(values));
        }
        let levels = &levels[page];
        let of_head = levels.len() / self.kv_heads;
        let levels = &levels[head * of_head..][..of_head];
        let (keys, values) = levels.split_at(PAGE * self.head_dim);
        let (key_scales, value_scales) = halves.split_at(PAGE * key_groups(self.head_dim));
        (Keys::Q8(keys, key_scales), Values::Q8(values, value_scales))
    }

    /// The same on the device.
    pub(crate) fn upload(&self, run: &Run<'_>) -> Result<Cache> {
        let count = self.pages.len();
        let mut cache = run
            .device
            .cache(count, self.kv_heads, self.head_dim, self.kv_type)?;
        for (number, (levels, halves)) in self.pages.iter().enumerate() {
            run.device
                .write_page(&mut cache, number as u32, levels, halves)?;
        }
        Ok(cache)
    }

    /// Fails unless the device has the same.
    pub(crate) fn compare(&self, run: &Run<'_>, cache: &Cache, what: &str) -> Result<()> {
        for (number, page) in self.pages.iter().enumerate() {
            let (mut levels, mut halves) = (Vec::new(), Vec::new());
            run.device
                .read_page(cache, number as u32, &mut levels, &mut halves)?;
            ensure!(
                (&levels, &halves) == (&page.0, &page.1),
                "{what}: page {number} of the cache differs"
            );
        }
        Ok(())
    }
}

/// A sequence: new columns, their first position, its pages.
pub(crate) struct Sequence {
    pub(crate) columns: usize,
    pub(crate) position: usize,
    pub(crate) pages: Vec<u32>,
}

/// Sequences of so many columns from these positions on, with pages in any order; and how many pages that are.
pub(crate) fn sequences(random: &mut Random, of: &[(usize, usize)]) -> (Vec<Sequence>, usize) {
    let counts: Vec<usize> = of
        .iter()
        .map(|(columns, position)| (columns + position).div_ceil(PAGE))
        .collect();
    let count = counts.iter().sum();
    let mut pages: Vec<u32> = (0..count as u32).collect();
    for index in (1..pages.len()).rev() {
        pages.swap(index, random.below(index + 1));
    }
    let mut rest = pages.into_iter();
    let sequences = of.iter().zip(counts);
    let sequences = sequences.map(|(&(columns, position), count)| Sequence {
        columns,
        position,
        pages: rest.by_ref().take(count).collect(),
    });
    (sequences.collect(), count)
}

/// Positions that the longest of the sequences has.
pub(crate) fn reach(sequences: &[Sequence]) -> usize {
    let ends = sequences
        .iter()
        .map(|sequence| sequence.position + sequence.columns);
    ends.max().unwrap_or(0)
}

/// The columns of all sequences, on the device.
pub(crate) fn place(
    run: &Run<'_>,
    sequences: &[Sequence],
    reach: usize,
    places: &mut Places,
) -> Result<()> {
    let runs: Vec<andon_cuda::Run<'_>> = sequences
        .iter()
        .map(|sequence| andon_cuda::Run {
            columns: sequence.columns,
            position: sequence.position,
            pages: &sequence.pages,
        })
        .collect();
    run.device.place(&runs, reach, places)?;
    Ok(())
}
