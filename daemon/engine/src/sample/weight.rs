//! Softmax in fixed point, see [`andon_kernels::op::softmax`].
//!
//! Sums of integers are exact, so cumulative probabilities do not depend on the order of adding: the token found at a
//! given one is the same however the search went, on every machine. Tokens that are rounded to no weight are never
//! drawn; a vocabulary of a million of them would have held less than a millionth of the probability.

use andon_kernels::Table;
use andon_kernels::op::softmax::{self, BLOCK};

pub(super) use andon_kernels::op::softmax::{ONE, round as quantize};

/// What weights are computed with: the machine's best kernels, all of which give the same bytes.
#[derive(Debug)]
pub(super) struct Weigher {
    table: Table,
}

impl Default for Weigher {
    fn default() -> Weigher {
        let table = Table::runnable().last();
        Weigher {
            table: table.expect("every machine runs scalar kernels"),
        }
    }
}

/// Logits with what makes weights of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) logits: &'a [f32],
    pub(super) largest: f32,
    scale: f32,
}

impl<'a> Row<'a> {
    pub(super) fn new(logits: &'a [f32], largest: f32, temperature: f32) -> Row<'a> {
        Row {
            logits,
            largest,
            scale: softmax::scale(temperature),
        }
    }

    /// The weight of a token with this logit.
    #[inline]
    pub(super) fn weight(&self, logit: f32) -> u64 {
        quantize(softmax::weight(logit, self.largest, self.scale))
    }

    /// The token at which the cumulative weight, by number, reaches `mass`, given the weights of blocks.
    pub(super) fn at_mass(&self, sums: &[u64], mass: u64) -> Option<u32> {
        let mut before = 0_u64;
        let reaches = |weight: u64| {
            before += weight;
            before >= mass
        };
        let block = sums.iter().copied().position(reaches)?;
        let first = block * BLOCK;
        before -= sums[block];
        let logits = self.logits.iter().skip(first).take(BLOCK);
        let reaches = |&logit: &f32| {
            before += self.weight(logit);
            before >= mass
        };
        // A vocabulary's numbers fit 32 bits.
        logits
            .into_iter()
            .position(reaches)
            .map(|at| (first + at) as u32)
    }
}

impl Weigher {
    /// Largest logit; `None` for no logits or if any is not finite.
    pub(super) fn largest_finite(&self, logits: &[f32]) -> Option<f32> {
        self.table.largest_finite(logits)
    }

    /// The weights of blocks of tokens, and the total.
    pub(super) fn sum(&self, row: Row<'_>, sums: &mut Vec<u64>) -> u64 {
        sums.clear();
        sums.resize(row.logits.len().div_ceil(BLOCK), 0);
        self.table
            .sum_weights(row.logits, row.largest, row.scale, sums);
        sums.iter().sum()
    }

    /// The weight of each token, not rounded yet; see [`quantize`].
    pub(super) fn fill(&self, row: Row<'_>, weights: &mut Vec<f32>) {
        weights.resize(row.logits.len(), 0.0);
        self.table
            .weights(row.logits, row.largest, row.scale, weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_survive_extreme_spreads() {
        let logits = [f32::MAX, f32::MIN, f32::MAX];
        let weigher = Weigher::default();
        let row = Row::new(&logits, f32::MAX, f32::MIN_POSITIVE);
        let mut sums = Vec::new();
        assert_eq!(weigher.sum(row, &mut sums), 2 * ONE);
        let masses = [1, ONE, ONE + 1, 2 * ONE, 2 * ONE + 1];
        let found = masses.map(|mass| row.at_mass(&sums, mass));
        assert_eq!(found, [Some(0), Some(0), Some(2), Some(2), None]);
    }

    #[test]
    fn a_mass_is_found_where_walking_finds_it() {
        let logits: Vec<f32> = (0..3 * BLOCK + 7)
            .map(|id| (id * 61 % 97) as f32 / -9.0)
            .collect();
        let weigher = Weigher::default();
        let row = Row::new(&logits, 0.0, 0.8);
        let mut sums = Vec::new();
        let total = weigher.sum(row, &mut sums);
        let mut before = 0;
        for (id, &logit) in (0..).zip(&logits) {
            let weight = row.weight(logit);
            if weight > 0 {
                assert_eq!(row.at_mass(&sums, before + 1), Some(id));
                assert_eq!(row.at_mass(&sums, before + weight), Some(id));
            }
            before += weight;
        }
        assert_eq!(before, total);
    }
}
