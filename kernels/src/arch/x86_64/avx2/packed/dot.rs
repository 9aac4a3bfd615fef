//! What multiplies levels with activations: the one instruction that 256-bit instruction sets differ in.
//!
//! These are `asm!` rather than intrinsics for two reasons. The kernels are compiled for AVX2 whatever multiplies, so one
//! body serves every [`Dot`], which a function of another target feature could not be inlined into. And the compiler
//! moves products of intrinsics about, and computes many ahead, more than sixteen registers hold; these, not being
//! declared `pure`, stay in the order in which they are written.

use core::arch::asm;
use core::arch::x86_64::{
    __m256i, _mm256_abs_epi8, _mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi16,
    _mm256_sign_epi8,
};

/// Sums of products of four unsigned levels with four activations in -127..=127 in each lane of 32 bits.
///
/// Steps are added up in runs: a run starts at `sums` with [`Dot::first`], continues with [`Dot::next`], and
/// [`Dot::last`] adds it to `sums`.
///
/// # Safety
/// The instruction set must be supported.
pub(crate) trait Dot {
    /// Whether levels of 8 bits are signed here, that is not shifted up.
    const SIGNED_BYTES: bool;

    /// Steps that a run may have for levels of `bits` bits: a power of two up to 8.
    fn run(bits: usize) -> usize;

    /// The first step of a run; `bytes`: of levels of 8 bits.
    unsafe fn first(sums: __m256i, levels: __m256i, x: __m256i, bytes: bool) -> __m256i;

    /// A further step of a run.
    unsafe fn next(run: __m256i, levels: __m256i, x: __m256i) -> __m256i;

    /// The sums with a run added.
    unsafe fn last(sums: __m256i, run: __m256i) -> __m256i;
}

/// `vpdpbusd` as AVX-VNNI encodes it.
pub(crate) struct Vex;
/// `vpdpbusd` as AVX-512 encodes it.
pub(crate) struct Evex;
/// Products of pairs in 16 bits, for processors without `vpdpbusd`.
pub(crate) struct Pairs;

/// [`Dot`] by `vpdpbusd`, which does not saturate.
macro_rules! dpbusd {
    ($dot:ty, $template:literal) => {
        impl Dot for $dot {
            const SIGNED_BYTES: bool = false;

            #[inline(always)]
            fn run(_: usize) -> usize {
                8
            }

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn first(sums: __m256i, levels: __m256i, x: __m256i, _: bool) -> __m256i {
                // SAFETY: passed on.
                unsafe { Self::next(sums, levels, x) }
            }

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn next(mut run: __m256i, levels: __m256i, x: __m256i) -> __m256i {
                // SAFETY: computes on registers; the caller owes the instruction.
                unsafe {
                    asm!($template, inout(ymm_reg) run, in(ymm_reg) levels, in(ymm_reg) x,
                        options(nomem, nostack, preserves_flags));
                }
                run
            }

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn last(_: __m256i, run: __m256i) -> __m256i {
                run
            }
        }
    };
}

dpbusd!(Vex, "{{vex}} vpdpbusd {0}, {1}, {2}");
dpbusd!(Evex, "{{evex}} vpdpbusd {0}, {1}, {2}");

impl Dot for Pairs {
    /// Shifted up they would reach 255, and two products 2 * 255 * 127, which `vpmaddubsw` saturates.
    const SIGNED_BYTES: bool = true;

    /// A step adds two products to each sum of 16 bits, at most 32767 in magnitude: eight steps of 4-bit levels reach
    /// 8 * 2 * 15 * 127 = 30480, four of 5-bit ones 4 * 2 * 31 * 127 = 31496, two of 6-bit ones 2 * 2 * 63 * 127 =
    /// 32004, one of 8-bit ones with sign 2 * 128 * 127 = 32512.
    #[inline(always)]
    fn run(bits: usize) -> usize {
        match bits {
            4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn first(_: __m256i, levels: __m256i, x: __m256i, bytes: bool) -> __m256i {
        // `vpmaddubsw` takes unsigned levels: signs move to the activations.
        let (levels, x) = if bytes {
            (_mm256_abs_epi8(levels), _mm256_sign_epi8(x, levels))
        } else {
            (levels, x)
        };
        let run;
        // SAFETY: computes on registers; the caller owes the instruction.
        unsafe {
            asm!("vpmaddubsw {0}, {1}, {2}", out(ymm_reg) run, in(ymm_reg) levels, in(ymm_reg) x,
                options(nomem, nostack, preserves_flags));
        }
        run
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn next(mut run: __m256i, levels: __m256i, x: __m256i) -> __m256i {
        // SAFETY: computes on registers; the caller owes the instructions.
        unsafe {
            asm!("vpmaddubsw {1}, {2}, {3}", "vpaddw {0}, {0}, {1}",
                inout(ymm_reg) run, out(ymm_reg) _, in(ymm_reg) levels, in(ymm_reg) x,
                options(nomem, nostack, preserves_flags));
        }
        run
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn last(sums: __m256i, run: __m256i) -> __m256i {
        _mm256_add_epi32(sums, _mm256_madd_epi16(run, _mm256_set1_epi16(1)))
    }
}
