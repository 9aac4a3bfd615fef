//! See [`crate::op::peak`].

use super::matmul::{Multiply, Plain};
use crate::arch::aarch64::vector::{vdupq_n_s8, vdupq_n_s32};
use core::hint::black_box;

/// Sums that do not wait for each other: more than latency times units on every machine, fewer than registers.
const SUMS: usize = 16;

/// Multiply-adds of one vector.
const EACH: u64 = 16;

/// [`crate::op::peak::multiply_adds`].
///
/// # Safety
/// None.
pub(crate) unsafe fn plain(rounds: usize) -> u64 {
    // SAFETY: these instructions are always there.
    unsafe { multiply_adds::<Plain>(rounds) }
}

/// [`crate::op::peak::multiply_adds`] by [`Multiply::dot`].
///
/// # Safety
/// The instruction set must be supported.
#[inline(always)]
pub(in super::super) unsafe fn multiply_adds<D: Multiply>(rounds: usize) -> u64 {
    let (weights, levels) = black_box((vdupq_n_s8(3), vdupq_n_s8(5)));
    // Unknown, or equal sums would be one.
    let mut sums = black_box([vdupq_n_s32(0); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: passed on.
            *sum = unsafe { D::dot(*sum, weights, levels) };
        }
    }
    black_box(sums);
    rounds as u64 * SUMS as u64 * EACH
}
