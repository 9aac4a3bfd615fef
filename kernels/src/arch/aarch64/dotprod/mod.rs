//! Kernels for processors with dot products of 8-bit integers, such as the Cortex-A78AE of Jetson Orin.

pub(crate) mod attention;
pub(crate) mod matmul;
pub(crate) mod packed;
pub(crate) mod peak;
