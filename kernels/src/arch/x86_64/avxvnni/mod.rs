//! Kernels for 256-bit `vpdpbusd`, in either of its encodings.

pub(crate) mod matmul;
pub(crate) mod packed;
pub(crate) mod peak;
