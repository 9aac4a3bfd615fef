//! Encoders on the CPU: whole inputs at once, every position attending to every other, layer by layer.
//!
//! An [`Encoding`] holds what lasts from layer to layer (the residual stream); everything else is scratch of
//! [`EncodePass`], used up within a layer. So an encoding may rest between any two layers while another one runs.
//!
//! A layer takes the tokens in pieces, first for the keys and values of all, then for everything else, so scratch is
//! bounded by the piece, apart from one layer's keys and values. A token's result depends on its own input only, and
//! every sum is taken in one thread in a fixed order: neither the batch, nor the pieces, nor the number of threads
//! changes a byte of it.

mod attention;
mod feed_forward;
mod steps;
mod weights;

pub use weights::{Activation, Attention, AttentionWeights, FeedForward, LayerNorm, Norms};

use super::Threads;
use super::attend::Scratch;
use super::buffers::Levels;
use crate::layer::Rope;
use crate::weights::{Matrix, Weights};
use andon_kernels::op::attention::TILE;
use andon_kernels::{Table, block};
use std::sync::Mutex;
use steps::normalize;

/// Tokens that go through the matrices together: enough to read weights rarely, few enough to keep scratch small.
const PIECE_TOKENS: usize = 256;

/// Tokens that a thread takes at a time in elementwise steps.
const ROWS: usize = 8;

/// Sizes that scratch is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeSizes {
    /// Elements of the residual stream, and of all heads together.
    pub embedding: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Elements between the matrices of a feed-forward part.
    pub feed_forward: usize,
    /// Positions of an input.
    pub context: usize,
    /// Tokens of an encoding, each input's rounded up to [`EncodeSizes::padded`].
    pub tokens_max: usize,
}

impl EncodeSizes {
    /// Tokens that an input of `tokens` takes of `tokens_max`.
    #[must_use]
    pub fn padded(tokens: usize) -> usize {
        tokens.next_multiple_of(TILE)
    }

    /// Bytes that grow with the context, keys and values of a layer and the residual stream of the largest encoding, and
    /// the threads' scratch. `None` if they cannot be counted.
    pub(crate) fn bytes(&self, threads: usize) -> Option<usize> {
        let elements = self.tokens_max.checked_mul(self.embedding)?;
        let stored = elements.checked_mul(2 * size_of::<u16>() + size_of::<f32>())?;
        let scratch = Scratch::bytes(1, self.head_dim, 1)?.checked_mul(threads)?;
        let bytes = stored.checked_add(scratch)?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }
}

/// One input's place among the tokens of an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// First token.
    pub(crate) first: usize,
    /// Tokens.
    pub(crate) length: usize,
    /// First position of its keys and values.
    pub(crate) place: usize,
}

/// Inputs on their way through an encoder.
#[derive(Debug)]
pub struct Encoding {
    pub(crate) tokens: Vec<u32>,
    pub(crate) spans: Vec<Span>,
    /// Index into `spans` of each token.
    pub(crate) span_of: Vec<u32>,
    /// The residual stream, `[token][element]`.
    pub(crate) hidden: Vec<f32>,
    /// Layers done.
    pub(crate) layers_done: usize,
}

/// Scratch of one layer of one encoding, and the machine's threads and kernels.
#[derive(Debug)]
pub(crate) struct Encode {
    pub(crate) table: Table,
    pub(crate) pool: Threads,
    sizes: EncodeSizes,
    /// Cosine and sine of each rope, `[position][pair]`, as far as positions have been needed.
    ropes: Vec<(Rope, Vec<[f32; 2]>)>,
    /// A piece's input of the matrices where it is not the residual stream.
    normed: Vec<f32>,
    levels: Levels,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    half: Vec<u16>,
    /// Keys of a layer: for each input, for each head, tiles as in [`andon_kernels::op::attention`].
    keys: Vec<u16>,
    /// Values of a layer: for each input, for each head, `[position][dimension]`.
    values: Vec<u16>,
    /// Scratch of attention, one per thread.
    scratch: Vec<Mutex<Scratch>>,
}

/// An encoding in the middle of an encoder.
#[derive(Debug)]
pub struct EncodePass<'a> {
    pub(crate) encode: &'a mut Encode,
    pub(crate) weights: Weights<'a>,
    pub(crate) encoding: &'a mut Encoding,
}

