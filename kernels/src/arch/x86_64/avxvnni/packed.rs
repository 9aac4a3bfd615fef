//! Products of packed weights: the kernels of [`super::super::avx2::packed`] with `vpdpbusd`.

use super::super::avx2::packed::{self, Evex, Vex};
use crate::Format;
use crate::op::matmul::PackedKernel;

/// The kernel of a format where AVX-VNNI is there; `None` if it has no packed layout.
pub(crate) const fn vex(format: Format) -> Option<PackedKernel> {
    packed::kernel::<Vex>(format)
}

/// The kernel of a format where AVX-512 VNNI and VL are there; `None` if it has no packed layout.
pub(crate) const fn evex(format: Format) -> Option<PackedKernel> {
    packed::kernel::<Evex>(format)
}
