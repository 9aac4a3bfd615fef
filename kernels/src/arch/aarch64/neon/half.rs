//! Conversion to f16.

use core::arch::aarch64::{vcvt_f16_f32, vld1q_f32, vreinterpret_u16_f16, vst1_u16};

/// Converts to f16, rounding to nearest, ties to even.
///
/// # Safety
/// None; slices of different lengths convert the shorter length.
pub(crate) unsafe fn to_half(x: &[f32], output: &mut [u16]) {
    let (fours, tail) = x.as_chunks::<4>();
    let (output_fours, output_tail) = output.as_chunks_mut::<4>();
    for (x, output) in fours.iter().zip(output_fours) {
        // SAFETY: both have four elements.
        unsafe {
            let halves = vcvt_f16_f32(vld1q_f32(x.as_ptr()));
            vst1_u16(output.as_mut_ptr(), vreinterpret_u16_f16(halves));
        }
    }
    for (output, &x) in output_tail.iter_mut().zip(tail) {
        *output = ::half::f16::from_f32(x).to_bits();
    }
}
