//! One batch on its way through a model on a device.
//!
//! Steps are launches, one after the other on one stream, which may be recorded; nothing waits for them before what was found
//! is read, but in passes of many tokens, where that lets the pass be interrupted. What a part gives to
//! the residual stream is added where its next norm is computed. All tokens are computed to the end: what the last layer
//! could leave out is little beside all others.
//!
//! Invariant: after the first step that failed nothing more is asked of the device, and the pass gives up.

use super::Cuda;
use super::pages::CudaPages;
use super::weights::{Weights, address, address_of_biases};
use crate::backend::{
    Activation, Attend, Batch, Heads, Output, Parts, Residual, Steps, cpu::Sizes,
};
use crate::layer::Rope;
use crate::weights::{Linear, Matrix, RmsNorm};
use andon_cuda::{Addition, Columns, Device, Error, Gate, Kernel, Mark};
use andon_kernels::op::rope::Pairing;
use std::ops::Range;

/// Tokens up to which a pass takes about as long as one of a single token.
pub(super) const FEW_TOKENS: usize = 16;

/// A batch in the middle of a model.
pub(super) struct Pass<'a> {
    pub(super) cuda: &'a mut Cuda,
    pub(super) pages: &'a mut CudaPages,
    pub(super) batch: &'a Batch,
    pub(super) interrupted: &'a dyn Fn() -> bool,
    /// What is to be added to the residual stream: the norm of that first, with what it adds, and its factor.
    pub(super) pending: Option<(Option<(usize, f32)>, f32)>,
    /// Where the layer before this ends.
    pub(super) layer_end: Option<Mark>,
    /// What is to be done to heads.
    pub(super) heads: Option<HeadsOf>,
    pub(super) done: Result<(), Error>,
}

/// [`Heads`], by what of it is on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadsOf {
    bias: Option<usize>,
    query_norm: Option<NormOf>,
    key_norm: Option<NormOf>,
    /// Rotation, pairs, and whether those are of adjacent elements.
    rope: Option<(usize, usize, bool)>,
    grows: bool,
}

/// A norm of heads.
#[derive(Clone, Copy, Debug)]
struct NormOf {
    weight: usize,
    epsilon: f32,
    /// Of all heads together.
    whole: bool,
}

impl Pass<'_> {
    fn count(&self) -> usize {
        self.batch.tokens.len()
    }

    fn sizes(&self) -> &Sizes {
        &self.cuda.sizes
    }

    /// Does something, unless something went wrong before.
    fn then(&mut self, step: impl FnOnce(&mut Self) -> Result<(), Error>) {
        if self.done.is_ok() {
            self.done = step(self);
        }
    }

    /// Adds what is to be added to the residual stream, and makes the input of matrices of its norm.
    fn add_and_norm(&mut self, norm: Option<&RmsNorm>) -> Result<(), Error> {
        let count = self.count();
        let pending = self.pending.take();
        // A model's norms all add the same.
        let of_pending = pending.and_then(|(norm, _)| norm);
        let epsilon = norm
            .map(|norm| norm.epsilon)
            .or(of_pending.map(|(_, epsilon)| epsilon))
            .unwrap_or_default();
        let Cuda {
            device,
            buffers,
            weights,
            ..
        } = &mut *self.cuda;
        let addition = pending.map(|(weight, scale)| Addition {
            delta: &buffers.projected,
            weight: weight.map(|(weight, _)| weights.at(weight)),
            scale,
        });
        let weight = norm.map(|norm| weights.vector(&norm.weight));
        if addition.is_none() && weight.is_none() {
            return Ok(());
        }
        let hidden = &mut buffers.hidden;
        device.add_norm_quantize(hidden, count, addition, weight, epsilon, &mut buffers.inner)
    }
}

