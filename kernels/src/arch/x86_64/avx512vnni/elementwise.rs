//! The portable bodies of [`crate::op`] that are faster when compiled for this instruction set than for AVX2.

use super::super::units;

units!("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");
