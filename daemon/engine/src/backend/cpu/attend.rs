//! Attention of a batch over the cached positions.
//!
//! Consecutive tokens of a sequence make a block, whose query heads of one KV head are computed together: what is read
//! and converted of the cache serves all of them. A block's part of one KV head is a unit of work; where there are few
//! units, each chunk of positions is an item of its own, whose partial result goes to a slot, and whoever finishes the
//! last chunk of a unit merges them. Items of one chunk follow each other, and a thread takes several: in the cache they
//! do, too, and a stream that goes on is read much faster than one that begins. Which way it goes changes no byte:
//! [`andon_kernels::op::attention`].

use super::Cpu;
use super::pass::Pass;
use crate::backend::{Attend, Batch};
use crate::kv::HostPages;
use andon_kernels::attend::{Attention, Block, Partial, QuantizedQueriesMut};
use andon_kernels::op::attention::{
    CHUNK, Keys, QuantizedQueries, Queries, Values, key_groups, key_levels,
};
use andon_kernels::{Pieces, Table};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Rows of a block, if a token has no more: two passes of the widest kernels; and their scores of a chunk take half of
/// a small L1.
const BLOCK_ROWS: usize = 16;

/// Units for each thread from which on they are shared out whole: with fewer, threads would wait for the last.
const UNITS_EACH: usize = 8;

/// Times that a thread takes items of a layer, about: few, so that what it reads is in long stretches, but enough that
/// threads are through at about the same time.
const TAKES_EACH: usize = 16;

/// Tokens at the end of the longest sequence whose partial results slots hold.
const SLOT_TOKENS: usize = 2;

/// What attention needs beside its input and output.
#[derive(Debug)]
pub(crate) struct Workspace {
    group: usize,
    /// One for each thread.
    threads: Vec<Mutex<Scratch>>,
    /// First token and number of tokens of each block.
    blocks: Vec<(usize, usize)>,
    /// Chunks of each unit that are not done.
    remaining: Vec<AtomicUsize>,
    /// Whether the result of each token's KV head has been taken to be written.
    taken: Vec<AtomicBool>,
    /// Partial results, each of one token's heads of one KV head.
    slots: Vec<Mutex<Rows>>,
}

/// Partial results of rows.
#[derive(Debug)]
struct Rows {
    sums: Vec<[f32; 2]>,
    outputs: Vec<f32>,
}

impl Rows {
    fn new(rows: usize, head_dim: usize) -> Rows {
        Rows {
            sums: vec![[0.0; 2]; rows],
            outputs: vec![0.0; rows * head_dim],
        }
    }

    /// The first `rows` of them.
    fn first(&mut self, rows: usize, head_dim: usize) -> Partial<'_> {
        Partial {
            sums: &mut self.sums[..rows],
            outputs: &mut self.outputs[..rows * head_dim],
        }
    }
}

/// Scratch of a thread.
#[derive(Debug)]
pub(crate) struct Scratch {
    weights: Vec<f32>,
    total: Rows,
    next: Rows,
    /// One for each KV head.
    queries: Vec<Levels>,
}

/// A block's 8-bit queries of the heads of a KV head.
#[derive(Debug)]
struct Levels {
    levels: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

impl Levels {
    fn new(rows: usize, head_dim: usize) -> Levels {
        Levels {
            levels: vec![0; 2 * rows * key_levels(head_dim)],
            scales: vec![0.0; 2 * rows * key_groups(head_dim)],
            offsets: vec![0; 2 * rows * key_groups(head_dim)],
        }
    }

    /// Makes them of the block's.
    fn quantize(&mut self, table: &Table, block: &Block<'_>) {
        let output = QuantizedQueriesMut {
            levels: &mut self.levels,
            scales: &mut self.scales,
            offsets: &mut self.offsets,
        };
        table.quantize_queries(&block.queries, output);
    }
}

impl Scratch {
    /// Bytes that [`Scratch::new`] takes.
    pub(crate) fn bytes(group: usize, head_dim: usize, kv_heads: usize) -> Option<usize> {
        // Weights; twice the rows with their sums; for each KV head levels, a scale and an offset for every group of them;
        // what has two parts twice.
        let rows = kv_heads.checked_add(3)?;
        let floats = (2 * CHUNK).checked_add(head_dim.checked_mul(rows)?)?;
        floats.checked_mul(BLOCK_ROWS.max(group))?.checked_mul(4)
    }

    /// Scratch for blocks of [`block_tokens`] tokens.
    pub(crate) fn new(group: usize, head_dim: usize, kv_heads: usize) -> Scratch {
        let rows = BLOCK_ROWS.max(group);
        Scratch {
            weights: vec![0.0; 2 * rows * CHUNK],
            total: Rows::new(rows, head_dim),
            next: Rows::new(rows, head_dim),
            queries: (0..kv_heads).map(|_| Levels::new(rows, head_dim)).collect(),
        }
    }

