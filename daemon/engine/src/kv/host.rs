//! Pages in this machine's memory.
//!
//! Invariant: the places of two pages, layers, heads, or of keys and values share no element.

use super::cache::{Geometry, KvType};
use super::memory::{Memory, zeros};
use super::sequence::Copy;
use super::{PAGE, SPAN};
use andon_kernels::Table;
use andon_kernels::op::attention::{
    Keys, TILE, Values, key_groups, key_index, key_level_index, key_levels, key_scale_index,
};
use std::ops::Range;

/// The content of pages, for a backend that computes here.
#[derive(Debug)]
pub(crate) struct HostPages {
    geometry: Geometry,
    /// 8-bit levels, span by span.
    levels: Memory<i8>,
    /// f16 elements, or the levels' scales, span by span.
    pub(super) halves: Memory<u16>,
    /// One token's keys or values in the form they are kept in.
    row: Row,
}

/// All heads of a token.
#[derive(Debug)]
struct Row {
    levels: Vec<i8>,
    halves: Vec<u16>,
}

/// Where the keys, or the values, of a head are among the levels and the halves.
fn range(
    geometry: &Geometry,
    page: u32,
    layer: usize,
    values: bool,
    head: usize,
) -> (Range<usize>, Range<usize>) {
    let each = geometry.page();
    let (start, length) = geometry.head(layer, values, head);
    let (span, place) = (page as usize / SPAN, page as usize % SPAN);
    let at =
        |each: usize, start: usize, length: usize| (span * each + start) * SPAN + place * length;
    let levels = at(each.levels, start.levels, length.levels);
    let halves = at(each.halves, start.halves, length.halves);
    (
        levels..levels + length.levels,
        halves..halves + length.halves,
    )
}

impl HostPages {
    /// Room for `count` pages; `None` if that many cannot be counted or allocated.
    pub(super) fn new(geometry: Geometry, count: usize) -> Option<HostPages> {
        let page = geometry.page();
        let room = count.checked_next_multiple_of(SPAN)?;
        let levels = room.checked_mul(page.levels)?;
        let halves = room.checked_mul(page.halves)?;
        let heads = geometry.head_count;
        Some(HostPages {
            levels: Memory::zeros(levels)?,
            halves: Memory::zeros(halves)?,
            row: Row {
                levels: zeros(heads * key_levels(geometry.head_dim))?,
                halves: zeros(heads * geometry.head_dim.max(key_groups(geometry.head_dim)))?,
            },
            geometry,
        })
    }

    /// Copies all of a page into another.
    pub(super) fn copy(&mut self, Copy { from, to }: Copy) {
        let geometry = self.geometry;
        for layer in 0..geometry.layer_count {
            for values in [false, true] {
                for head in 0..geometry.head_count {
                    let place = |page| range(&geometry, page, layer, values, head);
                    let ((levels, halves), (to_levels, to_halves)) = (place(from), place(to));
                    self.levels.copy_within(levels, to_levels.start);
                    self.halves.copy_within(halves, to_halves.start);
                }
            }
        }
    }

    /// Gives the memory of a span back to the system, which has it until it is written again.
    pub(super) fn give_back(&mut self, span: usize) {
        let page = self.geometry.page();
        let of = |each: usize| span * SPAN * each..(span + 1) * SPAN * each;
        andon_os::give_back(&mut self.levels[of(page.levels)]);
        andon_os::give_back(&mut self.halves[of(page.halves)]);
    }

    /// The content of a page, in an order that does not depend on where the page is: `[layer][KV head][keys, values]`, first all
    /// levels, then all f16 elements, little-endian.
    pub(super) fn export(&self, page: u32) -> Vec<u8> {
        let mut content = Vec::with_capacity(self.geometry.token_bytes() * PAGE);
        for (levels, _) in self.parts(page) {
            content.extend(
                self.levels[levels]
                    .iter()
                    .map(|level| level.cast_unsigned()),
            );
        }
        for (_, halves) in self.parts(page) {
            let halves = &self.halves[halves];
            let start = content.len();
            content.resize(start + size_of_val(halves), 0);
            let (places, _) = content[start..].as_chunks_mut::<2>();
            for (place, half) in places.iter_mut().zip(halves) {
                *place = half.to_le_bytes();
            }
        }
        content
    }

