//! Kernels for AVX2 with FMA and F16C.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod half;
pub(crate) mod matmul;
pub(crate) mod packed;
pub(crate) mod peak;
pub(crate) mod quantize;
