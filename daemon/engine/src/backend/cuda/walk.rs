//! What a decoder is made of, found by walking through it with nothing computed.
//!
//! Invariant: whatever a pass asks of the device was visited in such a walk, so a model that is covered and whose weights were
//! uploaded lacks nothing when it is computed.

use crate::backend::{Activation, Attend, Heads, Output, Parts, Residual, Steps};
use crate::layer::Rope;
use crate::weights::{Linear, Matrix, RmsNorm};
use andon_cuda::Device;

/// What is done with what a decoder is made of.
pub(super) trait Visit {
    /// A matrix, and what it is for.
    fn matrix(&mut self, of: &str, matrix: &Matrix);
    /// Weights of a norm.
    fn vector(&mut self, values: &[f32]);
    /// Biases of queries, keys and values.
    fn biases(&mut self, biases: [&[f32]; 3]);
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

    fn linear(&mut self, of: &str, linear: &Linear) {
        let of = format!("{of} of layer {}", self.layer);
        self.visit.matrix(&of, &linear.matrix);
        if linear.bias.is_some() {
            self.visit.lacks(format!("a bias of {of}"));
        }
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
        self.visit.matrix("the embedding", matrix);
    }

    fn prepare_ropes(&mut self, _ropes: &[Rope]) {}

    fn norm(&mut self, norm: Option<&RmsNorm>, _matrices: &[&Linear]) {
        self.norm_of(norm);
    }

    fn project(&mut self, linears: [&Linear; 3], _parts: Parts) {
        // Biases are the heads'.
        for (of, linear) in ["queries", "keys", "values"].into_iter().zip(linears) {
            let of = format!("{of} of layer {}", self.layer);
            self.visit.matrix(&of, &linear.matrix);
        }
    }

    fn finish_heads(&mut self, heads: &Heads<'_>, _parts: Parts) {
        if !Device::attends(heads.head_dim) {
            let dims = heads.head_dim;
            self.visit.lacks(format!("heads of {dims} dimensions"));
        }
        match heads.biases {
            [None, None, None] => {}
            [Some(query), Some(key), Some(value)] => self.visit.biases([query, key, value]),
            _ => self
                .visit
                .lacks("biases of some of queries, keys and values".to_owned()),
        }
        for norm in [heads.query_norm, heads.key_norm].into_iter().flatten() {
            if norm.weight.len() != heads.head_dim {
                self.visit.lacks("norms over all heads together".to_owned());
            }
            self.norm_of(Some(norm));
        }
        if heads.rope.is_none() {
            self.visit.lacks("layers without positions".to_owned());
        }
        if heads.temperature.is_some() {
            self.visit
                .lacks("queries that grow with their position".to_owned());
        }
    }

    fn remember(&mut self, _layer: usize) {}

    fn attend(&mut self, _attend: &Attend) {}

    fn add_attended(&mut self, linear: &Linear, residual: &Residual<'_>) {
        self.linear("attention's output", linear);
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
        for (of, linear) in [("gate", gate), ("up", up), ("down", down)] {
            self.linear(of, linear);
        }
        self.residual(residual);
        self.layer += 1;
    }

    fn output(&mut self, output: &Output<'_>) {
        self.norm_of(Some(output.norm));
        self.visit.matrix("the output", &output.linear.matrix);
        if output.linear.bias.is_some() {
            self.visit.lacks("a bias of the output".to_owned());
        }
    }
}
