//! The attention of a layer: every position of an input attends to every other within reach.

use super::super::attend::{Scratch, block_tokens};
use super::super::share;
use super::steps::{add_and_normalize, normalize, project};
use super::weights::{Attention, AttentionWeights, LayerNorm, Norms};
use super::{Encode, EncodePass, EncodeSizes, Encoding, ROWS};
use crate::weights::Weights;
use andon_kernels::op::attention::{Keys, PAGE, Queries, Values, key_index};
use andon_kernels::{Table, attend};
use std::ops::Range;
use std::sync::PoisonError;

impl EncodePass<'_> {
    /// Keys and values of a piece, into the layer's store.
    pub(super) fn keys_and_values(
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
    pub(super) fn attend(
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
    pub(super) fn add_attended(
        &mut self,
        weights: &AttentionWeights,
        norms: &Norms<'_>,
        piece: Range<usize>,
    ) {
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
