//! Kernels for processors with products of 8-bit integer matrices.
//!
//! Rows as GGUF stores them, and packed ones with a single column, are multiplied as in [`super::dotprod`].

pub(crate) mod packed;
pub(crate) mod peak;
