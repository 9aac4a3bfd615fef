//! Encoders on the CPU: whole inputs at once, every position attending to every other, layer by layer.
//!
//! An [`Encoding`] holds what lasts from layer to layer (the residual stream); everything else is scratch of
//! [`EncodePass`], used up within a layer. So an encoding may rest between any two layers while another one runs.
//!
//! A layer takes the tokens in pieces, first for the keys and values of all, then for everything else, so scratch is
//! bounded by the piece, apart from one layer's keys and values. A token's result depends on its own input only, and
//! every sum is taken in one thread in a fixed order: neither the batch, nor the pieces, nor the number of threads
//! changes a byte of it.

use super::attend::{Scratch, block_tokens};
use super::buffers::Levels;
use super::matmul::{Product, multiply};
use super::{Threads, share};
use crate::layer::Rope;
use crate::weights::{Linear, Matrix, Weights};
use andon_kernels::attend;
use andon_kernels::op::attention::{Keys, PAGE, Queries, TILE, Values, key_index};
use andon_kernels::{Table, block};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Tokens that go through the matrices together: enough to read weights rarely, few enough to keep scratch small.
const PIECE_TOKENS: usize = 256;

/// Tokens that a thread takes at a time in elementwise steps.
const ROWS: usize = 8;

/// Weights of a layer norm.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// Factor of each element.
    pub weight: Vec<f32>,
    /// What is added to each element.
    pub bias: Option<Vec<f32>>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What positions do to a layer's attention.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Factor of the scores.
    pub scale: f32,
    /// Rotation of queries and keys, an index into the ropes given to [`Encode::new`].
    pub rope: Option<usize>,
    /// Slope of each head's linear bias.
    pub slopes: Option<&'a [f32]>,
    /// Positions on either side that are attended to; `None` for all.
    pub reach: Option<usize>,
    /// Norms of all queries and all keys of a token, before the rotation.
    pub norms: Option<(&'a LayerNorm, &'a LayerNorm)>,
}

/// The matrices of a layer's attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionWeights {
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
    /// From what attention gave to the residual stream.
    pub output: Linear,
}

impl AttentionWeights {
    /// The matrices, in the order of their use.
    pub(crate) fn matrices_mut(&mut self) -> [&mut Matrix; 4] {
        [
            &mut self.key.matrix,
            &mut self.value.matrix,
            &mut self.query.matrix,
            &mut self.output.matrix,
        ]
    }
}

/// The matrices of a layer's feed-forward part and what lies between them.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForward {
    /// `down · gelu(up)`
    Gelu {
        /// First matrix.
        up: Linear,
        /// Second matrix.
        down: Linear,
    },
    /// `down · (act(gate) * up)`
    Gated {
        /// The matrix whose product goes through the activation.
        gate: Linear,
        /// The matrix that it is multiplied with.
        up: Linear,
        /// Second matrix.
        down: Linear,
        /// The activation.
        activation: Activation,
    },
}

impl FeedForward {
    /// The matrices, in the order of their use.
    pub(crate) fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        match self {
            FeedForward::Gelu { up, down } => vec![&mut up.matrix, &mut down.matrix],
            FeedForward::Gated { gate, up, down, .. } => {
                vec![&mut gate.matrix, &mut up.matrix, &mut down.matrix]
            }
        }
    }
}

/// Activation of a gated feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// SiLU, which makes SwiGLU.
    Silu,
    /// The exact GELU, which makes GEGLU.
    Gelu,
}

/// Where norms stand in a layer.
#[derive(Debug, Clone, Copy)]
pub enum Norms<'a> {
    /// After each part's addition to the residual stream, as in BERT. The second of the first pair normalizes once
    /// more, after adding the layer's input again.
    Post(&'a LayerNorm, Option<&'a LayerNorm>, &'a LayerNorm),
    /// Before each part; the first may be missing.
    Pre(Option<&'a LayerNorm>, &'a LayerNorm),
}

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
        let scratch = Scratch::bytes(1, self.head_dim)?.checked_mul(threads)?;
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
            .map(|_| Mutex::new(Scratch::new(1, sizes.head_dim)))
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

