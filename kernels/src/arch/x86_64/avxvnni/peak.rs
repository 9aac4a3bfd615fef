//! See [`crate::op::peak`]: `vpdpbusd` on registers of 256 bits.

use core::arch::x86_64::{
    _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32, _mm256_set1_epi8, _mm256_setzero_si256,
};
use core::hint::black_box;

/// Sums that do not wait for each other: as many as there are registers left.
const SUMS: usize = 12;

/// Multiply-adds of one vector.
const EACH: u64 = 32;

macro_rules! multiply_adds {
    ($name:ident, $features:literal, $dot:ident) => {
        /// [`crate::op::peak::multiply_adds`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(rounds: usize) -> u64 {
            let (weights, levels) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
            // Unknown, or equal sums would be one.
            let mut sums = black_box([_mm256_setzero_si256(); SUMS]);
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = $dot(*sum, weights, levels);
                }
            }
            black_box(sums);
            rounds as u64 * SUMS as u64 * EACH
        }
    };
}

multiply_adds!(vex, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
multiply_adds!(
    evex,
    "avx2,avx512f,avx512vl,avx512vnni",
    _mm256_dpbusd_epi32
);
