//! Matrix products, see [`crate::op::matmul`]: the kernels of [`super::super::avx2::matmul`], with `vpdpbusd` where
//! columns are many.

use super::super::avx2::matmul;
use super::super::avx2::packed::{Evex, Vex};
use crate::Format;
use crate::op::matmul::Kernel;

/// The kernel of a format where AVX-VNNI is there.
pub(crate) const fn vex(format: Format) -> Kernel {
    matmul::kernel::<Vex>(format)
}

/// The kernel of a format where AVX-512 VNNI and VL are there.
pub(crate) const fn evex(format: Format) -> Kernel {
    matmul::kernel::<Evex>(format)
}
