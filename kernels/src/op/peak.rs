//! Multiply-adds of 8-bit levels at the highest rate, to measure what the arithmetic of integer products can reach.
//!
//! One multiply-add is one product of a weight level and an activation level, added to a 32-bit sum. The results mean
//! nothing; the loops touch no memory beyond L1.

use core::hint::black_box;

/// Levels of one round of [`multiply_adds`].
const LEVELS: usize = 64;

/// Makes `rounds` rounds of a loop and returns how many multiply-adds they had.
#[inline(always)]
pub(crate) fn multiply_adds(rounds: usize) -> u64 {
    let weights = [3u8; LEVELS];
    let levels = [5i8; LEVELS];
    let mut sums = [0i32; LEVELS / 4];
    for _ in 0..rounds {
        // Unknown again in each round, or the products would be made once.
        let (weights, levels) = (black_box(&weights), black_box(&levels));
        let fours = weights
            .as_chunks::<4>()
            .0
            .iter()
            .zip(levels.as_chunks::<4>().0);
        for (sum, (weights, levels)) in sums.iter_mut().zip(fours) {
            for (&weight, &level) in weights.iter().zip(levels) {
                *sum = sum.wrapping_add(i32::from(weight) * i32::from(level));
            }
        }
    }
    black_box(sums);
    rounds as u64 * LEVELS as u64
}
