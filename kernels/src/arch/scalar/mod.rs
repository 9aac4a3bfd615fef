//! Portable kernels: they follow the statements of [`crate::op`] word for word.

pub(crate) mod attention;
pub(crate) mod half;
pub(crate) mod matmul;
pub(crate) mod packed;