    /// Attention of the block to `chunks`, one after the other; `finish` gets each row's number and result.
    pub(crate) fn attend<'k>(
        &mut self,
        table: &Table,
        attention: &Attention<'_>,
        block: &Block<'_>,
        quantized: bool,
        page: impl Fn(usize) -> (Keys<'k>, Values<'k>) + Copy,
        finish: impl FnMut(usize, &[f32]),
    ) {
        let (rows, head_dim) = (block.queries.rows(), block.queries.head_dim);
        let quantized = quantized.then_some(0);
        if let Some(index) = quantized {
            self.queries[index].quantize(table, block);
        }
        for (index, chunk) in attention.chunks(block).enumerate() {
            self.attend_chunk(table, attention, block, quantized, chunk, page);
            if index == 0 {
                std::mem::swap(&mut self.total, &mut self.next);
            } else {
                let total = self.total.first(rows, head_dim);
                table.merge_chunks(total, &self.next.first(rows, head_dim), head_dim);
            }
        }
        self.finish(rows, head_dim, finish);
    }

    /// The partial result of one chunk, into `next`; with the 8-bit queries of number `quantized`, if there is one.
    fn attend_chunk<'k>(
        &mut self,
        table: &Table,
        attention: &Attention<'_>,
        block: &Block<'_>,
        quantized: Option<usize>,
        chunk: usize,
        page: impl Fn(usize) -> (Keys<'k>, Values<'k>),
    ) {
        let (rows, head_dim) = (block.queries.rows(), block.queries.head_dim);
        let quantized = quantized.map(|index| {
            let queries = &self.queries[index];
            QuantizedQueries {
                levels: &queries.levels,
                scales: &queries.scales,
                offsets: &queries.offsets,
            }
        });
        let block = Block {
            quantized,
            ..*block
        };
        let next = self.next.first(rows, head_dim);
        table.attend_chunk(attention, &block, chunk, page, &mut self.weights, next);
    }

    /// Gives `finish` the results of the rows of `total`.
    fn finish(&mut self, rows: usize, head_dim: usize, mut finish: impl FnMut(usize, &[f32])) {
        let Partial { sums, outputs } = self.total.first(rows, head_dim);
        for (row, (output, [_, sum])) in outputs.chunks_exact_mut(head_dim).zip(sums).enumerate() {
            for value in &mut *output {
                *value /= *sum;
            }
            finish(row, output);
        }
    }
}

/// Tokens of a block whose tokens have `group` rows each.
pub(crate) fn block_tokens(group: usize) -> usize {
    (BLOCK_ROWS / group).max(1)
}

/// Sizes that a [`Workspace`] is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkspaceSizes {
    pub(crate) threads: usize,
    pub(crate) tokens_max: usize,
    pub(crate) context: usize,
    pub(crate) head_count: usize,
    pub(crate) kv_head_count: usize,
    pub(crate) head_dim: usize,
}

impl WorkspaceSizes {
    fn group(&self) -> usize {
        self.head_count / self.kv_head_count.max(1)
    }

    fn slot_count(&self) -> Option<usize> {
        let slots = SLOT_TOKENS.checked_mul(self.context.div_ceil(CHUNK))?;
        slots.checked_mul(self.kv_head_count)
    }

    /// Bytes of the largest parts; `None` if they cannot be counted.
    pub(crate) fn bytes(&self) -> Option<usize> {
        let scratch = Scratch::bytes(self.group(), self.head_dim, self.kv_head_count)?
            .checked_mul(self.threads)?;
        let row_bytes = self
            .head_dim
            .checked_add(2)?
            .checked_mul(size_of::<f32>())?;
        let slot_bytes = self.group().checked_mul(row_bytes)?;
        let slots = self.slot_count()?.checked_mul(slot_bytes)?;
        let units = self.tokens_max.checked_mul(self.kv_head_count)?;
        let units = units.checked_mul(size_of::<usize>() + 1)?;
        scratch.checked_add(slots)?.checked_add(units)
    }
}

impl Workspace {
    pub(crate) fn new(sizes: &WorkspaceSizes) -> Workspace {
        let group = sizes.group();
        let units = sizes.tokens_max * sizes.kv_head_count;
        let slots = sizes.slot_count().unwrap_or(0);
        Workspace {
            group,
            threads: (0..sizes.threads)
                .map(|_| Mutex::new(Scratch::new(group, sizes.head_dim, sizes.kv_head_count)))
                .collect(),
            blocks: Vec::with_capacity(sizes.tokens_max),
            remaining: (0..units).map(|_| AtomicUsize::new(0)).collect(),
            taken: (0..units).map(|_| AtomicBool::new(false)).collect(),
            slots: (0..slots)
                .map(|_| Mutex::new(Rows::new(group, sizes.head_dim)))
                .collect(),
        }
    }