/// Adds to columns what a matrix's biases are, if it has any.
fn add_bias(
    device: &Device,
    weights: &Weights,
    linears: &[&Linear],
    (values, count): (&mut andon_cuda::Buffer<f32>, usize),
    stride: usize,
) -> Result<(), Error> {
    let biases = linears.iter().map(|linear| linear.bias.as_deref());
    address_of_biases(biases).map_or(Ok(()), |name| {
        device.add_bias(values, stride, count, weights.at(name))
    })
}

/// A product of a matrix and `count` columns, from an element of `output` on and with a stride.
fn multiply(
    device: &Device,
    matrix: &andon_cuda::Matrix,
    columns: &Columns,
    count: usize,
    output: &mut andon_cuda::Buffer<f32>,
    place: (usize, usize),
) -> Result<(), Error> {
    device.matmul_at(matrix, columns, count, Kernel::of(count), output, place)
}

impl Steps for Pass<'_> {
    fn is_interrupted(&self) -> bool {
        self.done.is_err() || (self.interrupted)()
    }

    fn has_others(&self) -> bool {
        false
    }

    fn keep_outputs(&mut self) -> bool {
        true
    }

    fn embed(&mut self, matrix: &Matrix, scale: f32) {
        self.then(|pass| {
            let count = pass.count();
            let Cuda {
                device,
                buffers,
                weights,
                ..
            } = &mut *pass.cuda;
            let (matrix, tokens) = (weights.matrix(matrix), buffers.places.tokens());
            device.embed(matrix, &tokens, count, scale, &mut buffers.hidden)
        });
    }

    // They were given, see `Positions`.
    fn prepare_ropes(&mut self, _ropes: &[Rope]) {}

    fn norm(&mut self, norm: Option<&RmsNorm>, _matrices: &[&Linear]) {
        self.then(|pass| {
            pass.add_and_norm(norm)?;
            if norm.is_some() {
                return Ok(());
            }
            let (count, width) = (pass.count(), pass.sizes().embedding);
            let Cuda {
                device, buffers, ..
            } = &mut *pass.cuda;
            device.quantize(&buffers.hidden, width, count, &mut buffers.inner)
        });
    }

    fn project(&mut self, linears: [&Linear; 3], _parts: Parts) {
        self.then(|pass| {
            let (count, sizes) = (pass.count(), *pass.sizes());
            let stride = sizes.query + 2 * sizes.key_value;
            let firsts = [0, sizes.query, sizes.query + sizes.key_value];
            let Cuda {
                device,
                buffers,
                weights,
                ..
            } = &mut *pass.cuda;
            for (linear, first) in linears.into_iter().zip(firsts) {
                let matrix = weights.matrix(&linear.matrix);
                let place = (first, stride);
                multiply(
                    device,
                    matrix,
                    &buffers.inner,
                    count,
                    &mut buffers.heads,
                    place,
                )?;
            }
            Ok(())
        });
    }

    fn finish_heads(&mut self, heads: &Heads<'_>, _parts: Parts) {
        let norm = |norm: Option<&RmsNorm>| {
            norm.map(|norm| NormOf {
                weight: address(&norm.weight),
                epsilon: norm.epsilon,
                whole: norm.weight.len() != heads.head_dim,
            })
        };
        self.heads = Some(HeadsOf {
            bias: address_of_biases(heads.biases),
            query_norm: norm(heads.query_norm),
            key_norm: norm(heads.key_norm),
            rope: heads.rope.map(|(index, rope)| {
                let adjacent = rope.pairing == Pairing::Adjacent;
                (index, rope.frequencies.len(), adjacent)
            }),
            grows: heads.temperature.is_some(),
        });
    }

    fn remember(&mut self, layer: usize) {
        self.then(|pass| {
            let mut of = pass.heads.expect("heads were finished");
            let (count, sizes) = (pass.count(), *pass.sizes());
            let stride = sizes.query + 2 * sizes.key_value;
            let Cuda {
                device,
                buffers,
                weights,
                positions,
                ..
            } = &mut *pass.cuda;
            let norms = [(&mut of.query_norm, 0), (&mut of.key_norm, sizes.query)];
            let whole = norms.map(|(norm, first)| Some((norm.take_if(|norm| norm.whole)?, first)));
            let whole = whole.into_iter().flatten();
            if whole.clone().next().is_some() {
                // Biases come before norms.
                if let Some(bias) = of.bias.take() {
                    device.add_bias(&mut buffers.heads, stride, count, weights.at(bias))?;
                }
            }
            for (norm, first) in whole {
                let weight = weights.at(norm.weight);
                let values = &mut buffers.heads;
                device.norm_columns(values, stride, count, first, weight, norm.epsilon)?;
            }
            let vector = |name: Option<usize>| name.map(|name| weights.at(name));
            let weight = |norm: Option<NormOf>| vector(norm.map(|norm| norm.weight));
            // Without positions no pair is rotated.
            let (rope, pairs, adjacent) = of.rope.unwrap_or_default();
            let rotations = positions.rotations(rope, &buffers.places);
            let factors = positions.factors(&buffers.places);
            let heads = andon_cuda::Heads {
                heads: sizes.query / sizes.head_dim,
                bias: vector(of.bias),
                query_weight: weight(of.query_norm),
                key_weight: weight(of.key_norm),
                epsilon: of
                    .query_norm
                    .or(of.key_norm)
                    .map_or(0.0, |norm| norm.epsilon),
                rotations: &rotations,
                pairs,
                adjacent,
                query_factors: factors.as_deref().filter(|_| of.grows),
            };
            let cache = &mut pass.pages.layers[layer];
            device.place_heads(&mut buffers.heads, &heads, cache, &buffers.places)
        });
    }

    fn attend(&mut self, attend: &Attend) {
        self.then(|pass| {
            let sizes = *pass.sizes();
            let Cuda {
                device, buffers, ..
            } = &mut *pass.cuda;
            let how = andon_cuda::Attend {
                heads: sizes.query / sizes.head_dim,
                query_stride: sizes.query + 2 * sizes.key_value,
                before: attend
                    .window
                    .map_or(usize::MAX, |window| window.saturating_sub(1)),
                after: 0,
                scale: attend.scale,
                cap: attend.cap,
            };
            let cache = &pass.pages.layers[attend.layer];
            device.attend(
                &how,
                &buffers.heads,
                (cache, &buffers.places),
                &mut buffers.scratch,
                &mut buffers.attended,
            )
        });
    }

    fn add_attended(&mut self, linear: &Linear, residual: &Residual<'_>) {
        self.then(|pass| {
            let (count, sizes) = (pass.count(), *pass.sizes());
            let Cuda {
                device,
                buffers,
                weights,
                ..
            } = &mut *pass.cuda;
            device.quantize(&buffers.attended, sizes.query, count, &mut buffers.queries)?;
            let matrix = weights.matrix(&linear.matrix);
            let (output, width) = (&mut buffers.projected, sizes.embedding);
            multiply(device, matrix, &buffers.queries, count, output, (0, width))?;
            add_bias(device, weights, &[linear], (output, count), width)
        });
        self.add_later(residual);
    }

    fn add_gated(
        &mut self,
        activation: Activation,
        gate: &Linear,
        up: &Linear,
        down: &Linear,
        residual: &Residual<'_>,
    ) {
        self.then(|pass| {
            let (count, sizes) = (pass.count(), *pass.sizes());
            let Cuda {
                device,
                buffers,
                weights,
                ..
            } = &mut *pass.cuda;
            let (width, stride) = (sizes.feed_forward, 2 * sizes.feed_forward);
            for (linear, first) in [(gate, 0), (up, width)] {
                let matrix = weights.matrix(&linear.matrix);
                let place = (first, stride);
                multiply(
                    device,
                    matrix,
                    &buffers.inner,
                    count,
                    &mut buffers.gates,
                    place,
                )?;
            }
            let gates = (&mut buffers.gates, count);
            add_bias(device, weights, &[gate, up], gates, stride)?;
            let kind = match activation {
                Activation::Silu => Gate::Silu,
                Activation::GeluTanh => Gate::GeluTanh,
            };
            device.glu_quantize(kind, &buffers.gates, stride, count, &mut buffers.wide)?;
            let matrix = weights.matrix(&down.matrix);
            let (output, width) = (&mut buffers.projected, sizes.embedding);
            multiply(device, matrix, &buffers.wide, count, output, (0, width))?;
            add_bias(device, weights, &[down], (output, count), width)
        });
        self.add_later(residual);
        self.then(Pass::end_layer);
    }

    fn output(&mut self, output: &Output<'_>) {
        self.then(|pass| pass.logits(output));
    }
}

