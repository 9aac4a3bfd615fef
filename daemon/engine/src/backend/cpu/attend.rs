//! Attention of a batch over the cached positions.

use super::pass::Pass;
use super::{Cpu, share};
use crate::kv::PAGE;
use std::sync::PoisonError;

impl Pass<'_> {
    /// Causal attention with `head_dim` dimensions a head; query heads share key/value heads in consecutive groups.
    ///
    /// A query head of a token is computed in one thread: scores over all positions up to the token's, softmax over
    /// them, the weighted sum in ascending position, and one division at the end.
    pub fn attend(&mut self, layer: usize, head_dim: usize, scale: f32) {
        let count = self.batch.tokens.len();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let table = &*table;
        let sizes = buffers.sizes;
        let heads = sizes.query / head_dim;
        let group = heads / (sizes.key_value / head_dim);
        let (batch, cache, scores) = (self.batch, &*self.cache, &buffers.scores);
        let items = buffers.query[..count * sizes.query]
            .chunks_exact(head_dim)
            .zip(buffers.attended[..count * sizes.query].chunks_exact_mut(head_dim))
            .enumerate();
        share(pool, items, |thread, (index, (query, output))| {
            let (token, head) = (index / heads, index % heads);
            let length = batch.positions[token] + 1;
            let pages = &batch.pages_of(token)[..length.div_ceil(PAGE)];
            // Each thread has its own scores; the lock is never contended.
            let mut scores = scores[thread]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let scores = &mut scores[..length];
            for (&page, scores) in pages.iter().zip(scores.chunks_mut(PAGE)) {
                table.scores(query, cache.keys(page, layer, head / group), scale, scores);
            }
            let sum = table.softmax_numerators(scores);
            output.fill(0.0);
            for (&page, weights) in pages.iter().zip(scores.chunks(PAGE)) {
                table.weighted_sum(weights, cache.values(page, layer, head / group), output);
            }
            for value in output {
                *value /= sum;
            }
        });
    }
}