    /// Cuts the batch into blocks.
    fn cut(&mut self, batch: &Batch) {
        self.blocks.clear();
        let most = block_tokens(self.group);
        for token in 0..batch.tokens.len() {
            if let Some((first, tokens)) = self.blocks.last_mut()
                && *tokens < most
                && batch.page_ranges[*first] == batch.page_ranges[token]
                && batch.positions[*first] + *tokens == batch.positions[token]
            {
                *tokens += 1;
            } else {
                self.blocks.push((token, 1));
            }
        }
    }
}

/// A layer's attention on its way over the units.
struct Units<'a> {
    table: &'a Table,
    batch: &'a Batch,
    cache: &'a HostPages,
    attention: Attention<'a>,
    layer: usize,
    /// `[token][head][dimension]`.
    query: &'a [f32],
    head_dim: usize,
    group: usize,
    kv_heads: usize,
    blocks: &'a [(usize, usize)],
    /// `[token][KV head]`, of the heads' results.
    output: Pieces<'a>,
}

impl Units<'_> {
    /// The block of unit `unit`, its KV head, and its first token.
    fn block(&self, unit: usize) -> (Block<'_>, usize, usize) {
        // One KV head after the other: its positions are still near when the next block wants them.
        let (head, index) = (unit / self.blocks.len(), unit % self.blocks.len());
        let (first, tokens) = self.blocks[index];
        let token_stride = self.kv_heads * self.group * self.head_dim;
        let start = first * token_stride + head * self.group * self.head_dim;
        let queries = Queries {
            values: &self.query[start..],
            token_stride,
            tokens,
            group: self.group,
            head_dim: self.head_dim,
        };
        let position = self.batch.positions[first];
        let block = Block {
            queries,
            quantized: None,
            position,
            length: position + tokens,
        };
        (block, head, first)
    }

    fn chunks(&self, unit: usize) -> Range<usize> {
        self.attention.chunks(&self.block(unit).0)
    }

    /// Computes a whole unit.
    fn run(&self, unit: usize, scratch: &mut Scratch) {
        let (block, head, first) = self.block(unit);
        let pages = self.batch.pages_of(first);
        let quantized = self.cache.is_quantized();
        let page = |page: usize| self.cache.head(pages[page], self.layer, head);
        let mut piece = None;
        scratch.attend(
            self.table,
            &self.attention,
            &block,
            quantized,
            page,
            |row, result| self.write(first, head, row, result, &mut piece),
        );
    }

    /// Writes row `row` of a block's results; `piece` is the part of the output that its token's rows go to.
    fn write<'o>(
        &'o self,
        first: usize,
        head: usize,
        row: usize,
        result: &[f32],
        piece: &mut Option<&'o mut [f32]>,
    ) {
        if row.is_multiple_of(self.group) {
            let index = (first + row / self.group) * self.kv_heads + head;
            *piece = self.output.take(index);
        }
        let piece = piece.as_deref_mut().expect("a unit is finished once");
        piece[row % self.group * self.head_dim..][..self.head_dim].copy_from_slice(result);
    }

    /// Computes one chunk of a unit, whose 8-bit queries are those of its KV head where there are any, into slots, which
    /// begin with the unit's, `[chunk][token]`; then, if it was the last that `remaining` counts, finishes the unit.
    fn run_chunk(
        &self,
        unit: usize,
        index: usize,
        scratch: &mut Scratch,
        remaining: &AtomicUsize,
        slots: &[Mutex<Rows>],
    ) {
        let (block, head, first) = self.block(unit);
        let chunks = self.attention.chunks(&block);
        let (tokens, group, head_dim) = (block.queries.tokens, self.group, self.head_dim);
        let pages = self.batch.pages_of(first);
        scratch.attend_chunk(
            self.table,
            &self.attention,
            &block,
            self.cache.is_quantized().then_some(head),
            chunks.start + index,
            |page| self.cache.head(pages[page], self.layer, head),
        );
        let lock = |chunk: usize, token: usize| {
            // A slot is written by one thread, and read by one when all are written: nobody waits for the lock.
            let slot = &slots[chunk * tokens + token];
            slot.lock().unwrap_or_else(PoisonError::into_inner)
        };
        for token in 0..tokens {
            let rows = token * group..(token + 1) * group;
            let mut slot = lock(index, token);
            slot.sums.copy_from_slice(&scratch.next.sums[rows.clone()]);
            slot.outputs
                .copy_from_slice(&scratch.next.outputs[rows.start * head_dim..rows.end * head_dim]);
        }
        // Acquire and release: whoever counts down to zero sees what the others have written.
        if remaining.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        for token in 0..tokens {
            for chunk in 0..chunks.len() {
                let mut slot = lock(chunk, token);
                if chunk == 0 {
                    scratch.total.sums[..group].copy_from_slice(&slot.sums);
                    scratch.total.outputs[..group * head_dim].copy_from_slice(&slot.outputs);
                } else {
                    let total = scratch.total.first(group, head_dim);
                    self.table
                        .merge_chunks(total, &slot.first(group, head_dim), head_dim);
                }
            }
            let mut piece = None;
            scratch.finish(group, head_dim, |row, result| {
                self.write(first + token, head, row, result, &mut piece);
            });
        }
    }

    /// Computes the items that `take` gives, `each` at a time, from the start of a range of those left. Items are
    /// `[block][chunk][KV head]`.
    fn run_items(
        &self,
        take: impl Fn() -> Range<usize>,
        each: usize,
        scratch: &mut Scratch,
        remaining: &[AtomicUsize],
        slots: &[Mutex<Rows>],
    ) {
        let (mut index, mut quantized) = (0, None);
        let (mut items_before, mut slots_before) = (0, 0);
        loop {
            let left = take();
            if left.is_empty() {
                return;
            }
            for item in left.take(each) {
                // Items come in ascending order, so a thread goes over the blocks once.
                let (chunks, tokens) = loop {
                    let chunks = self.chunks(index).len();
                    let tokens = self.blocks[index].1;
                    if item - items_before < chunks * self.kv_heads {
                        break (chunks, tokens);
                    }
                    items_before += chunks * self.kv_heads;
                    slots_before += chunks * self.kv_heads * tokens;
                    index += 1;
                };
                let unit = |head: usize| head * self.blocks.len() + index;
                if self.cache.is_quantized() && quantized != Some(index) {
                    for (head, queries) in
                        scratch.queries.iter_mut().enumerate().take(self.kv_heads)
                    {
                        queries.quantize(self.table, &self.block(unit(head)).0);
                    }
                    quantized = Some(index);
                }
                let (chunk, head) = (
                    (item - items_before) / self.kv_heads,
                    (item - items_before) % self.kv_heads,
                );
                let slots = &slots[slots_before + head * chunks * tokens..];
                let unit = unit(head);
                self.run_chunk(unit, chunk, scratch, &remaining[unit], slots);
            }
        }
    }
}

