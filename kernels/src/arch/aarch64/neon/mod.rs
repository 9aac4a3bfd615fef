//! Kernels for the vector instructions that every aarch64 processor has.
//!
//! Elementwise operations have no file here: the portable bodies of [`crate::op`] are compiled for these instructions
//! as they are.

pub(crate) mod attention;
pub(crate) mod half;
pub(crate) mod matmul;
pub(crate) mod packed;
pub(crate) mod peak;
