//! Attention of a block of tokens to one chunk of positions, put together from the kernels of a [`Table`].
//!
//! [`crate::op::attention`] states the result. Invariant: what a row gets depends on its query and on the keys and
//! values of the positions it sees, not on the other rows of its block: each kernel is called with exactly the rows
//! that see the positions it is called with.

use crate::Table;
use crate::op::attention::{
    CHUNK, Keys, PAGE, QuantizedQueries, Queries, TILE, Values, add_linear_bias, key_groups,
    key_levels,
};
use core::ops::Range;

/// Parts of an 8-bit query.
const PARTS: usize = 2;

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Factor of the scores.
    pub scale: f32,
    /// Bound that scores are kept within, after that.
    pub cap: Option<f32>,
    /// Slopes of the linear biases of the block's heads.
    pub slopes: Option<&'a [f32]>,
    /// Positions before a token's own that it sees.
    pub before: usize,
    /// Positions after a token's own that it sees.
    pub after: usize,
}

/// Consecutive tokens of one sequence, and their query heads that share a KV head.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The queries.
    pub queries: Queries<'a>,
    /// The same in 8 bits, where keys are: [`Table::quantize_queries`].
    pub quantized: Option<QuantizedQueries<'a>>,
    /// Position of the first token.
    pub position: usize,
    /// Positions that there are.
    pub length: usize,
}

impl Attention<'_> {
    /// The positions that the token at `position` sees, of `length` that there are.
    #[must_use]
    pub fn seen(&self, position: usize, length: usize) -> Range<usize> {
        let end = position.saturating_add(self.after).saturating_add(1);
        position.saturating_sub(self.before)..end.min(length)
    }

    /// The chunks that a block sees something of.
    #[must_use]
    pub fn chunks(&self, block: &Block<'_>) -> Range<usize> {
        let last = block.position + block.queries.tokens.saturating_sub(1);
        let start = self.seen(block.position, block.length).start / CHUNK;
        start..self.seen(last, block.length).end.div_ceil(CHUNK)
    }
}

/// Partial results of rows.
#[derive(Debug)]
pub struct Partial<'a> {
    /// Largest score and sum of weights of each row.
    pub sums: &'a mut [[f32; 2]],
    /// `[row][head_dim]`.
    pub outputs: &'a mut [f32],
}

/// Scratch that 8-bit queries are written to.
#[derive(Debug)]
pub struct QuantizedQueriesMut<'a> {
    /// `[row][part][key_levels]`, of two parts.
    pub levels: &'a mut [i8],
    /// `[row][part][key_groups]`.
    pub scales: &'a mut [f32],
    /// `[row][part][key_groups]`.
    pub offsets: &'a mut [i32],
}

