//! The portable bodies of [`crate::op`], compiled for this instruction set.

use crate::op;

/// [`op::norm::rms_norm`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    op::norm::rms_norm(x, weight, epsilon, output);
}

/// [`op::glu::swiglu`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
    op::glu::swiglu(gate, up);
}

/// [`op::norm::layer_norm`].
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
    op::norm::layer_norm(x, weight, bias, epsilon, output);
}

/// [`op::gelu_erf::gelu_erf_all`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn gelu_erf(x: &mut [f32]) {
    op::gelu_erf::gelu_erf_all(x);
}

/// [`op::gelu_erf::geglu_erf`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn geglu_erf(gate: &mut [f32], up: &[f32]) {
    op::gelu_erf::geglu_erf(gate, up);
}

/// [`op::glu::geglu_tanh`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn geglu_tanh(gate: &mut [f32], up: &[f32]) {
    op::glu::geglu_tanh(gate, up);
}

/// [`op::tanh::soft_cap`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn soft_cap(x: &mut [f32], cap: f32) {
    op::tanh::soft_cap(x, cap);
}

/// [`op::rope::rotate`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn rotate(head: &mut [f32], table: &[[f32; 2]], pairing: op::rope::Pairing) {
    op::rope::rotate(head, table, pairing);
}

/// [`op::stream::sum_words`].
///
/// # Safety
/// The instruction set must be supported.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn sum_words(bytes: &[u8]) -> u64 {
    op::stream::sum_words(bytes)
}
