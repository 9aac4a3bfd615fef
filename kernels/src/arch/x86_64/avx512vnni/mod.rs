//! Kernels for AVX-512 with VNNI. What they do not improve on comes from [`super::avx2`].

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod matmul;
pub(crate) mod packed;
pub(crate) mod peak;
pub(crate) mod stream;
