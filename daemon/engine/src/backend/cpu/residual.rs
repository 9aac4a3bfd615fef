//! What a layer's parts give to the residual stream.

use super::Cpu;
use super::matmul::{Gated, Product, multiply, multiply_gated};
use super::pass::{Pass, add_to, multiply_by, piece_tokens, run};
use crate::backend::{Activation, Residual};
use crate::weights::Linear;
use andon_kernels::ColumnsMut;

impl Pass<'_> {
    /// Adds `linear` of what attention gave to the residual stream.
    pub(super) fn add_attended(&mut self, linear: &Linear, residual: &Residual<'_>) {
        let count = self.token_count();
        let matrix = &linear.matrix;
        let k = matrix.row_elements;
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        if matrix.format.is_quantized() {
            let table = &*table;
            let each = piece_tokens(pool, count);
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
        self.add_projected(linear.bias.as_deref(), residual);
    }

    /// Adds the gated feed-forward part of the normalized input to the residual stream.
    pub(super) fn add_gated(
        &mut self,
        activation: Activation,
        gate: &Linear,
        up: &Linear,
        down: &Linear,
        residual: &Residual<'_>,
    ) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let columns = buffers
            .levels
            .columns(&buffers.normed, gate.matrix.row_elements, count);
        let k = down.matrix.row_elements;
        let gated = Gated {
            matrices: [&gate.matrix, &up.matrix],
            output: if down.matrix.format.is_quantized() {
                ColumnsMut::Quantized(buffers.activated.first(k, count))
            } else {
                ColumnsMut::Values(&mut buffers.gated[..k * count])
            },
        };
        let (gate_bias, up_bias) = (gate.bias.as_deref(), up.bias.as_deref());
        let shared_table = &*table;
        let finish = |first: usize, gate: &mut [f32], up: &mut [f32], output: ColumnsMut<'_>| {
            for (values, bias) in [(&mut *gate, gate_bias), (&mut *up, up_bias)] {
                if let Some(bias) = bias {
                    add_to(values, &bias[first..]);
                }
            }
            match activation {
                Activation::Silu => shared_table.swiglu(gate, up),
                Activation::GeluTanh => shared_table.geglu_tanh(gate, up),
            }
            match output {
                ColumnsMut::Values(values) => values.copy_from_slice(gate),
                ColumnsMut::Quantized(mut levels) => shared_table.quantize(gate, &mut levels),
            }
        };
        multiply_gated(table, pool, self.weights, columns, gated, finish);
        let columns = buffers.activated.columns(&buffers.gated, k, count);
        multiply(
            table,
            pool,
            self.weights,
            columns,
            [Product {
                matrix: &down.matrix,
                output: &mut buffers.projected,
            }],
        );
        self.add_projected(down.bias.as_deref(), residual);
    }

    fn add_projected(&mut self, bias: Option<&[f32]>, residual: &Residual<'_>) {
        let count = self.token_count();
        let Cpu {
            table,
            pool,
            buffers,
        } = &mut *self.cpu;
        let table = &*table;
        let k = buffers.sizes.embedding;
        let each = piece_tokens(pool, count);
        // The input of the matrices is used up: its place takes what is normalized.
        let items = buffers.hidden[..count * k]
            .chunks_mut(each * k)
            .zip(buffers.projected[..count * k].chunks_mut(each * k))
            .zip(buffers.normed[..count * k].chunks_mut(each * k));
        run(pool, count, items, |((hidden, projected), normed)| {
            let tokens = hidden
                .chunks_exact_mut(k)
                .zip(projected.chunks_exact_mut(k))
                .zip(normed.chunks_exact_mut(k));
            for ((hidden, projected), normed) in tokens {
                add_to(projected, bias.unwrap_or_default());
                let added = match residual.norm {
                    Some(norm) => {
                        table.rms_norm(projected, &norm.weight, norm.epsilon, normed);
                        normed
                    }
                    None => projected,
                };
                multiply_by(added, residual.scale);
                add_to(hidden, added);
            }
        });
    }
}
