//! One batch on its way through a model: the steps that architectures are put together from.

use super::buffers::Buffers;
use super::matmul::{Product, multiply};
use super::{Cpu, Threads, share};
use crate::backend::{Activation, Attend, Batch, Heads, Output, Parts, Residual, Steps};
use crate::kv::HostPages;
use crate::layer::Rope;
use crate::weights::{Linear, Matrix, RmsNorm, Weights};
use andon_kernels::block;

/// Tokens below which elementwise steps run on the calling thread: sharing them out costs more than they do.
const SHARED_TOKENS_MIN: usize = 4;

/// Tokens that a thread takes at a time in elementwise steps, at most.
const PIECE_TOKENS: usize = 8;

/// Logits that a thread takes at a time.
const LOGITS_PIECE: usize = 1 << 13;

/// A batch in the middle of a model.
pub struct Pass<'a> {
    pub(crate) cpu: &'a mut Cpu,
    pub(crate) cache: &'a mut HostPages,
    pub(crate) weights: Weights<'a>,
    pub(crate) batch: &'a Batch,
    /// The tokens of it that are to have logits, where others are not; see [`Pass::keep_outputs`].
    pub(crate) kept: Option<&'a Batch>,
    /// Whether the caller wants the pass to be given up.
    pub(crate) interrupted: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Pass<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Pass")
            .field("batch", &self.batch)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

/// Tokens of a piece: all of them where the calling thread does the work.
pub(super) fn piece_tokens(pool: &Threads, token_count: usize) -> usize {
    if token_count < SHARED_TOKENS_MIN {
        token_count
    } else {
        token_count.div_ceil(pool.threads()).min(PIECE_TOKENS)
    }
}

/// Runs `work` on every piece, on all threads if there are enough tokens.
pub(super) fn run<I>(
    pool: &mut Threads,
    token_count: usize,
    pieces: I,
    work: impl Fn(I::Item) + Sync,
) where
    I: Iterator + Send,
{
    if token_count < SHARED_TOKENS_MIN {
        pieces.for_each(work);
    } else {
        share(pool, pieces, |_, piece| work(piece));
    }
}

