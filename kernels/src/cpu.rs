//! Instruction sets and how they are detected.
//!
//! Invariant: an [`Isa`] is [`Isa::is_supported`] only if every instruction its kernels use can run here, so holding
//! a [`crate::Table`] for it is proof that calling its kernels is sound.

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable Rust; runs everywhere and defines every result.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// What AVX2 needs, and 256-bit `vpdpbusd`: from AVX-VNNI or, where a processor has only that, from AVX-512.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// aarch64 with what every such processor has.
    Neon,
    /// aarch64 with dot products of 8-bit integers.
    NeonDotprod,
    /// aarch64 with those and with products of 8-bit integer matrices.
    NeonI8mm,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Isa; 7] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Neon,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
    ];

    /// Name used in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// The instruction set of a name; `None` if there is none.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this machine can run its kernels.
    #[must_use]
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => Cpu::detect().avx2,
            Isa::AvxVnni => {
                let cpu = Cpu::detect();
                cpu.avx_vnni || cpu.avx512_vnni
            }
            Isa::Avx512Vnni => Cpu::detect().avx512_vnni,
            Isa::Neon => Cpu::detect().neon,
            Isa::NeonDotprod => Cpu::detect().neon_dotprod,
            Isa::NeonI8mm => Cpu::detect().neon_i8mm,
        }
    }

    /// The fastest instruction set of this machine.
    #[must_use]
    pub fn best() -> Isa {
        Isa::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.is_supported())
            .unwrap_or(Isa::Scalar)
    }
}

/// Whether 256-bit `vpdpbusd` can be run as AVX-VNNI encodes it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx_vnni() -> bool {
    Cpu::detect().avx_vnni
}

/// CPU features, as sets that the kernels need together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cpu {
    avx2: bool,
    avx_vnni: bool,
    avx512_vnni: bool,
    neon: bool,
    neon_dotprod: bool,
    neon_i8mm: bool,
}

impl Cpu {
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn detect() -> Cpu {
        Cpu::default()
    }

    #[cfg(target_arch = "aarch64")]
    fn detect() -> Cpu {
        let extensions = crate::arch::aarch64::Extensions::detect();
        Cpu {
            // The compiler uses it for everything.
            neon: cfg!(target_feature = "neon"),
            neon_dotprod: extensions.dotprod,
            neon_i8mm: extensions.dotprod && extensions.i8mm,
            ..Cpu::default()
        }
    }

    /// Reads cpuid and, for the vector registers, what the operating system saves (XCR0).
    #[cfg(target_arch = "x86_64")]
    fn detect() -> Cpu {
        use core::arch::x86_64::{__cpuid, __cpuid_count};
        let bit = |word: u32, index: u32| word & (1 << index) != 0;
        if __cpuid(0).eax < 7 {
            return Cpu::default();
        }
        let one = __cpuid(1);
        let seven = __cpuid_count(7, 0);
        let (osxsave, avx, fma, f16c) = (
            bit(one.ecx, 27),
            bit(one.ecx, 28),
            bit(one.ecx, 12),
            bit(one.ecx, 29),
        );
        if !(osxsave && avx && fma && f16c) {
            return Cpu::default();
        }
        let saved = crate::arch::x86_64::saved_registers();
        let ymm = saved & 0b110 == 0b110;
        let zmm = ymm && saved & 0xe0 == 0xe0;
        let avx2 = ymm && bit(seven.ebx, 5);
        let avx512 =
            [16, 17, 30, 31].iter().all(|&index| bit(seven.ebx, index)) && bit(seven.ecx, 11);
        let avx512_vnni = avx2 && zmm && avx512;
        // Leaf 7 has a second subleaf only where its first says so.
        let avx_vnni = avx2 && seven.eax >= 1 && bit(__cpuid_count(7, 1).eax, 4);
        Cpu {
            avx2,
            avx_vnni,
            avx512_vnni,
            ..Cpu::default()
        }
    }
}