impl Pass<'_> {
    /// Causal attention; query heads share key/value heads in consecutive groups. A window costs only the chunks that
    /// it touches.
    pub(super) fn attend(&mut self, attend: &Attend) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let (sizes, workspace) = (buffers.sizes, &mut buffers.attention);
        workspace.cut(self.batch);
        let head_dim = attend.head_dim;
        let (group, kv_heads) = (workspace.group, sizes.key_value / head_dim);
        let Workspace {
            threads,
            blocks,
            remaining,
            taken,
            slots,
            ..
        } = workspace;
        let (threads, blocks, slots) = (&*threads, &*blocks, &*slots);
        let units = Units {
            table,
            batch: self.batch,
            cache: &*self.cache,
            attention: Attention {
                scale: attend.scale,
                cap: attend.cap,
                slopes: None,
                before: attend
                    .window
                    .map_or(usize::MAX, |window| window.saturating_sub(1)),
                after: 0,
            },
            layer: attend.layer,
            query: &buffers.query[..count * sizes.query],
            head_dim,
            group,
            kv_heads,
            blocks,
            output: Pieces::new(
                &mut buffers.attended[..count * sizes.query],
                group * head_dim,
                &mut taken[..count * kv_heads],
            ),
        };
        let unit_count = blocks.len() * kv_heads;
        let (mut items, mut slots_needed) = (0, 0);
        if unit_count < UNITS_EACH * pool.threads() {
            for (unit, remaining) in remaining.iter_mut().enumerate().take(unit_count) {
                let chunks = units.chunks(unit).len();
                *remaining.get_mut() = chunks;
                items += chunks;
                slots_needed += chunks * blocks[unit % blocks.len()].1;
            }
        }
        let remaining = &*remaining;
        let split = items > unit_count && slots_needed <= slots.len();
        let next = AtomicUsize::new(0);
        let each = (items / (TAKES_EACH * pool.threads())).clamp(1, kv_heads.max(1));
        pool.run(&|thread| {
            // Each thread has its own scratch; the lock is never contended.
            let mut scratch = threads[thread]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Relaxed: the counter only shares out work; the pool's barrier orders the data.
            let take = |count: usize| next.fetch_add(count, Ordering::Relaxed);
            if split {
                units.run_items(|| take(each)..items, each, &mut scratch, remaining, slots);
                return;
            }
            // The last tokens have the most to attend to, and the longest work goes first.
            while let Some(left) = unit_count.checked_sub(take(1) + 1) {
                units.run(left, &mut scratch);
            }
        });
    }
}
