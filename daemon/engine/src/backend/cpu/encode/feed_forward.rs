//! The feed-forward part of a layer.

use super::super::share;
use super::steps::{add_and_normalize, normalize, project};
use super::weights::{Activation, FeedForward, Norms};
use super::{Encode, EncodePass, ROWS};
use std::ops::Range;

impl EncodePass<'_> {
    /// Adds the feed-forward part to a piece of the residual stream.
    pub(super) fn add_feed_forward(
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
