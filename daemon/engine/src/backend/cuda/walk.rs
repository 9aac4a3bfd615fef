//! What a decoder is made of, found by walking through it with nothing computed.
//!
//! Invariant: whatever a pass asks of the device was visited in such a walk, so a model that is covered and whose weights were
//! uploaded lacks nothing when it is computed.

use crate::backend::{Activation, Attend, Heads, Output, Parts, Residual, Steps, Temperature};
use crate::layer::Rope;
use crate::weights::{Linear, Matrix, RmsNorm};
use andon_cuda::Device;

/// What is done with what a decoder is made of.
pub(super) trait Visit {
    /// A matrix, and what it is for.
    fn matrix(&mut self, of: &str, matrix: &Matrix);
    /// The same of one that has a row for each token.
    fn vocabulary(&mut self, of: &str, matrix: &Matrix) {
        self.matrix(of, matrix);
    }
    /// Weights of a norm.
    fn vector(&mut self, values: &[f32]);
    /// Biases of matrices whose results lie one after the other, where these have any.
    fn biases(&mut self, linears: &[&Linear]);
    /// Rotations by position.
    fn ropes(&mut self, _ropes: &[Rope]) {}
    /// How queries grow with their position.
    fn temperature(&mut self, _temperature: Temperature) {}
    /// Something that there are no kernels for.
    fn lacks(&mut self, what: String);
}

/// A walk that shows a visitor everything.
pub(super) struct Walk<'v, V> {
    visit: &'v mut V,
    layer: usize,
    epsilon: Option<f32>,
}

impl<'v, V: Visit> Walk<'v, V> {
    pub(super) fn new(visit: &'v mut V) -> Walk<'v, V> {
        Walk {
            visit,
            layer: 0,
            epsilon: None,
        }
    }

    fn norm_of(&mut self, norm: Option<&RmsNorm>) {
        let Some(norm) = norm else { return };
        let epsilon = *self.epsilon.get_or_insert(norm.epsilon);
        if norm.epsilon.to_bits() != epsilon.to_bits() {
            self.visit
                .lacks("norms that differ in what they add".to_owned());
        }
        self.visit.vector(&norm.weight);
    }

    /// Matrices whose results lie one after the other.
    fn linears<const N: usize>(&mut self, linears: [(&str, &Linear); N]) {
        for (of, linear) in linears {
            let of = format!("{of} of layer {}", self.layer);
            self.visit.matrix(&of, &linear.matrix);
        }
        self.visit.biases(&linears.map(|(_, linear)| linear));
    }

    fn residual(&mut self, residual: &Residual<'_>) {
        self.norm_of(residual.norm);
    }
}

impl<V: Visit> Steps for Walk<'_, V> {
    fn is_interrupted(&self) -> bool {
        false
    }

    fn has_others(&self) -> bool {
        false
    }

    fn keep_outputs(&mut self) -> bool {
        true
    }

    fn embed(&mut self, matrix: &Matrix, _scale: f32) {
        self.visit.vocabulary("the embedding", matrix);
    }

    fn prepare_ropes(&mut self, ropes: &[Rope]) {
        self.visit.ropes(ropes);
    }

    fn norm(&mut self, norm: Option<&RmsNorm>, _matrices: &[&Linear]) {
        self.norm_of(norm);
    }

    fn project(&mut self, [query, key, value]: [&Linear; 3], _parts: Parts) {
        self.linears([("queries", query), ("keys", key), ("values", value)]);
    }

    fn finish_heads(&mut self, heads: &Heads<'_>, _parts: Parts) {
        if !Device::attends(heads.head_dim) {
            let dims = heads.head_dim;
            self.visit.lacks(format!("heads of {dims} dimensions"));
        }
        for norm in [heads.query_norm, heads.key_norm] {
            self.norm_of(norm);
        }
        if let Some(temperature) = heads.temperature {
            self.visit.temperature(temperature);
        }
    }

    fn remember(&mut self, _layer: usize) {}

    fn attend(&mut self, _attend: &Attend) {}

    fn add_attended(&mut self, linear: &Linear, residual: &Residual<'_>) {
        self.linears([("attention's output", linear)]);
        self.residual(residual);
    }

    fn add_gated(
        &mut self,
        _activation: Activation,
        gate: &Linear,
        up: &Linear,
        down: &Linear,
        residual: &Residual<'_>,
    ) {
        self.linears([("gate", gate), ("up", up)]);
        self.linears([("down", down)]);
        self.residual(residual);
        self.layer += 1;
    }

    fn output(&mut self, output: &Output<'_>) {
        self.norm_of(Some(output.norm));
        self.visit.vocabulary("the output", &output.linear.matrix);
        self.visit.biases(&[output.linear]);
    }
}
