//! The activations of one batch in a device's memory.

use super::given;
use super::pass::FEW_TOKENS;
use super::rows::best_count;
use crate::backend::cpu::Sizes;
use andon_cuda::{Attend, Buffer, Columns, Device, Error, Places, TopK};

/// Columns of the largest batch; matrices are `[token][element]`.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The residual stream.
    pub(super) hidden: Buffer<f32>,
    /// That of tokens that are to have logits.
    pub(super) kept: Buffer<f32>,
    /// Queries, keys and values of each token.
    pub(super) heads: Buffer<f32>,
    pub(super) attended: Buffer<f32>,
    /// Gates, and what they gate.
    pub(super) gates: Buffer<f32>,
    /// What goes to the residual stream.
    pub(super) projected: Buffer<f32>,
    /// Of the width of the residual stream, of queries, and of the feed-forward part.
    pub(super) inner: Columns,
    pub(super) queries: Columns,
    pub(super) wide: Columns,
    pub(super) scratch: Buffer<f32>,
    /// Logits of as many tokens as there is room for.
    pub(super) logits: Buffer<f32>,
    pub(super) output_rows: usize,
    /// The best of them.
    pub(super) best: TopK,
    /// What the pass is given.
    pub(super) places: Places,
}

/// Rows of logits that there is room for: those that there usually are, and those of any pass of few tokens.
fn output_rows(sizes: &Sizes) -> usize {
    let few = sizes.tokens_max.clamp(1, FEW_TOKENS);
    sizes.output_rows_max.max(few)
}

impl Buffers {
    /// For batches of these sizes, and a cache of `pages` pages.
    ///
    /// # Errors
    /// If the device has no room for them.
    pub(super) fn new(device: &Device, sizes: &Sizes, pages: usize) -> Result<Buffers, Error> {
        let tokens = sizes.tokens_max;
        let heads = sizes.query / sizes.head_dim.max(1);
        let scratch = Attend::scratch(heads, sizes.head_dim, tokens, sizes.context);
        let output_rows = output_rows(sizes);
        Ok(Buffers {
            hidden: device.zeros(tokens * sizes.embedding)?,
            kept: device.zeros(output_rows * sizes.embedding)?,
            heads: device.zeros(tokens * (sizes.query + 2 * sizes.key_value))?,
            attended: device.zeros(tokens * sizes.query)?,
            gates: device.zeros(tokens * 2 * sizes.feed_forward)?,
            projected: device.zeros(tokens * sizes.embedding)?,
            inner: device.columns(sizes.embedding, tokens)?,
            queries: device.columns(sizes.query, tokens)?,
            wide: device.columns(sizes.feed_forward, tokens)?,
            scratch: device.zeros(scratch)?,
            logits: device.zeros(output_rows * sizes.vocabulary)?,
            output_rows,
            best: device.top_k(sizes.vocabulary, output_rows, best_count(sizes))?,
            places: device.room(&given::room(sizes, pages))?,
        })
    }

    /// Bytes that they take of the device's memory, and no more than a few beyond.
    pub(super) fn bytes(sizes: &Sizes) -> usize {
        // Columns are whole blocks with some bytes behind, and of each token is known where it is.
        const BEHIND: usize = 64 << 10;
        const OF_TOKEN: usize = 64;
        let columns = |width: usize| width + width.div_ceil(32) * 8;
        let floats =
            sizes.embedding * 2 + sizes.query * 2 + sizes.key_value * 2 + sizes.feed_forward * 2;
        let each = floats * size_of::<f32>()
            + columns(sizes.embedding)
            + columns(sizes.query)
            + columns(sizes.feed_forward)
            + OF_TOKEN;
        let heads = sizes.query / sizes.head_dim.max(1);
        let scratch = Attend::scratch(heads, sizes.head_dim, sizes.tokens_max, sizes.context);
        let rows = output_rows(sizes) * (sizes.vocabulary + sizes.embedding);
        let best = TopK::bytes(sizes.vocabulary, output_rows(sizes), best_count(sizes));
        let given = given::room(sizes, 0).words();
        let words = (scratch + rows).saturating_add(given);
        each.saturating_mul(sizes.tokens_max)
            .saturating_add(words.saturating_mul(size_of::<f32>()))
            .saturating_add(best)
            .saturating_add(BEHIND)
    }

    /// Bytes of this machine's memory for what is copied there, and for all logits that may be asked for.
    pub(super) fn bytes_here(sizes: &Sizes) -> usize {
        let given = given::room(sizes, 0).words().saturating_mul(2);
        let rows = output_rows(sizes) * sizes.vocabulary;
        given.saturating_add(rows).saturating_mul(size_of::<f32>())
    }
}
