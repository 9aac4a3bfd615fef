//! See [`crate::op::stream`]: half as many loads as with 256 bits, so that more lines are on their way at a time.

use crate::op::stream::sum_tail;
use core::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_setzero_si512,
};

/// Bytes of a vector.
const VECTOR: usize = 64;

/// Vectors of a round: sums that do not wait for each other.
const SUMS: usize = 8;

/// [`crate::op::stream::sum_words`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn sum_words(bytes: &[u8]) -> u64 {
    let (rounds, tail) = bytes.as_chunks::<{ SUMS * VECTOR }>();
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for round in rounds {
        for (sum, vector) in sums.iter_mut().zip(round.as_chunks::<VECTOR>().0) {
            // SAFETY: the vector's 64 bytes are what is read.
            let words = unsafe { _mm512_loadu_si512(vector.as_ptr().cast::<__m512i>()) };
            *sum = _mm512_add_epi64(*sum, words);
        }
    }
    sums.iter().fold(sum_tail(tail), |total, &sum| {
        total.wrapping_add(_mm512_reduce_add_epi64(sum).cast_unsigned())
    })
}
