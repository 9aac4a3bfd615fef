//! Queries, keys and values of a batch, up to the cache.

use super::Cpu;
use super::matmul::{Product, multiply};
use super::pass::{Pass, add_to, multiply_by, piece_tokens, run};
use crate::backend::{Heads, Parts};
use crate::kv::PAGE;
use crate::weights::Linear;

impl Pass<'_> {
    /// Queries, keys and values of the normalized input, as their matrices give them.
    pub(super) fn project(&mut self, [query, key, value]: [&Linear; 3], parts: Parts) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let columns = buffers
            .levels
            .columns(&buffers.normed, query.matrix.row_elements, count);
        let query = Product {
            matrix: &query.matrix,
            output: &mut buffers.query,
        };
        let key = Product {
            matrix: &key.matrix,
            output: &mut buffers.key,
        };
        let value = Product {
            matrix: &value.matrix,
            output: &mut buffers.value,
        };
        let weights = self.weights;
        match parts {
            Parts::All => multiply(table, pool, weights, columns, [query, key, value]),
            Parts::Remembered => multiply(table, pool, weights, columns, [key, value]),
            Parts::Queries => multiply(table, pool, weights, columns, [query]),
        }
    }

    /// Adds biases, normalizes and rotates.
    pub(super) fn finish_heads(&mut self, heads: &Heads<'_>, parts: Parts) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let (table, positions) = (&*table, &self.batch.positions);
        let (queries, keys) = (buffers.sizes.query, buffers.sizes.key_value);
        let rotations = heads.rope.map(|(index, rope)| {
            let pairs = rope.frequencies.len();
            (&buffers.ropes[index], pairs, rope.pairing)
        });
        let [query_bias, key_bias, value_bias] = heads.biases;
        let (remembered, queries_too) = (parts != Parts::Queries, parts != Parts::Remembered);
        let each = piece_tokens(pool, count);
        // Attention has not written its results yet: their place holds what is normalized.
        let items = buffers.query[..count * queries]
            .chunks_mut(each * queries)
            .zip(buffers.key[..count * keys].chunks_mut(each * keys))
            .zip(buffers.value[..count * keys].chunks_mut(each * keys))
            .zip(buffers.attended[..count * queries].chunks_mut(each * queries))
            .enumerate();
        run(
            pool,
            count,
            items,
            |(piece, (((query, key), value), scratch))| {
                let tokens = query
                    .chunks_exact_mut(queries)
                    .zip(key.chunks_exact_mut(keys))
                    .zip(value.chunks_exact_mut(keys))
                    .zip(scratch.chunks_exact_mut(queries));
                for (index, (((query, key), value), scratch)) in tokens.enumerate() {
                    let token = piece * each + index;
                    if remembered {
                        add_to(value, value_bias.unwrap_or_default());
                    }
                    for (values, bias, norm, wanted) in [
                        (&mut *query, query_bias, heads.query_norm, queries_too),
                        (&mut *key, key_bias, heads.key_norm, remembered),
                    ] {
                        if !wanted {
                            continue;
                        }
                        add_to(values, bias.unwrap_or_default());
                        if let Some(norm) = norm {
                            for values in values.chunks_exact_mut(norm.weight.len()) {
                                let scratch = &mut scratch[..values.len()];
                                scratch.copy_from_slice(values);
                                table.rms_norm(scratch, &norm.weight, norm.epsilon, values);
                            }
                        }
                        let Some((rows, pairs, pairing)) = rotations else {
                            continue;
                        };
                        let row = &rows[token * pairs..(token + 1) * pairs];
                        for head in values.chunks_exact_mut(heads.head_dim) {
                            table.rotate(head, row, pairing);
                        }
                    }
                    if let Some(temperature) = heads.temperature.filter(|_| queries_too) {
                        multiply_by(query, temperature.at(positions[token]));
                    }
                }
            },
        );
    }

    /// Stores the keys and values in the cache.
    pub(super) fn remember(&mut self, layer: usize) {
        let Cpu { table, buffers, .. } = &mut *self.cpu;
        let width = buffers.sizes.key_value;
        for (token, (key, value)) in buffers
            .key
            .chunks_exact(width)
            .zip(buffers.value.chunks_exact(width))
            .take(self.batch.tokens.len())
            .enumerate()
        {
            let position = self.batch.positions[token];
            let page = self.batch.pages_of(token)[position / PAGE];
            self.cache
                .store(table, page, layer, position % PAGE, key, value);
        }
    }
}
