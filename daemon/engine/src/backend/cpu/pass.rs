//! One batch on its way through a model: the steps that architectures are put together from.

use super::matmul::{Product, multiply};
use super::{Cpu, share};
use crate::kv::{Cache, PAGE};
use crate::weights::Matrix;
use andon_kernels::block;
use andon_kernels::op::rope::Pairing;
use andon_os::{Mapping, Pool};

/// Tokens below which elementwise steps run on the calling thread: sharing them out costs more than they do.
const SHARED_TOKENS_MIN: usize = 8;

/// Tokens that a thread takes at a time in elementwise steps.
const PIECE_TOKENS: usize = 8;

/// The tokens of a batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// Token ids.
    pub(crate) tokens: Vec<u32>,
    /// Position of each token in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Range of each token's sequence in `pages`.
    pub(crate) page_ranges: Vec<(usize, usize)>,
    /// Pages of the sequences.
    pub(crate) pages: Vec<u32>,
    /// Indices of the tokens whose logits are wanted, ascending.
    pub(crate) outputs: Vec<usize>,
}

impl Batch {
    /// Forgets the tokens, keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.page_ranges.clear();
        self.pages.clear();
        self.outputs.clear();
    }

    /// Pages of the sequence of token `token`.
    pub(crate) fn pages_of(&self, token: usize) -> &[u32] {
        let (start, end) = self.page_ranges[token];
        &self.pages[start..end]
    }
}

/// A batch in the middle of a model.
#[derive(Debug)]
pub struct Pass<'a> {
    pub(crate) cpu: &'a mut Cpu,
    pub(crate) cache: &'a mut Cache,
    /// The maps of the model's files.
    pub(crate) weights: &'a [Mapping],
    pub(crate) batch: &'a Batch,
}

/// How positions are rotated.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which elements of a head belong together.
    pub pairing: Pairing,
    /// Angle per position of each pair, in radians.
    pub frequencies: Vec<f64>,
}

impl Rope {
    /// The usual frequencies: `base ^ (-2 i / dims)` for pair `i` of `dims / 2`.
    #[must_use]
    pub fn new(pairing: Pairing, base: f64, dims: usize) -> Rope {
        let frequency = |pair: usize| libm::pow(base, -((2 * pair) as f64) / dims as f64);
        Rope {
            pairing,
            frequencies: (0..dims / 2).map(frequency).collect(),
        }
    }
}

/// Tokens of a piece: all of them where the calling thread does the work.
fn piece_tokens(token_count: usize) -> usize {
    if token_count < SHARED_TOKENS_MIN {
        token_count
    } else {
        PIECE_TOKENS
    }
}

/// Runs `work` on every piece, on all threads if there are enough tokens.
fn run<I>(pool: &mut Pool, token_count: usize, pieces: I, work: impl Fn(I::Item) + Sync)
where
    I: Iterator + Send,
{
    if token_count < SHARED_TOKENS_MIN {
        pieces.for_each(work);
    } else {
        share(pool, pieces, |_, piece| work(piece));
    }
}

