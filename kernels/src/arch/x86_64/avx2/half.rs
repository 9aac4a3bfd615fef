//! Conversion to f16.

use core::arch::x86_64::{
    _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps,
};

/// Converts to f16, rounding to nearest, ties to even.
///
/// # Safety
/// The instruction set must be supported. Slices of different lengths convert the shorter length.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn to_half(x: &[f32], output: &mut [u16]) {
    let (eights, tail) = x.as_chunks::<8>();
    let (output_eights, output_tail) = output.as_chunks_mut::<8>();
    for (x, output) in eights.iter().zip(output_eights) {
        // SAFETY: both have eight elements.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
            _mm_storeu_si128(output.as_mut_ptr().cast(), halves);
        }
    }
    for (output, &x) in output_tail.iter_mut().zip(tail) {
        *output = ::half::f16::from_f32(x).to_bits();
    }
}
