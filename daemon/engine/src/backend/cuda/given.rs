//! What differs from pass to pass, as it is written to the device: tokens, where they are, and numbers that follow from their
//! positions.
//!
//! Invariant: what is given of each token has one size, so passes of as many tokens and outputs find everything at the same
//! places.

use super::walk::{Visit, Walk};
use crate::backend::{Batch, Temperature, cpu::Sizes};
use crate::kv::PAGE;
use crate::layer::Rope;
use crate::models::Architecture;
use crate::weights::{Linear, Matrix};
use andon_cuda::{Device, Error, Given, Part, Places, Room, Run};

/// The numbers that a decoder's steps need of positions.
#[derive(Debug, Default)]
pub(super) struct Positions {
    ropes: Vec<Rope>,
    temperature: Option<Temperature>,
    /// Positions that are served.
    context: usize,
    /// Those of the pass: `[rotation][token][pair]` of cosine and sine, then `[token]` by which queries grow.
    numbers: Vec<f32>,
    outputs: Vec<u32>,
}

impl Visit for Positions {
    fn matrix(&mut self, _of: &str, _matrix: &Matrix) {}
    fn vector(&mut self, _values: &[f32]) {}
    fn biases(&mut self, _linears: &[&Linear]) {}
    fn lacks(&mut self, _what: String) {}

    fn ropes(&mut self, ropes: &[Rope]) {
        self.ropes.extend_from_slice(ropes);
    }

    fn temperature(&mut self, temperature: Temperature) {
        self.temperature = Some(temperature);
    }
}

/// Room for what batches of these sizes are given, in a cache of `pages` pages.
pub(super) fn room(sizes: &Sizes, pages: usize) -> Room {
    let tokens = sizes.tokens_max;
    Room {
        columns: tokens,
        // Sequences of a batch may name more pages together than the cache has, where they share some.
        pages: tokens.saturating_mul(sizes.context.div_ceil(PAGE)),
        page_count: pages,
        outputs: tokens,
        numbers: tokens * (2 * sizes.rope_pairs * sizes.rope_count + 1),
    }
}

impl Positions {
    /// Those of a decoder that is covered.
    pub(super) fn of(decoder: &dyn Architecture, sizes: &Sizes) -> Positions {
        let mut positions = Positions {
            context: sizes.context,
            ..Positions::default()
        };
        // A walk is not interrupted.
        let _ = decoder.forward(&mut Walk::new(&mut positions));
        positions
    }

    /// Numbers of `count` tokens before those of a rotation.
    fn before(&self, rope: usize, count: usize) -> usize {
        let pairs = self.ropes.iter().take(rope);
        let pairs: usize = pairs.map(|rope| rope.frequencies.len()).sum();
        2 * pairs * count
    }

    /// The rotations of the pass's tokens by one of the ropes.
    pub(super) fn rotations<'a>(&self, rope: usize, places: &'a Places) -> Part<'a, f32> {
        let count = places.columns();
        places.numbers(self.before(rope, count)..self.before(rope + 1, count))
    }

    /// By which the pass's queries grow with their position, if they do.
    pub(super) fn factors<'a>(&self, places: &'a Places) -> Option<Part<'a, f32>> {
        let count = places.columns();
        let first = self.before(self.ropes.len(), count);
        self.temperature
            .map(|_| places.numbers(first..first + count))
    }

    /// Gives a batch's pass all that it needs, for sequences of up to `reach` positions.
    pub(super) fn give(
        &mut self,
        device: &Device,
        batch: &Batch,
        reach: usize,
        places: &mut Places,
    ) -> Result<(), Error> {
        self.numbers.clear();
        for rope in &self.ropes {
            for &position in &batch.positions {
                let rotations = rope.rotations(position, self.context);
                self.numbers.extend(rotations.flatten());
            }
        }
        if let Some(temperature) = self.temperature {
            let positions = batch.positions.iter();
            self.numbers.extend(positions.map(|&at| temperature.at(at)));
        }
        self.outputs.clear();
        // A batch has no more tokens than 32 bits count.
        self.outputs
            .extend(batch.outputs.iter().map(|&at| at as u32));
        let given = Given {
            runs: &runs(batch),
            reach,
            tokens: &batch.tokens,
            outputs: &self.outputs,
            numbers: &self.numbers,
        };
        device.give(&given, places)
    }
}

/// Consecutive tokens of one sequence, from the first on.
fn runs(batch: &Batch) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut range = None;
    for (token, &position) in batch.positions.iter().enumerate() {
        match runs.last_mut() {
            Some(run)
                if range == Some(batch.page_ranges[token])
                    && run.position + run.columns == position =>
            {
                run.columns += 1;
            }
            _ => {
                range = Some(batch.page_ranges[token]);
                runs.push(Run {
                    columns: 1,
                    position,
                    pages: batch.pages_of(token),
                });
            }
        }
    }
    runs
}
