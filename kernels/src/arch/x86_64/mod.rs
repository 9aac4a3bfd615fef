//! Kernels for x86-64.

pub(crate) mod avx2;

/// The register sets that the operating system saves (XCR0).
///
/// Call only when cpuid reports OSXSAVE.
pub(crate) fn saved_registers() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever xgetbv does.
        unsafe { core::arch::x86_64::_xgetbv(0) }
    }
    // SAFETY: OSXSAVE was reported, see above.
    unsafe { read() }
}
