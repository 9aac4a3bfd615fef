//! See [`crate::op::peak`]: `smmla`.

use super::super::instructions::smmla;
use crate::arch::aarch64::vector::{vdupq_n_s8, vdupq_n_s32};
use core::hint::black_box;

/// Sums that do not wait for each other: more than latency times units on every machine, fewer than registers.
const SUMS: usize = 16;

/// Multiply-adds of one vector: two rows, two columns, eight elements.
const EACH: u64 = 32;

/// [`crate::op::peak::multiply_adds`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "neon,i8mm")]
pub(crate) unsafe fn multiply_adds(rounds: usize) -> u64 {
    let (weights, levels) = black_box((vdupq_n_s8(3), vdupq_n_s8(5)));
    // Unknown, or equal sums would be one.
    let mut sums = black_box([vdupq_n_s32(0); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = smmla(*sum, weights, levels);
        }
    }
    black_box(sums);
    rounds as u64 * SUMS as u64 * EACH
}