impl Table {
    /// Queries in 8 bits, for [`Block::quantized`].
    ///
    /// # Panics
    /// If `output` is too short.
    pub fn quantize_queries<'a>(
        &self,
        queries: &Queries<'_>,
        output: QuantizedQueriesMut<'a>,
    ) -> QuantizedQueries<'a> {
        let QuantizedQueriesMut {
            levels,
            scales,
            offsets,
        } = output;
        let (stride, groups) = (key_levels(queries.head_dim), key_groups(queries.head_dim));
        for row in 0..queries.rows() {
            self.quantize_query(
                queries.row(row),
                &mut levels[PARTS * row * stride..][..PARTS * stride],
                &mut scales[PARTS * row * groups..][..PARTS * groups],
                &mut offsets[PARTS * row * groups..][..PARTS * groups],
            );
        }
        QuantizedQueries {
            levels,
            scales,
            offsets,
        }
    }

    /// What the rows of `block` get from chunk `chunk`; a row that sees nothing of it gets a sum of zero.
    ///
    /// `page` gives the keys and values of the sequence's page of a number; `weights` is scratch of [`CHUNK`] elements
    /// for each row, or twice as many where keys are in 8 bits.
    ///
    /// # Panics
    /// If `weights` or `partial` is too short for the rows, pages are too short for the positions, or keys are in 8 bits
    /// and the block's queries are not.
    pub fn attend_chunk<'k>(
        &self,
        attention: &Attention<'_>,
        block: &Block<'_>,
        chunk: usize,
        page: impl Fn(usize) -> (Keys<'k>, Values<'k>),
        weights: &mut [f32],
        partial: Partial<'_>,
    ) {
        let queries = &block.queries;
        let (tokens, group, head_dim) = (queries.tokens, queries.group, queries.head_dim);
        let rows = queries.rows();
        let Partial { sums, outputs } = partial;
        let sums = &mut sums[..rows];
        let outputs = &mut outputs[..rows * head_dim];
        outputs.fill(0.0);
        let here = chunk * CHUNK..(chunk + 1) * CHUNK;
        let seen_of = |token: usize| {
            let seen = attention.seen(block.position + token, block.length);
            seen.start.max(here.start)..seen.end.min(here.end)
        };
        // Ranges move on from token to token: the first begins and the last ends what is seen by any.
        let start = seen_of(0).start;
        let end = seen_of(tokens - 1).end;
        if start >= end {
            sums.fill([f32::NEG_INFINITY, 0.0]);
            return;
        }
        let mut first = start / TILE * TILE;
        while first < end {
            let number = first / PAGE;
            let (keys, _) = page(number);
            let skipped = first - number * PAGE;
            let tiles = (end.min((number + 1) * PAGE) - first).div_ceil(TILE);
            let scores = &mut weights[first - here.start..];
            match keys {
                Keys::F16(keys) => {
                    let keys = &keys[skipped * head_dim..];
                    self.scores(queries, keys, tiles, attention.scale, scores);
                }
                Keys::Q8(levels, scales) => {
                    let levels = &levels[skipped * key_levels(head_dim)..];
                    let scales = &scales[skipped * key_groups(head_dim)..];
                    let quantized = block.quantized.expect("queries are in 8 bits as keys are");
                    let rows = (PARTS * rows, head_dim);
                    let keys = (levels, scales, tiles);
                    self.quantized_scores(quantized, rows, keys, attention.scale, scores);
                }
            }
            first += tiles * TILE;
        }
        if block.quantized.is_some() {
            self.add_parts(weights, rows, start - here.start..end - here.start);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let seen = seen_of(row / group);
            if seen.is_empty() {
                *sums = [f32::NEG_INFINITY, 0.0];
                continue;
            }
            let weights = &mut weights[row * CHUNK..][..CHUNK];
            let (first, end) = (seen.start - here.start, seen.end - here.start);
            if let Some(cap) = attention.cap {
                self.soft_cap(&mut weights[first..end], cap);
            }
            if let Some(slopes) = attention.slopes {
                let position = block.position + row / group;
                let slope = slopes[row % group];
                add_linear_bias(&mut weights[first..end], slope, position, seen.start);
            }
            *sums = self.weigh(weights, first, end);
        }
        // Stretches of positions that the same tokens see, within a page.
        let mut at = start;
        while at < end {
            let number = at / PAGE;
            let mut until = end.min((number + 1) * PAGE);
            let (mut low, mut high) = (0, tokens);
            while low < tokens && seen_of(low).end <= at {
                low += 1;
            }
            while high > low && seen_of(high - 1).start > at {
                high -= 1;
            }
            if low < high {
                until = until.min(seen_of(low).end);
            }
            if high < tokens {
                until = until.min(seen_of(high).start.max(at + 1));
            }
            if low < high {
                let (_, values) = page(number);
                let skipped = at - number * PAGE;
                let weights = &weights[low * group * CHUNK + at - here.start..];
                let outputs = &mut outputs[low * group * head_dim..high * group * head_dim];
                let count = until - at;
                match values {
                    Values::F16(values) => {
                        let values = &values[skipped * head_dim..];
                        self.weighted_sum(weights, values, count, head_dim, outputs);
                    }
                    Values::Q8(levels, scales) => {
                        let values = (&levels[skipped * head_dim..], &scales[skipped..]);
                        self.quantized_weighted_sum(weights, values, count, head_dim, outputs);
                    }
                }
            }
            at = until;
        }
    }

    /// Merges the partial results of rows' next chunk into those of the chunks before.
    ///
    /// # Panics
    /// If they are not of the same rows.
    pub fn merge_chunks(&self, total: Partial<'_>, next: &Partial<'_>, head_dim: usize) {
        let Partial { sums, outputs } = total;
        assert_eq!(sums.len(), next.sums.len());
        for (((sums, output), &next_sums), next_output) in sums
            .iter_mut()
            .zip(outputs.chunks_exact_mut(head_dim))
            .zip(&*next.sums)
            .zip(next.outputs.chunks_exact(head_dim))
        {
            self.merge(sums, output, next_sums, next_output);
        }
    }
}