    /// Fills a page with content that [`HostPages::export`] gave, which `source` gives piece by piece. If it fails, the page
    /// holds nothing of use.
    pub(super) fn import<E>(
        &mut self,
        page: u32,
        mut source: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = Vec::new();
        for (levels, _) in self.parts(page) {
            bytes.resize(levels.len(), 0);
            source(&mut bytes)?;
            for (level, byte) in self.levels[levels].iter_mut().zip(&bytes) {
                *level = byte.cast_signed();
            }
        }
        for (_, halves) in self.parts(page) {
            bytes.resize(halves.len() * size_of::<u16>(), 0);
            source(&mut bytes)?;
            let (places, _) = bytes.as_chunks::<2>();
            for (half, place) in self.halves[halves].iter_mut().zip(places) {
                *half = u16::from_le_bytes(*place);
            }
        }
        Ok(())
    }

    /// Where the keys and the values of each head of each layer of a page are.
    pub(super) fn parts(
        &self,
        page: u32,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let geometry = self.geometry;
        let heads = 0..geometry.layer_count * geometry.head_count;
        heads.flat_map(move |index| {
            let (layer, head) = (index / geometry.head_count, index % geometry.head_count);
            [false, true].map(|values| range(&geometry, page, layer, values, head))
        })
    }

    /// Whether keys and values are in 8 bits.
    pub(crate) fn is_quantized(&self) -> bool {
        self.geometry.kv_type == KvType::Q8
    }

    /// The keys and values of a head in a page.
    pub(crate) fn head(&self, page: u32, layer: usize, head: usize) -> (Keys<'_>, Values<'_>) {
        let (key_levels, key_halves) = range(&self.geometry, page, layer, false, head);
        let (value_levels, value_halves) = range(&self.geometry, page, layer, true, head);
        let (keys, values) = (&self.halves[key_halves], &self.halves[value_halves]);
        match self.geometry.kv_type {
            KvType::F16 => (Keys::F16(keys), Values::F16(values)),
            KvType::Q8 => (
                Keys::Q8(&self.levels[key_levels], keys),
                Values::Q8(&self.levels[value_levels], values),
            ),
        }
    }

    /// Stores the keys and values of all heads of a layer at a position of a page.
    pub(crate) fn store(
        &mut self,
        table: &Table,
        page: u32,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let dim = self.geometry.head_dim;
        match self.geometry.kv_type {
            KvType::F16 => {
                let row = &mut self.row.halves;
                table.to_half(keys, row);
                for (head, key) in row.chunks_exact(dim).enumerate() {
                    let (_, range) = range(&self.geometry, page, layer, false, head);
                    let tile = &mut self.halves[range][key_index(position / TILE * TILE, 0, dim)..];
                    let (dims, _) = tile.as_chunks_mut::<TILE>();
                    for (positions, &element) in dims.iter_mut().zip(key) {
                        positions[position % TILE] = element;
                    }
                }
                table.to_half(values, row);
                for (head, value) in row.chunks_exact(dim).enumerate() {
                    let (_, range) = range(&self.geometry, page, layer, true, head);
                    self.halves[range][position * dim..][..dim].copy_from_slice(value);
                }
            }
            KvType::Q8 => {
                let levels = &mut self.row.levels[..key_levels(dim)];
                let scales = &mut self.row.halves[..key_groups(dim)];
                for (head, (key, value)) in keys
                    .chunks_exact(dim)
                    .zip(values.chunks_exact(dim))
                    .enumerate()
                {
                    table.quantize_key(key, levels, scales);
                    let (to, to_scales) = range(&self.geometry, page, layer, false, head);
                    let (to, to_scales) = (&mut self.levels[to], &mut self.halves[to_scales]);
                    for (index, four) in levels.chunks_exact(4).enumerate() {
                        let at = key_level_index(position, index * 4, dim);
                        to[at..at + 4].copy_from_slice(four);
                    }
                    for (group, &scale) in scales.iter().enumerate() {
                        to_scales[key_scale_index(position, group, dim)] = scale;
                    }
                    let (to, to_scales) = range(&self.geometry, page, layer, true, head);
                    let to = &mut self.levels[to][position * dim..][..dim];
                    self.halves[to_scales][position] = table.quantize_head(value, to);
                }
            }
        }
    }
}
