//! Gated linear units.

use super::exp::exp;
use super::gelu_tanh::gelu_tanh;

/// `gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]`: SwiGLU's elementwise part, in place.
#[inline(always)]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `gate[i] = gelu_tanh(gate[i]) * up[i]`: GEGLU's elementwise part, in place.
#[inline(always)]
pub(crate) fn geglu_tanh(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = gelu_tanh(*gate) * up;
    }
}
