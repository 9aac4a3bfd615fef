//! The portable bodies of [`crate::op`], compiled for this instruction set.

use super::super::units;

units!("avx2,fma,f16c");

/// [`crate::op::norm::rms_norm`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    crate::op::norm::rms_norm(x, weight, epsilon, output);
}

/// [`crate::op::norm::layer_norm`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
    output: &mut [f32],
) {
    crate::op::norm::layer_norm(x, weight, bias, epsilon, output);
}

/// [`crate::op::rope::rotate`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn rotate(
    head: &mut [f32],
    table: &[[f32; 2]],
    pairing: crate::op::rope::Pairing,
) {
    crate::op::rope::rotate(head, table, pairing);
}

/// [`crate::op::stream::sum_words`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn sum_words(bytes: &[u8]) -> u64 {
    crate::op::stream::sum_words(bytes)
}
