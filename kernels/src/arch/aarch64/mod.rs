//! Kernels for aarch64.
//!
//! The folders build on each other: `neon` has every kernel, generic over how 8-bit levels are multiplied; `dotprod`
//! and `i8mm` say how with the instructions that they are named after.

pub(crate) mod dotprod;
pub(crate) mod i8mm;
mod instructions;
pub(crate) mod neon;
mod vector;

/// What a processor has beyond the vector instructions that all of them have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// Dot products of four 8-bit integers (FEAT_DotProd).
    pub(crate) dotprod: bool,
    /// Products of 8-bit integer matrices (FEAT_I8MM).
    pub(crate) i8mm: bool,
}

impl Extensions {
    /// Asks the system, where it is one that is known; else there is what the compiler was told of.
    pub(crate) fn detect() -> Extensions {
        let compiled = Extensions {
            dotprod: cfg!(target_feature = "dotprod"),
            i8mm: cfg!(target_feature = "i8mm"),
        };
        #[cfg(target_os = "linux")]
        let detected = linux();
        #[cfg(not(target_os = "linux"))]
        let detected = compiled;
        Extensions {
            dotprod: compiled.dotprod || detected.dotprod,
            i8mm: compiled.i8mm || detected.i8mm,
        }
    }
}

/// What the kernel says in the auxiliary vector, which every program gets when it starts.
#[cfg(target_os = "linux")]
fn linux() -> Extensions {
    use core::ffi::c_ulong;

    // Of Linux's arch/arm64/include/uapi/asm/hwcap.h and include/uapi/linux/auxvec.h.
    const AT_HWCAP: c_ulong = 16;
    const AT_HWCAP2: c_ulong = 26;
    const HWCAP_ASIMDDP: c_ulong = 1 << 20;
    const HWCAP2_I8MM: c_ulong = 1 << 13;

    // SAFETY: this is the function's declaration in the C library, of which every program for Linux that Rust links has
    // one. It reads what is written once, before the program starts, and answers any number.
    unsafe extern "C" {
        safe fn getauxval(kind: c_ulong) -> c_ulong;
    }

    Extensions {
        dotprod: getauxval(AT_HWCAP) & HWCAP_ASIMDDP != 0,
        i8mm: getauxval(AT_HWCAP2) & HWCAP2_I8MM != 0,
    }
}