impl Pass<'_> {
    /// Waits, in passes that take long, until the device is through with the layer before this one: it always has a layer to
    /// do, and whoever interrupts the pass waits for two at most.
    fn end_layer(&mut self) -> Result<(), Error> {
        if self.count() <= FEW_TOKENS {
            return Ok(());
        }
        let device = &self.cuda.device;
        let end = device.mark()?;
        let before = self.layer_end.replace(end);
        before.map_or(Ok(()), |before| device.wait_for(&before))
    }

    fn add_later(&mut self, residual: &Residual<'_>) {
        let norm = residual
            .norm
            .map(|norm| (address(&norm.weight), norm.epsilon));
        self.pending = Some((norm, residual.scale));
    }

    /// Logits of the batch's outputs, and the best of them. Where there is no room for all on the device they are read, as
    /// many at a time as there is room for.
    fn logits(&mut self, output: &Output<'_>) -> Result<(), Error> {
        let outputs = self.batch.outputs.len();
        if outputs == 0 {
            return Ok(());
        }
        self.add_and_norm(None)?;
        let each = self.cuda.buffers.output_rows;
        if outputs <= each {
            self.some_logits(output, 0..outputs)?;
            let Cuda {
                device, buffers, ..
            } = &mut *self.cuda;
            let rows = output.linear.matrix.row_count;
            return device.find_top_k(&buffers.logits, rows, outputs, &mut buffers.best);
        }
        for first in (0..outputs).step_by(each) {
            let range = first..outputs.min(first + each);
            let count = range.len() * output.linear.matrix.row_count;
            self.some_logits(output, range)?;
            let Cuda {
                device,
                buffers,
                read,
                ..
            } = &mut *self.cuda;
            let before = read.all.len();
            read.all.resize(before + count, 0.0);
            device.read(&buffers.logits, &mut read.all[before..])?;
        }
        Ok(())
    }

    /// Those of some outputs.
    fn some_logits(&mut self, output: &Output<'_>, range: Range<usize>) -> Result<(), Error> {
        let (width, count) = (self.sizes().embedding, range.len());
        let Cuda {
            device,
            buffers,
            weights,
            ..
        } = &mut *self.cuda;
        let outputs = buffers.places.outputs(range);
        let which = (&*outputs, count);
        device.gather_columns(&buffers.hidden, width, which, &mut buffers.kept)?;
        let weight = weights.vector(&output.norm.weight);
        let epsilon = output.norm.epsilon;
        let (kept, inner) = (&mut buffers.kept, &mut buffers.inner);
        let matrix = weights.matrix(&output.linear.matrix);
        let rows = output.linear.matrix.row_count;
        let logits = &mut buffers.logits;
        if matrix.format().is_quantized() {
            device.add_norm_quantize(kept, count, None, Some(weight), epsilon, inner)?;
            multiply(device, matrix, inner, count, logits, (0, rows))?;
        } else {
            device.norm_columns(kept, width, count, 0, weight, epsilon)?;
            device.matmul_floats(matrix, (kept, width), count, logits, rows)?;
        }
        let bias = address_of_biases([output.linear.bias.as_deref()]);
        if bias.is_none() && output.scale == 1.0 && output.cap.is_none() {
            return Ok(());
        }
        let bias = bias.map(|name| weights.at(name));
        device.finish_logits(logits, rows, (rows, count), bias, output.scale, output.cap)
    }
}
