//! See [`crate::op::peak`]: `vpdpbusd` on registers of 512 bits.

use core::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
use core::hint::black_box;

/// Sums that do not wait for each other: more than latency times units on every machine, fewer than registers.
const SUMS: usize = 24;

/// Multiply-adds of one vector.
const EACH: u64 = 64;

/// [`crate::op::peak::multiply_adds`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn multiply_adds(rounds: usize) -> u64 {
    let (weights, levels) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
    // Unknown, or equal sums would be one.
    let mut sums = black_box([_mm512_setzero_si512(); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, levels);
        }
    }
    black_box(sums);
    rounds as u64 * SUMS as u64 * EACH
}
