//! Kernels by instruction set: a folder each, with the same file names.

pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