/// Products of `input` (rows of `k`) with matrices, biases added.
fn project<const N: usize>(
    table: &Table,
    pool: &mut Threads,
    weights: Weights<'_>,
    levels: &mut Levels,
    input: &[f32],
    products: [(&Linear, &mut [f32]); N],
) {
    let k = products[0].0.matrix.row_elements;
    let count = input.len() / k;
    if products
        .iter()
        .any(|(linear, _)| linear.matrix.format.is_quantized())
    {
        let items = input.chunks(ROWS * k).zip(levels.pieces(k, ROWS));
        share(pool, items, |_, (input, mut levels)| {
            table.quantize(input, &mut levels.first(input.len()));
        });
    }
    let biases = products
        .each_ref()
        .map(|(linear, _)| linear.bias.as_deref());
    let mut products = products.map(|(linear, output)| Product {
        matrix: &linear.matrix,
        output,
    });
    multiply(
        table,
        pool,
        weights,
        levels.columns(input, k, count),
        products.each_mut().map(|product| Product {
            matrix: product.matrix,
            output: &mut *product.output,
        }),
    );
    for (product, bias) in products.iter_mut().zip(biases) {
        let Some(bias) = bias else { continue };
        for row in product.output[..count * bias.len()].chunks_exact_mut(bias.len()) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
}

/// Normalizes rows of `input` into `output`.
fn normalize(
    table: &Table,
    pool: &mut Threads,
    norm: &LayerNorm,
    input: &[f32],
    output: &mut [f32],
) {
    let width = norm.weight.len();
    let items = input
        .chunks(ROWS * width)
        .zip(output.chunks_mut(ROWS * width));
    share(pool, items, |_, (input, output)| {
        for (input, output) in input
            .chunks_exact(width)
            .zip(output.chunks_exact_mut(width))
        {
            let bias = norm.bias.as_deref();
            table.layer_norm(input, &norm.weight, bias, norm.epsilon, output);
        }
    });
}

/// Adds `more` to `rows` and normalizes the sums in place; `scratch` holds a copy of the rows.
fn add_and_normalize(
    table: &Table,
    pool: &mut Threads,
    norm: Option<&LayerNorm>,
    rows: &mut [f32],
    more: &[f32],
    scratch: &mut [f32],
) {
    for (value, more) in rows.iter_mut().zip(more) {
        *value += more;
    }
    if let Some(norm) = norm {
        let scratch = &mut scratch[..rows.len()];
        scratch.copy_from_slice(rows);
        normalize(table, pool, norm, scratch, rows);
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

    /// Keys and values of a piece, into the layer's store.
    fn keys_and_values(
        &mut self,
        weights: &AttentionWeights,
        attention: &Attention<'_>,
        norms: &Norms<'_>,
        piece: Range<usize>,
    ) {
        let width = self.encode.sizes.embedding;
        let head_dim = self.encode.sizes.head_dim;
        let count = piece.len();
        self.attention_input(norms, piece.clone(), |encode, stored, input| {
            project(
                &encode.table,
                &mut encode.pool,
                stored,
                &mut encode.levels,
                input,
                [
                    (&weights.key, &mut encode.key[..count * width]),
                    (&weights.value, &mut encode.value[..count * width]),
                ],
            );
        });
        let norm = attention.norms.map(|(_, key)| key);
        self.place(Side::Key, norm, attention.rope, piece.clone());
        let Encode {
            table,
            key,
            value,
            half,
            keys,
            values,
            ..
        } = &mut *self.encode;
        for ((token, key), value) in piece
            .zip(key.chunks_exact(width))
            .zip(value.chunks_exact(width))
        {
            let span = self.encoding.spans[self.encoding.span_of[token] as usize];
            let position = token - span.first;
            let padded = EncodeSizes::padded(span.length);
            table.to_half(key, half);
            for (head, half) in half.chunks_exact(head_dim).enumerate() {
                let start = span.place * width + head * padded * head_dim;
                for (dim, &half) in half.iter().enumerate() {
                    keys[start + key_index(position, dim, head_dim)] = half;
                }
            }
            table.to_half(value, half);
            for (head, half) in half.chunks_exact(head_dim).enumerate() {
                let start = span.place * width + (head * padded + position) * head_dim;
                values[start..start + head_dim].copy_from_slice(half);
            }
        }
    }

    /// Gives `work` the input that attention's matrices have for a piece.
    fn attention_input(
        &mut self,
        norms: &Norms<'_>,
        piece: Range<usize>,
        work: impl FnOnce(&mut Encode, Weights<'_>, &[f32]),
    ) {
        let width = self.encode.sizes.embedding;
        let rows = &self.encoding.hidden[piece.start * width..piece.end * width];
        match norms {
            Norms::Pre(Some(norm), _) => {
                let mut normed = std::mem::take(&mut self.encode.normed);
                let input = &mut normed[..rows.len()];
                let Encode { table, pool, .. } = &mut *self.encode;
                normalize(table, pool, norm, rows, input);
                work(self.encode, self.weights, input);
                self.encode.normed = normed;
            }
            Norms::Pre(None, _) | Norms::Post(..) => work(self.encode, self.weights, rows),
        }
    }

    /// Normalizes and rotates a piece's queries or keys.
    fn place(
        &mut self,
        side: Side,
        norm: Option<&LayerNorm>,
        rope: Option<usize>,
        piece: Range<usize>,
    ) {
        let width = self.encode.sizes.embedding;
        let head_dim = self.encode.sizes.head_dim;
        let Encode {
            table,
            pool,
            ropes,
            query,
            key,
            projected,
            ..
        } = &mut *self.encode;
        let table = &*table;
        let rows = match side {
            Side::Query => &mut query[..piece.len() * width],
            Side::Key => &mut key[..piece.len() * width],
        };
        if let Some(norm) = norm {
            let scratch = &mut projected[..rows.len()];
            scratch.copy_from_slice(rows);
            normalize(table, pool, norm, scratch, rows);
        }
        let Some(index) = rope else { return };
        let (rope, angles) = &ropes[index];
        let (pairs, encoding) = (rope.frequencies.len(), &*self.encoding);
        let items = piece.step_by(ROWS).zip(rows.chunks_mut(ROWS * width));
        share(pool, items, |_, (first, rows)| {
            for (token, row) in (first..).zip(rows.chunks_exact_mut(width)) {
                let position = token - encoding.spans[encoding.span_of[token] as usize].first;
                let angles = &angles[position * pairs..(position + 1) * pairs];
                for head in row.chunks_exact_mut(head_dim) {
                    table.rotate(head, angles, rope.pairing);
                }
            }
        });
    }

    /// What attention makes of the values, for a piece of the queries.
    fn attend(
        &mut self,
        weights: &AttentionWeights,
        attention: &Attention<'_>,
        norms: &Norms<'_>,
        piece: Range<usize>,
    ) {
        let width = self.encode.sizes.embedding;
        let head_dim = self.encode.sizes.head_dim;
        let count = piece.len();
        self.attention_input(norms, piece.clone(), |encode, stored, input| {
            project(
                &encode.table,
                &mut encode.pool,
                stored,
                &mut encode.levels,
                input,
                [(&weights.query, &mut encode.query[..count * width])],
            );
        });
        let norm = attention.norms.map(|(query, _)| query);
        self.place(Side::Query, norm, attention.rope, piece.clone());
        let Encode {
            table,
            pool,
            query,
            attended,
            keys,
            values,
            scratch,
            ..
        } = &mut *self.encode;
        let layer = Attend {
            table,
            attention,
            encoding: &*self.encoding,
            width,
            head_dim,
            keys,
            values,
        };
        let tokens = block_tokens(1);
        let items = piece
            .step_by(tokens)
            .zip(query[..count * width].chunks(tokens * width))
            .zip(attended[..count * width].chunks_mut(tokens * width));
        share(pool, items, |thread, ((first, query), attended)| {
            // Each thread has its own scratch; the lock is never contended.
            let mut scratch = scratch[thread]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            layer.attend(first, query, attended, &mut scratch);
        });
    }

    /// Adds what attention gave to a piece of the residual stream.
    fn add_attended(&mut self, weights: &AttentionWeights, norms: &Norms<'_>, piece: Range<usize>) {
        let width = self.encode.sizes.embedding;
        let elements = piece.len() * width;
        let Encode {
            table,
            pool,
            levels,
            attended,
            projected,
            normed,
            key: input,
            ..
        } = &mut *self.encode;
        let output = &mut projected[..elements];
        let attended = &attended[..elements];
        project(
            table,
            pool,
            self.weights,
            levels,
            attended,
            [(&weights.output, &mut *output)],
        );
        let rows = &mut self.encoding.hidden[piece.start * width..piece.end * width];
        match *norms {
            Norms::Pre(..) => add_and_normalize(table, pool, None, rows, output, normed),
            Norms::Post(norm, None, _) => {
                add_and_normalize(table, pool, Some(norm), rows, output, normed);
            }
            Norms::Post(norm, Some(again), _) => {
                let input = &mut input[..elements];
                input.copy_from_slice(rows);
                add_and_normalize(table, pool, Some(norm), rows, output, normed);
                add_and_normalize(table, pool, Some(again), rows, input, normed);
            }
        }
    }

    /// Adds the feed-forward part to a piece of the residual stream.
    fn add_feed_forward(
        &mut self,
        feed_forward: &FeedForward,
        norms: &Norms<'_>,
        piece: Range<usize>,
    ) {
        let width = self.encode.sizes.embedding;
        let between = self.encode.sizes.feed_forward;
        let elements = piece.len() * width;
        let inner = piece.len() * between;
        let Encode {
            table,
            pool,
            levels,
            projected,
            normed,
            gate,
            up,
            ..
        } = &mut *self.encode;
        let table = &*table;
        let rows = &mut self.encoding.hidden[piece.start * width..piece.end * width];
        let input = match norms {
            Norms::Pre(_, norm) => {
                let input = &mut normed[..elements];
                normalize(table, pool, norm, rows, input);
                &*input
            }
            Norms::Post(..) => &*rows,
        };
        let (gate, up) = (&mut gate[..inner], &mut up[..inner]);
        let down = match feed_forward {
            FeedForward::Gelu { up: first, down } => {
                project(
                    table,
                    pool,
                    self.weights,
                    levels,
                    input,
                    [(first, &mut *gate)],
                );
                share(pool, gate.chunks_mut(ROWS * between), |_, rows| {
                    table.gelu_erf(rows);
                });
                down
            }
            FeedForward::Gated {
                gate: first,
                up: second,
                down,
                activation,
            } => {
                let products = [(first, &mut *gate), (second, &mut *up)];
                project(table, pool, self.weights, levels, input, products);
                let items = gate
                    .chunks_mut(ROWS * between)
                    .zip(up.chunks(ROWS * between));
                share(pool, items, |_, (gate, up)| match activation {
                    Activation::Silu => table.swiglu(gate, up),
                    Activation::Gelu => table.geglu_erf(gate, up),
                });
                down
            }
        };
        let output = &mut projected[..elements];
        project(
            table,
            pool,
            self.weights,
            levels,
            gate,
            [(down, &mut *output)],
        );
        let norm = match *norms {
            Norms::Pre(..) => None,
            Norms::Post(_, _, norm) => Some(norm),
        };
        add_and_normalize(table, pool, norm, rows, output, normed);
    }
}

/// Which of a token's vectors.
#[derive(Debug, Clone, Copy)]
enum Side {
    Query,
    Key,
}

/// A layer's attention over the inputs of an encoding.
struct Attend<'a> {
    table: &'a Table,
    attention: &'a Attention<'a>,
    encoding: &'a Encoding,
    width: usize,
    head_dim: usize,
    keys: &'a [u16],
    values: &'a [u16],
}

impl Attend<'_> {
    /// Attention of consecutive tokens from `first` on, whose queries are the rows of `query`, into the rows of
    /// `attended`.
    fn attend(&self, first: usize, query: &[f32], attended: &mut [f32], scratch: &mut Scratch) {
        let (width, head_dim) = (self.width, self.head_dim);
        let count = query.len() / width;
        let mut done = 0;
        while done < count {
            let token = first + done;
            let span = self.encoding.spans[self.encoding.span_of[token] as usize];
            let position = token - span.first;
            let tokens = (span.length - position).min(count - done);
            let padded = EncodeSizes::padded(span.length);
            for head in 0..width / head_dim {
                let start = span.place * width + head * padded * head_dim;
                let store = start..start + padded * head_dim;
                let (keys, values) = (&self.keys[store.clone()], &self.values[store]);
                let reach = self.attention.reach.unwrap_or(usize::MAX);
                let attention = attend::Attention {
                    scale: self.attention.scale,
                    cap: None,
                    slopes: self.attention.slopes.map(|slopes| &slopes[head..=head]),
                    before: reach,
                    after: reach,
                };
                let block = attend::Block {
                    queries: Queries {
                        values: &query[done * width + head * head_dim..],
                        token_stride: width,
                        tokens,
                        group: 1,
                        head_dim,
                    },
                    quantized: None,
                    position,
                    length: span.length,
                };
                let page = |page: usize| {
                    let start = page * PAGE * head_dim;
                    (Keys::F16(&keys[start..]), Values::F16(&values[start..]))
                };
                scratch.attend(
                    self.table,
                    &attention,
                    &block,
                    false,
                    page,
                    |row, result| {
                        let start = (done + row) * width + head * head_dim;
                        attended[start..start + head_dim].copy_from_slice(result);
                    },
                );
            }
            done += tokens;
        }
    }
}