impl Pass<'_> {
    fn token_count(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Sets the residual stream to the rows of `matrix` that the tokens name.
    pub fn embed(&mut self, matrix: &Matrix) {
        let (row_bytes, rows) = (matrix.row_bytes(), matrix.bytes(self.weights));
        for (hidden, &token) in self
            .cpu
            .buffers
            .hidden
            .chunks_exact_mut(matrix.row_elements)
            .zip(&self.batch.tokens)
        {
            let start = token as usize * row_bytes;
            block::decode_row(matrix.format, &rows[start..start + row_bytes], hidden);
        }
    }

    /// Computes the rotations of the batch's positions, for [`Pass::rotate`] in every layer.
    pub fn prepare_rope(&mut self, rope: &Rope) {
        let rows = self
            .cpu
            .buffers
            .rope
            .chunks_exact_mut(rope.frequencies.len().max(1));
        for (row, &position) in rows.zip(&self.batch.positions) {
            for (pair, &frequency) in row.iter_mut().zip(&rope.frequencies) {
                let (sin, cos) = libm::sincos(position as f64 * frequency);
                *pair = [cos as f32, sin as f32];
            }
        }
    }

    /// Normalizes the residual stream into the input of `matrices`.
    pub fn norm(&mut self, weight: &[f32], epsilon: f32, matrices: &[&Matrix]) {
        let count = self.token_count();
        let k = weight.len();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let table = &*table;
        let normed = &mut buffers.normed[..count * k];
        let hidden = &buffers.hidden[..count * k];
        if !Cpu::quantized(matrices) {
            for (hidden, normed) in hidden.chunks_exact(k).zip(normed.chunks_exact_mut(k)) {
                table.rms_norm(hidden, weight, epsilon, normed);
            }
            return;
        }
        let each = piece_tokens(count);
        let items = hidden
            .chunks(each * k)
            .zip(normed.chunks_mut(each * k))
            .zip(buffers.levels.pieces(k, each));
        run(pool, count, items, |((hidden, normed), mut levels)| {
            for (hidden, normed) in hidden.chunks_exact(k).zip(normed.chunks_exact_mut(k)) {
                table.rms_norm(hidden, weight, epsilon, normed);
            }
            table.quantize(normed, &mut levels.first(normed.len()));
        });
    }

    /// Queries, keys and values of the normalized input.
    pub fn query_key_value(&mut self, query: &Matrix, key: &Matrix, value: &Matrix) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let columns = buffers
            .levels
            .columns(&buffers.normed, query.row_elements, count);
        let products = [
            Product {
                matrix: query,
                output: &mut buffers.query,
            },
            Product {
                matrix: key,
                output: &mut buffers.key,
            },
            Product {
                matrix: value,
                output: &mut buffers.value,
            },
        ];
        multiply(table, pool, self.weights, columns, products);
    }

    /// Rotates the queries and keys by their positions.
    pub fn rotate(&mut self, rope: &Rope, head_dim: usize) {
        let count = self.token_count();
        let pairs = rope.frequencies.len();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let table = &*table;
        let each = piece_tokens(count);
        let (queries, keys) = (buffers.sizes.query, buffers.sizes.key_value);
        let items = buffers.query[..count * queries]
            .chunks_mut(each * queries)
            .zip(buffers.key[..count * keys].chunks_mut(each * keys))
            .zip(buffers.rope.chunks(each * pairs));
        run(pool, count, items, |((query, key), rows)| {
            for ((query, key), row) in query
                .chunks_exact_mut(queries)
                .zip(key.chunks_exact_mut(keys))
                .zip(rows.chunks_exact(pairs))
            {
                for head in query
                    .chunks_exact_mut(head_dim)
                    .chain(key.chunks_exact_mut(head_dim))
                {
                    table.rotate(head, row, rope.pairing);
                }
            }
        });
    }

    /// Stores the keys and values in the cache.
    pub fn remember(&mut self, layer: usize) {
        let Cpu { table, buffers, .. } = &mut *self.cpu;
        let width = buffers.half_key.len();
        for (token, (key, value)) in buffers
            .key
            .chunks_exact(width)
            .zip(buffers.value.chunks_exact(width))
            .take(self.batch.tokens.len())
            .enumerate()
        {
            table.to_half(key, &mut buffers.half_key);
            table.to_half(value, &mut buffers.half_value);
            let position = self.batch.positions[token];
            let page = self.batch.pages_of(token)[position / PAGE];
            self.cache.store(
                page,
                layer,
                position % PAGE,
                &buffers.half_key,
                &buffers.half_value,
            );
        }
    }

    /// Adds `matrix` times what attention gave to the residual stream.
    pub fn add_attended(&mut self, matrix: &Matrix) {
        let count = self.token_count();
        let k = matrix.row_elements;
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        if matrix.format.is_quantized() {
            let table = &*table;
            let each = piece_tokens(count);
            let items = buffers.attended[..count * k]
                .chunks(each * k)
                .zip(buffers.levels.pieces(k, each));
            run(pool, count, items, |(attended, mut levels)| {
                table.quantize(attended, &mut levels.first(attended.len()));
            });
        }
        let columns = buffers.levels.columns(&buffers.attended, k, count);
        multiply(
            table,
            pool,
            self.weights,
            columns,
            [Product {
                matrix,
                output: &mut buffers.projected,
            }],
        );
        self.add_projected();
    }

    /// Adds the gated feed-forward layer of the normalized input to the residual stream.
    pub fn add_swiglu(&mut self, gate: &Matrix, up: &Matrix, down: &Matrix) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let columns = buffers
            .levels
            .columns(&buffers.normed, gate.row_elements, count);
        let products = [
            Product {
                matrix: gate,
                output: &mut buffers.gate,
            },
            Product {
                matrix: up,
                output: &mut buffers.up,
            },
        ];
        multiply(table, pool, self.weights, columns, products);
        let k = down.row_elements;
        let quantized = down.format.is_quantized();
        let each = piece_tokens(count);
        let shared_table = &*table;
        let gates = buffers.gate[..count * k]
            .chunks_mut(each * k)
            .zip(buffers.up[..count * k].chunks(each * k));
        if quantized {
            run(
                pool,
                count,
                gates.zip(buffers.levels.pieces(k, each)),
                |((gate, up), mut levels)| {
                    shared_table.swiglu(gate, up);
                    shared_table.quantize(gate, &mut levels.first(gate.len()));
                },
            );
        } else {
            run(pool, count, gates, |(gate, up)| {
                shared_table.swiglu(gate, up);
            });
        }
        let columns = buffers.levels.columns(&buffers.gate, k, count);
        multiply(
            table,
            pool,
            self.weights,
            columns,
            [Product {
                matrix: down,
                output: &mut buffers.projected,
            }],
        );
        self.add_projected();
    }

    fn add_projected(&mut self) {
        let buffers = &mut self.cpu.buffers;
        let elements = self.batch.tokens.len() * buffers.sizes.embedding;
        for (hidden, projected) in buffers.hidden[..elements]
            .iter_mut()
            .zip(&buffers.projected)
        {
            *hidden += projected;
        }
    }

    /// Logits of the batch's outputs: normalizes their residual streams and multiplies with `matrix`.
    pub fn output(&mut self, norm: &[f32], epsilon: f32, matrix: &Matrix) {
        let count = self.batch.outputs.len();
        let k = norm.len();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        buffers.logits.resize(count * matrix.row_count, 0.0);
        if count == 0 {
            return;
        }
        for (normed, &token) in buffers.normed.chunks_exact_mut(k).zip(&self.batch.outputs) {
            table.rms_norm(
                &buffers.hidden[token * k..(token + 1) * k],
                norm,
                epsilon,
                normed,
            );
        }
        let normed = &buffers.normed[..count * k];
        if matrix.format.is_quantized() {
            for (normed, mut levels) in normed.chunks_exact(k).zip(buffers.levels.pieces(k, 1)) {
                table.quantize(normed, &mut levels);
            }
        }
        let columns = buffers.levels.columns(&buffers.normed, k, count);
        multiply(
            table,
            pool,
            self.weights,
            columns,
            [Product {
                matrix,
                output: &mut buffers.logits,
            }],
        );
    }
}
