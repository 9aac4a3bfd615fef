//! Activations to 8 bits.

use crate::activation::{GROUP, QuantizedMut};
use crate::op::quantize::{MAXIMUM_MIN, NOT_FINITE, with_levels, without_levels};
use core::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi128_si32, _mm_extract_epi32, _mm_max_epi32, _mm_shuffle_epi32,
    _mm256_and_ps, _mm256_castps_si256, _mm256_castsi256_si128, _mm256_cvtps_epi32,
    _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_max_epi32, _mm256_mul_ps, _mm256_packs_epi16,
    _mm256_packs_epi32, _mm256_permutevar8x32_epi32, _mm256_sad_epu8, _mm256_set1_epi8,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256,
};

/// [`crate::op::quantize::quantize`]. Magnitudes are compared as integers, which orders them as floats and puts what
/// is not finite above all others; conversion rounds to nearest, ties to even, as adding a large number does.
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn quantize(x: &[f32], output: &mut QuantizedMut<'_>) {
    assert!(x.len().is_multiple_of(GROUP) && output.levels.len() == x.len());
    assert!(output.groups.len() == x.len() / GROUP);
    let (values, _) = x.as_chunks::<GROUP>();
    let (levels, _) = output.levels.as_chunks_mut::<GROUP>();
    let magnitude = _mm256_set1_ps(f32::from_bits(0x7fff_ffff));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for ((values, levels), group) in values.iter().zip(levels).zip(output.groups.iter_mut()) {
        let values: [__m256; 4] = core::array::from_fn(|index| {
            // SAFETY: a group has four times eight values.
            unsafe { _mm256_loadu_ps(values.as_ptr().add(8 * index)) }
        });
        let magnitudes = values.map(|x| _mm256_castps_si256(_mm256_and_ps(x, magnitude)));
        let largest = _mm256_max_epi32(
            _mm256_max_epi32(magnitudes[0], magnitudes[1]),
            _mm256_max_epi32(magnitudes[2], magnitudes[3]),
        );
        let largest = _mm_max_epi32(
            _mm256_castsi256_si128(largest),
            _mm256_extracti128_si256::<1>(largest),
        );
        let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b01_00_11_10>(largest));
        let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b10_11_00_01>(largest));
        let bits = _mm_cvtsi128_si32(largest) as u32;
        let maximum = f32::from_bits(bits);
        if bits >= NOT_FINITE || maximum < MAXIMUM_MIN {
            *levels = [0; GROUP];
            *group = without_levels(bits >= NOT_FINITE);
            continue;
        }
        let scale = maximum / 127.0;
        let inverse = _mm256_set1_ps(1.0 / scale);
        let integers = values.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
        // Packing takes halves of registers by turns.
        let packed = _mm256_packs_epi16(
            _mm256_packs_epi32(integers[0], integers[1]),
            _mm256_packs_epi32(integers[2], integers[3]),
        );
        let packed = _mm256_permutevar8x32_epi32(packed, order);
        // SAFETY: a group has 32 levels.
        unsafe { _mm256_storeu_si256(levels.as_mut_ptr().cast(), packed) };
        *group = with_levels(scale, half_sums(packed));
    }
}

/// The sums of the first and of the last sixteen levels.
#[inline]
#[target_feature(enable = "avx2")]
fn half_sums(levels: __m256i) -> [i32; 2] {
    // Unsigned, they are 128 more each, sixteen times.
    let biased = _mm256_xor_si256(levels, _mm256_set1_epi8(-128));
    let sums = _mm256_sad_epu8(biased, _mm256_setzero_si256());
    [
        _mm256_castsi256_si128(sums),
        _mm256_extracti128_si256::<1>(sums),
    ]
    .map(|sums| _mm_cvtsi128_si32(sums) + _mm_extract_epi32::<2>(sums) - 16 * 128)
}
