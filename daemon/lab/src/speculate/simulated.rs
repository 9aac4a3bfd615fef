//! A drafter that is right as often as is asked for, and takes as long: for what a draft would gain on models whose text
//! says nothing, because their weights are random.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use andon_engine::Executor;
use andon_engine::speculate::{Drafter, Wanted};

/// What is guessed from.
#[derive(Debug, Default)]
struct Known {
    /// The answer that is to come.
    answer: Vec<u32>,
    /// Time of a pass over one token.
    pass: Duration,
    /// Of this answer's draws.
    seed: u64,
}

/// A drafter that knows the answer. What it says at a position is the same each time.
#[derive(Clone, Debug)]
pub(super) struct Simulated {
    /// Probability that a guess is right.
    right: f64,
    /// What a guess costs, relative to a pass over one token.
    cost: f64,
    known: Arc<Mutex<Known>>,
}

impl Simulated {
    pub(super) fn new(right: f64, cost: f64) -> Simulated {
        Simulated {
            right,
            cost,
            known: Arc::default(),
        }
    }

    /// Sets what it knows.
    pub(super) fn know(&self, answer: &[u32], pass: Duration, seed: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        answer.clone_into(&mut known.answer);
        known.pass = pass;
        known.seed = seed;
    }

    /// Whether the guess at a position is right.
    fn is_right(&self, seed: u64, position: usize) -> bool {
        // The finalizer of MurmurHash3, of a counter that is different for each.
        let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (position as u64 + 1);
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            bits = (bits ^ (bits >> 33)).wrapping_mul(factor);
        }
        let uniform = (bits >> 11) as f64 / (1u64 << 53) as f64;
        uniform < self.right
    }
}

impl Drafter for Simulated {
    fn missing(&self, _: u64, _: &[u32]) -> Option<usize> {
        Some(0)
    }

    fn read(&mut self, _: Option<&mut Executor>, _: u64, _: &[u32]) -> usize {
        0
    }

    fn draft(&mut self, _: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        let began = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passes = 0;
        for wanted in wanted {
            let at = wanted.text.len() - wanted.prompt_tokens;
            let after = known.answer.iter().enumerate().skip(at);
            for (position, &token) in after.take(wanted.count) {
                // Any other token is wrong.
                let wrong = u32::from(!self.is_right(known.seed, position));
                wanted.guesses.push(token ^ wrong);
            }
            passes = passes.max(wanted.guesses.len());
        }
        // A draft would keep the threads busy, too.
        let took = known.pass.mul_f64(self.cost * passes as f64);
        while began.elapsed() < took {
            std::hint::spin_loop();
        }
        passes
    }

    fn forget(&mut self, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::Simulated;

    #[test]
    fn it_is_right_as_often_as_asked_for() {
        for right in [0.0, 0.5, 0.78, 1.0] {
            let simulated = Simulated::new(right, 0.0);
            let count = (0..20_000)
                .filter(|&at| simulated.is_right(at as u64 / 200, at % 200))
                .count();
            let share = count as f64 / 20_000.0;
            assert!((share - right).abs() < 0.015, "{right}: {share}");
        }
    }
}