impl Encode {
    pub(crate) fn new(table: Table, pool: Threads, sizes: EncodeSizes, ropes: Vec<Rope>) -> Encode {
        let EncodeSizes {
            embedding,
            feed_forward,
            ..
        } = sizes;
        let piece = PIECE_TOKENS.min(sizes.tokens_max);
        let scratch = (0..pool.threads())
            .map(|_| Mutex::new(Scratch::new(1, sizes.head_dim, 1)))
            .collect();
        Encode {
            table,
            pool,
            sizes,
            ropes: ropes.into_iter().map(|rope| (rope, Vec::new())).collect(),
            normed: vec![0.0; piece * embedding],
            levels: Levels::new(piece, embedding.max(feed_forward)),
            query: vec![0.0; piece * embedding],
            key: vec![0.0; piece * embedding],
            value: vec![0.0; piece * embedding],
            attended: vec![0.0; piece * embedding],
            projected: vec![0.0; piece * embedding],
            gate: vec![0.0; piece * feed_forward],
            up: vec![0.0; piece * feed_forward],
            half: vec![0; embedding],
            keys: vec![0; sizes.tokens_max * embedding],
            values: vec![0; sizes.tokens_max * embedding],
            scratch,
        }
    }

    /// Computes rotations for positions below `length`.
    fn extend_ropes(&mut self, length: usize) {
        for (rope, rows) in &mut self.ropes {
            let pairs = rope.frequencies.len();
            for position in rows.len() / pairs.max(1)..length {
                rows.extend(rope.frequencies.iter().map(|&frequency| {
                    let (sin, cos) = libm::sincos(position as f64 * frequency);
                    [cos as f32, sin as f32]
                }));
            }
        }
    }
}

impl EncodePass<'_> {
    /// Sets the residual stream to the rows of `tokens` that the tokens name, plus `kind` and the rows of `positions`,
    /// normalized.
    pub fn embed(
        &mut self,
        tokens: &Matrix,
        kind: Option<&[f32]>,
        positions: Option<&Matrix>,
        norm: &LayerNorm,
    ) {
        let width = tokens.row_elements;
        let more = &mut self.encode.normed[..width];
        let Encoding {
            tokens: ids,
            spans,
            span_of,
            hidden,
            ..
        } = &mut *self.encoding;
        let weights = self.weights;
        let row = |matrix: &Matrix, index: usize, output: &mut [f32]| {
            let start = index * matrix.row_bytes();
            let bytes = &weights.raw(matrix)[start..start + matrix.row_bytes()];
            block::decode_row(matrix.format, bytes, output);
        };
        let add = |hidden: &mut [f32], more: &[f32]| {
            for (value, more) in hidden.iter_mut().zip(more) {
                *value += more;
            }
        };
        for (index, (hidden, &id)) in hidden.chunks_exact_mut(width).zip(&*ids).enumerate() {
            row(tokens, id as usize, hidden);
            if let Some(kind) = kind {
                add(hidden, kind);
            }
            if let Some(positions) = positions {
                row(
                    positions,
                    index - spans[span_of[index] as usize].first,
                    more,
                );
                add(hidden, more);
            }
        }
        let longest = spans.iter().map(|span| span.length).max().unwrap_or(0);
        self.encode.extend_ropes(longest);
        self.finish(norm);
    }

    /// Runs one layer.
    pub fn layer(
        &mut self,
        weights: &AttentionWeights,
        attention: &Attention<'_>,
        feed_forward: &FeedForward,
        norms: &Norms<'_>,
    ) {
        let count = self.encoding.tokens.len();
        let pieces = |count: usize| {
            (0..count)
                .step_by(PIECE_TOKENS)
                .map(move |start| start..count.min(start + PIECE_TOKENS))
        };
        for piece in pieces(count) {
            self.keys_and_values(weights, attention, norms, piece);
        }
        for piece in pieces(count) {
            self.attend(weights, attention, norms, piece.clone());
            self.add_attended(weights, norms, piece.clone());
            self.add_feed_forward(feed_forward, norms, piece);
        }
    }

    /// Normalizes the residual stream in place.
    pub fn finish(&mut self, norm: &LayerNorm) {
        let width = norm.weight.len();
        let Encode {
            table,
            pool,
            normed: scratch,
            ..
        } = &mut *self.encode;
        for rows in self
            .encoding
            .hidden
            .chunks_mut(scratch.len() / width * width)
        {
            let scratch = &mut scratch[..rows.len()];
            scratch.copy_from_slice(rows);
            normalize(table, pool, norm, scratch, rows);
        }
    }
}
