//! See [`crate::op::peak`]: `vpmaddubsw`, `vpmaddwd` and `vpaddd`, what 32 multiply-adds take without VNNI.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_load_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256,
};
use core::hint::black_box;

/// Sums that do not wait for each other.
const SUMS: usize = 8;

/// Multiply-adds of one vector.
const EACH: u64 = 32;

/// [`crate::op::peak::multiply_adds`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn multiply_adds(rounds: usize) -> u64 {
    let ones = _mm256_set1_epi16(1);
    let levels = black_box(_mm256_set1_epi8(5));
    let weights: [__m256i; SUMS] = [_mm256_set1_epi8(3); SUMS];
    let mut sums = black_box([_mm256_setzero_si256(); SUMS]);
    for _ in 0..rounds {
        // Unknown again in each round, or the products would be made once.
        let weights = black_box(&weights);
        for (sum, weights) in sums.iter_mut().zip(weights) {
            // SAFETY: a reference to a vector is aligned and readable.
            let weights = unsafe { _mm256_load_si256(weights) };
            let pairs = _mm256_maddubs_epi16(weights, levels);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    black_box(sums);
    rounds as u64 * SUMS as u64 * EACH
}