impl Pass<'_> {
    /// Tokens that the buffers hold.
    pub(super) fn token_count(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Whether the caller wants the pass to be given up. Its sequences then stay as they were: what is in the cache
    /// beyond their ends is nobody's.
    fn is_interrupted(&self) -> bool {
        (self.interrupted)()
    }

    /// Whether there are tokens whose logits nobody wants.
    fn has_others(&self) -> bool {
        self.kept.is_some()
    }

    /// Goes on with the tokens that are to have logits and forgets the others and the rotations, between two steps that
    /// leave nothing but the residual stream and the cache. False if there are none to go on with.
    fn keep_outputs(&mut self) -> bool {
        let Some(kept) = self.kept.take() else {
            return true;
        };
        let Buffers { sizes, hidden, .. } = &mut self.cpu.buffers;
        // Outputs ascend, so none is overwritten before it was moved.
        for (place, &token) in self.batch.outputs.iter().enumerate() {
            let (from, width) = (token * sizes.embedding, sizes.embedding);
            hidden.copy_within(from..from + width, place * width);
        }
        self.batch = kept;
        !kept.tokens.is_empty()
    }

    /// Sets the residual stream to the rows of `matrix` that the tokens name, each element times `scale`.
    fn embed(&mut self, matrix: &Matrix, scale: f32) {
        let (row_bytes, rows) = (matrix.row_bytes(), self.weights.raw(matrix));
        for (hidden, &token) in self
            .cpu
            .buffers
            .hidden
            .chunks_exact_mut(matrix.row_elements)
            .zip(&self.batch.tokens)
        {
            let start = token as usize * row_bytes;
            block::decode_row(matrix.format, &rows[start..start + row_bytes], hidden);
            multiply_by(hidden, scale);
        }
    }

    /// Computes the rotations of the batch's positions by each of `ropes`, for [`Pass::finish_heads`] in the layers to come.
    fn prepare_ropes(&mut self, ropes: &[Rope]) {
        let Buffers {
            ropes: tables,
            sizes,
            ..
        } = &mut self.cpu.buffers;
        for (table, rope) in tables.iter_mut().zip(ropes) {
            let rows = table.chunks_exact_mut(rope.frequencies.len().max(1));
            for (row, &position) in rows.zip(&self.batch.positions) {
                for (pair, rotation) in row.iter_mut().zip(rope.rotations(position, sizes.context))
                {
                    *pair = rotation;
                }
            }
        }
    }

    /// Normalizes the residual stream into the input of `matrices`; without a norm it is their input as it is.
    fn norm(&mut self, norm: Option<&RmsNorm>, matrices: &[&Linear]) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let table = &*table;
        let k = buffers.sizes.embedding;
        let quantized = matrices
            .iter()
            .any(|linear| linear.matrix.format.is_quantized());
        let each = piece_tokens(pool, count);
        let items = buffers.hidden[..count * k]
            .chunks(each * k)
            .zip(buffers.normed[..count * k].chunks_mut(each * k));
        let normalize = |hidden: &[f32], normed: &mut [f32]| match norm {
            Some(norm) => {
                for (hidden, normed) in hidden.chunks_exact(k).zip(normed.chunks_exact_mut(k)) {
                    table.rms_norm(hidden, &norm.weight, norm.epsilon, normed);
                }
            }
            None => normed.copy_from_slice(hidden),
        };
        if quantized {
            let items = items.zip(buffers.levels.pieces(k, each));
            run(pool, count, items, |((hidden, normed), mut levels)| {
                normalize(hidden, normed);
                table.quantize(normed, &mut levels.first(normed.len()));
            });
        } else {
            run(pool, count, items, |(hidden, normed)| {
                normalize(hidden, normed);
            });
        }
    }

    /// Logits of the batch's outputs: normalizes their residual streams, which alone are left
    /// ([`Pass::keep_outputs`]), and multiplies with the output's matrix.
    fn output(&mut self, output: &Output<'_>) {
        let count = self.batch.outputs.len();
        let (norm, matrix) = (output.norm, &output.linear.matrix);
        let k = norm.weight.len();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let elements = count * matrix.row_count;
        // No more than is needed: rows are long.
        let more = elements.saturating_sub(buffers.logits.len());
        buffers.logits.reserve_exact(more);
        buffers.logits.resize(elements, 0.0);
        if count == 0 {
            return;
        }
        let outputs = buffers.hidden.chunks_exact(k).take(count);
        for (normed, hidden) in buffers.normed.chunks_exact_mut(k).zip(outputs) {
            table.rms_norm(hidden, &norm.weight, norm.epsilon, normed);
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
        let bias = output.linear.bias.as_deref();
        if bias.is_none() && output.scale == 1.0 && output.cap.is_none() {
            return;
        }
        // As many pieces as it takes to keep every thread busy, none of them across two rows.
        let each = LOGITS_PIECE.min(matrix.row_count);
        let pieces = buffers
            .logits
            .chunks_exact_mut(matrix.row_count)
            .flat_map(|row| row.chunks_mut(each).enumerate());
        let table = &*table;
        share(pool, pieces, |_, (index, logits)| {
            if let Some(bias) = bias {
                add_to(logits, &bias[index * each..][..logits.len()]);
            }
            multiply_by(logits, output.scale);
            if let Some(cap) = output.cap {
                table.soft_cap(logits, cap);
            }
        });
    }
}

impl Steps for Pass<'_> {
    fn is_interrupted(&self) -> bool {
        Pass::is_interrupted(self)
    }

    fn has_others(&self) -> bool {
        Pass::has_others(self)
    }

    fn keep_outputs(&mut self) -> bool {
        Pass::keep_outputs(self)
    }

    fn embed(&mut self, matrix: &Matrix, scale: f32) {
        Pass::embed(self, matrix, scale);
    }

    fn prepare_ropes(&mut self, ropes: &[Rope]) {
        Pass::prepare_ropes(self, ropes);
    }

    fn norm(&mut self, norm: Option<&RmsNorm>, matrices: &[&Linear]) {
        Pass::norm(self, norm, matrices);
    }

    fn project(&mut self, linears: [&Linear; 3], parts: Parts) {
        Pass::project(self, linears, parts);
    }

    fn finish_heads(&mut self, heads: &Heads<'_>, parts: Parts) {
        Pass::finish_heads(self, heads, parts);
    }

    fn remember(&mut self, layer: usize) {
        Pass::remember(self, layer);
    }

    fn attend(&mut self, attend: &Attend) {
        Pass::attend(self, attend);
    }

    fn add_attended(&mut self, linear: &Linear, residual: &Residual<'_>) {
        Pass::add_attended(self, linear, residual);
    }

    fn add_gated(
        &mut self,
        activation: Activation,
        gate: &Linear,
        up: &Linear,
        down: &Linear,
        residual: &Residual<'_>,
    ) {
        Pass::add_gated(self, activation, gate, up, down, residual);
    }

    fn output(&mut self, output: &Output<'_>) {
        Pass::output(self, output);
    }
}

/// Adds `other` to `values`, element by element.
pub(super) fn add_to(values: &mut [f32], other: &[f32]) {
    for (value, other) in values.iter_mut().zip(other) {
        *value += other;
    }
}

/// Multiplies `values` by a factor, of which one changes nothing.
pub(super) fn multiply_by(values: &mut [f32], factor: f32) {
    if factor != 1.0 {
        for value in values {
            *value *= factor;
        }
    }
}
