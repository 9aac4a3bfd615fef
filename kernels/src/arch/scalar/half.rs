//! Conversion to f16.

/// Converts to f16, rounding to nearest, ties to even.
///
/// # Safety
/// None; slices of different lengths convert the shorter length.
pub(crate) unsafe fn to_half(x: &[f32], output: &mut [u16]) {
    for (output, &x) in output.iter_mut().zip(x) {
        *output = ::half::f16::from_f32(x).to_bits();
    }
}
