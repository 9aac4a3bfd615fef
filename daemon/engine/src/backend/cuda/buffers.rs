//! The activations of one batch in a device's memory.

use crate::backend::cpu::Sizes;
use crate::kv::PAGE;
use andon_cuda::{Attend, Buffer, Columns, Device, Error, Places};

/// Columns of the largest batch; matrices are `[token][element]`.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) tokens: Buffer<u32>,
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
    /// `[rotation][token][pair]` of cosine and sine.
    pub(super) ropes: Vec<Buffer<f32>>,
    /// By which queries grow with their position.
    pub(super) factors: Buffer<f32>,
    pub(super) scratch: Buffer<f32>,
    /// Logits of as many tokens as are computed at once.
    pub(super) logits: Buffer<f32>,
    pub(super) output_rows: usize,
    /// Which tokens those are.
    pub(super) indices: Buffer<i32>,
    /// Where columns are.
    pub(super) places: Places,
}

/// Pages that the sequences of a batch name together, at most: more than the cache has, where they share some.
fn named_pages(sizes: &Sizes) -> usize {
    sizes
        .tokens_max
        .saturating_mul(sizes.context.div_ceil(PAGE))
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
        let output_rows = sizes.output_rows_max.max(1);
        let rope = || device.zeros(tokens * sizes.rope_pairs * 2);
        Ok(Buffers {
            tokens: device.zeros(tokens)?,
            hidden: device.zeros(tokens * sizes.embedding)?,
            kept: device.zeros(output_rows * sizes.embedding)?,
            heads: device.zeros(tokens * (sizes.query + 2 * sizes.key_value))?,
            attended: device.zeros(tokens * sizes.query)?,
            gates: device.zeros(tokens * 2 * sizes.feed_forward)?,
            projected: device.zeros(tokens * sizes.embedding)?,
            inner: device.columns(sizes.embedding, tokens)?,
            queries: device.columns(sizes.query, tokens)?,
            wide: device.columns(sizes.feed_forward, tokens)?,
            ropes: (0..sizes.rope_count)
                .map(|_| rope())
                .collect::<Result<_, _>>()?,
            factors: device.zeros(tokens)?,
            scratch: device.zeros(scratch)?,
            logits: device.zeros(output_rows * sizes.vocabulary)?,
            output_rows,
            indices: device.zeros(output_rows)?,
            places: device.places(tokens, named_pages(sizes), pages)?,
        })
    }

    /// Bytes that they take, about.
    pub(super) fn bytes(sizes: &Sizes) -> usize {
        let columns = |width: usize| width + width.div_ceil(32) * 8;
        let floats = sizes.embedding * 2
            + sizes.query * 2
            + sizes.key_value * 2
            + sizes.feed_forward * 2
            + sizes.rope_pairs * sizes.rope_count * 2
            + 1;
        let each = floats * size_of::<f32>()
            + columns(sizes.embedding)
            + columns(sizes.query)
            + columns(sizes.feed_forward);
        let heads = sizes.query / sizes.head_dim.max(1);
        let scratch = Attend::scratch(heads, sizes.head_dim, sizes.tokens_max, sizes.context);
        let rows = sizes.output_rows_max.max(1) * (sizes.vocabulary + sizes.embedding + 1);
        let places = named_pages(sizes);
        each.saturating_mul(sizes.tokens_max).saturating_add(
            (scratch + rows)
                .saturating_add(places)
                .saturating_mul(size_of::<f32>()),
        )
    }
}
