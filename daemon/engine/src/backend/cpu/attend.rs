//! Attention of a batch over the cached positions.

use super::pass::Pass;
use super::{Cpu, share};
use crate::kv::PAGE;
use andon_kernels::op::attention::TILE;
use std::sync::PoisonError;

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// The layer, as the cache counts them.
    pub layer: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound that scores are kept within, after that.
    pub cap: Option<f32>,
    /// How many positions are attended to, the token's own and those before it; `None` for all.
    pub window: Option<usize>,
}

impl Pass<'_> {
    /// Causal attention; query heads share key/value heads in consecutive groups.
    ///
    /// A query head of a token is computed in one thread: scores over the positions up to the token's that are in the
    /// window, softmax over them, the weighted sum in ascending position, and one division at the end. A window costs
    /// what is in it: scores start at its first tile of keys.
    pub fn attend(&mut self, attend: &Attend) {
        let count = self.batch.tokens.len();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let table = &*table;
        let sizes = buffers.sizes;
        let &Attend {
            layer, head_dim, ..
        } = attend;
        let heads = sizes.query / head_dim;
        let group = heads / (sizes.key_value / head_dim);
        let (batch, cache, scores) = (self.batch, &*self.cache, &buffers.scores);
        let items = buffers.query[..count * sizes.query]
            .chunks_exact(head_dim)
            .zip(buffers.attended[..count * sizes.query].chunks_exact_mut(head_dim))
            .enumerate();
        share(pool, items, |thread, (index, (query, output))| {
            let (token, head) = (index / heads, index % heads);
            let end = batch.positions[token] + 1;
            let first = attend.window.map_or(0, |window| end.saturating_sub(window));
            // Keys are read in whole tiles, so some scores before the window are computed too.
            let start = first / TILE * TILE;
            let pages = batch.pages_of(token);
            // Each thread has its own scores; the lock is never contended.
            let mut scores = scores[thread]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let scores = &mut scores[..end - start];
            for (page, from, to) in parts(start, end) {
                let keys = cache.keys(pages[page], layer, head / group);
                let keys = &keys[(from - page * PAGE) * head_dim..];
                let scores = &mut scores[from - start..to - start];
                table.scores(query, keys, attend.scale, scores);
            }
            let scores = &mut scores[first - start..];
            if let Some(cap) = attend.cap {
                table.soft_cap(scores, cap);
            }
            let sum = table.softmax_numerators(scores);
            output.fill(0.0);
            for (page, from, to) in parts(first, end) {
                let values = cache.values(pages[page], layer, head / group);
                let values = &values[(from - page * PAGE) * head_dim..];
                table.weighted_sum(&scores[from - first..to - first], values, output);
            }
            for value in output {
                *value /= sum;
            }
        });
    }
}

/// Positions `start..end` page by page: its number in the sequence, and the positions in it.
fn parts(start: usize, end: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (start / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let (first, last) = (page * PAGE, (page + 1) * PAGE);
        (page, first.max(start), last.min(end))
    })
}
