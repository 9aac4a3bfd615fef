//! Where the kernels take levels and scales from: straight from packed weights, or from a panel that a block of them was
//! unpacked to.

use super::Dot;
use crate::pack::{BLOCK_GROUPS, GroupScales, Layout, Packed, ROWS, STEPS};
use core::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm256_and_si256,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps,
    _mm256_load_ps, _mm256_load_si256, _mm256_loadu_si256, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_store_ps, _mm256_store_si256,
    _mm256_xor_si256,
};
use core::marker::PhantomData;
use core::mem::MaybeUninit;

/// Bytes of a vector of sixteen rows.
const VECTOR: usize = 4 * ROWS;

/// Levels and scales of a block, for rows `8 * half` to `8 * half + 7` of a tile.
///
/// # Safety
/// The instruction set must be supported, and the block have group `group`.
pub(in super::super) trait Source {
    /// Whether levels are bytes in memory, so that all that keeps registers busy is multiplying.
    const BYTES: bool;

    /// The levels of step `STEP`.
    unsafe fn levels<const STEP: usize>(&self, group: usize, half: usize) -> __m256i;

    /// What the levels are multiplied with; where a group has two scales, the factor of both.
    unsafe fn scale(&self, group: usize, half: usize) -> __m256;

    /// The scales of half `part` of the group, where it has two.
    unsafe fn half_scale(&self, group: usize, part: usize, half: usize) -> __m256;

    /// What the sum of the activations is multiplied with, where the format has minimums.
    unsafe fn minimum(&self, group: usize, half: usize) -> __m256;

    /// Fetches as much as a group takes of what will be read later.
    fn prefetch(&self, group: usize);
}

/// How far ahead of a block others are fetched, into L2. Several columns keep the processor too busy to run so far ahead by
/// itself that memory is never waited for, and its own prefetching stops at each page.
const PREFETCH_BYTES: usize = 8192;

/// A packed block, as it is in memory.
pub(super) struct Direct<F, D> {
    block: *const u8,
    levels: *const u8,
    kind: PhantomData<(F, D)>,
}

impl<F: Packed, D: Dot> Direct<F, D> {
    /// The block of `groups` groups at `block`.
    ///
    /// # Safety
    /// The block must be readable as long as this is used.
    #[inline(always)]
    pub(super) unsafe fn new(block: *const u8, groups: usize) -> Self {
        Direct {
            block,
            // SAFETY: the head of a block lies within it.
            levels: unsafe { block.add(Layout::<F>::head_bytes(groups)) },
            kind: PhantomData,
        }
    }

    /// The f16 factors `at` bytes into those of a group.
    ///
    /// # Safety
    /// The block must have them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn factors(&self, group: usize, at: usize) -> __m256 {
        // SAFETY: the caller owes them.
        _mm256_cvtph_ps(unsafe {
            _mm_loadu_si128(self.block.add(Layout::<F>::factors_at(group) + at).cast())
        })
    }

    /// What a group has of its own, `at` bytes into it.
    ///
    /// # Safety
    /// The block must have it.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn own(&self, group: usize, at: usize) -> __m256 {
        // SAFETY: the caller owes the bytes.
        let bytes = unsafe {
            let at = Layout::<F>::group_scales_at(group) + at;
            _mm_loadl_epi64(self.block.add(at).cast())
        };
        _mm256_cvtepi32_ps(match F::GROUP_SCALES {
            GroupScales::Two => _mm256_cvtepi8_epi32(bytes),
            _ => _mm256_cvtepu8_epi32(bytes),
        })
    }
}

impl<F: Packed, D: Dot> Source for Direct<F, D> {
    const BYTES: bool = F::BITS == 8;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const STEP: usize>(&self, group: usize, half: usize) -> __m256i {
        let vector = |index: usize| {
            let at = group * Layout::<F>::LEVEL_BYTES + index * VECTOR + half * 32;
            // SAFETY: a group has a vector for each eight bits of eight levels.
            unsafe { _mm256_loadu_si256(self.levels.add(at).cast()) }
        };
        if F::BITS == 8 {
            let levels = vector(STEP);
            return if D::SIGNED_BYTES {
                _mm256_xor_si256(levels, _mm256_set1_epi8(-128))
            } else {
                levels
            };
        }
        let both = vector(STEP % 4);
        let low = if STEP < 4 {
            both
        } else {
            _mm256_srli_epi16::<4>(both)
        };
        let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
        // Shifts of 16 bits move bits over from the other byte of two, which the masks take off.
        let high = match F::BITS {
            5 => {
                let bits = vector(4);
                let bits = match STEP {
                    0 => _mm256_slli_epi16::<4>(bits),
                    1 => _mm256_slli_epi16::<3>(bits),
                    2 => _mm256_slli_epi16::<2>(bits),
                    3 => _mm256_slli_epi16::<1>(bits),
                    4 => bits,
                    5 => _mm256_srli_epi16::<1>(bits),
                    6 => _mm256_srli_epi16::<2>(bits),
                    _ => _mm256_srli_epi16::<3>(bits),
                };
                _mm256_and_si256(bits, _mm256_set1_epi8(0x10))
            }
            6 => {
                let bits = vector(4 + STEP / 4);
                let bits = match STEP % 4 {
                    0 => _mm256_slli_epi16::<4>(bits),
                    1 => _mm256_slli_epi16::<2>(bits),
                    2 => bits,
                    _ => _mm256_srli_epi16::<2>(bits),
                };
                _mm256_and_si256(bits, _mm256_set1_epi8(0x30))
            }
            _ => return low,
        };
        _mm256_or_si256(low, high)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scale(&self, group: usize, half: usize) -> __m256 {
        // SAFETY: the caller owes the group.
        unsafe {
            let factors = self.factors(group, half * 16);
            match F::GROUP_SCALES {
                GroupScales::One => _mm256_mul_ps(factors, self.own(group, half * 8)),
                _ => factors,
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn half_scale(&self, group: usize, part: usize, half: usize) -> __m256 {
        // SAFETY: the caller owes the group, and that it has two scales.
        unsafe { self.own(group, part * ROWS + half * 8) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn minimum(&self, group: usize, half: usize) -> __m256 {
        // SAFETY: the caller owes the group, and that it has minimums.
        unsafe {
            let factors = self.factors(group, 2 * ROWS + half * 16);
            match F::GROUP_SCALES {
                GroupScales::One => _mm256_mul_ps(factors, self.own(group, ROWS + half * 8)),
                _ => factors,
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, group: usize) {
        let eighth = Layout::<F>::block_bytes(BLOCK_GROUPS) / BLOCK_GROUPS;
        let ahead = self.block.wrapping_add(PREFETCH_BYTES + group * eighth);
        for line in 0..eighth.div_ceil(64) {
            // SAFETY: a prefetch reads nothing that the program can observe and faults on no address.
            #[allow(unused_unsafe, reason = "safe only in later compilers")]
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast());
            }
        }
    }
}

/// Kinds of scales that a group may have at most.
const SCALES: usize = 3;

/// A block of sixteen rows unpacked: a byte for each level, and scales as they are multiplied. What there is of it stays
/// in L1 with the activations of a few columns.
#[repr(C, align(64))]
pub(in super::super) struct Panel {
    levels: [[[u8; VECTOR]; STEPS]; BLOCK_GROUPS],
    /// Scales, then minimums or the scales of halves.
    scales: [[[f32; ROWS]; SCALES]; BLOCK_GROUPS],
}

impl Panel {
    /// Unpacks the `groups` groups of `source` of format `F`.
    ///
    /// # Safety
    /// The instruction set must be supported, and the block readable and of so many groups.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn fill<F: Packed, D: Dot>(
        panel: &mut MaybeUninit<Panel>,
        source: &Direct<F, D>,
        groups: usize,
    ) {
        for group in 0..groups {
            source.prefetch(group);
            for half in 0..2 {
                // SAFETY: the block has the group, with the scales that its format has.
                unsafe {
                    let levels = [
                        source.levels::<0>(group, half),
                        source.levels::<1>(group, half),
                        source.levels::<2>(group, half),
                        source.levels::<3>(group, half),
                        source.levels::<4>(group, half),
                        source.levels::<5>(group, half),
                        source.levels::<6>(group, half),
                        source.levels::<7>(group, half),
                    ];
                    Panel::put_levels(panel, group, half, levels);
                    Panel::put_scale(panel, group, 0, half, source.scale(group, half));
                    if F::MINIMUM {
                        Panel::put_scale(panel, group, 1, half, source.minimum(group, half));
                    }
                    if F::GROUP_SCALES == GroupScales::Two {
                        for part in 0..2 {
                            let scale = source.half_scale(group, part, half);
                            Panel::put_scale(panel, group, 1 + part, half, scale);
                        }
                    }
                }
            }
        }
    }

    /// Writes the levels of all steps of a group.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn put_levels(
        panel: &mut MaybeUninit<Panel>,
        group: usize,
        half: usize,
        levels: [__m256i; STEPS],
    ) {
        assert!(group < BLOCK_GROUPS && half < 2);
        let panel = panel.as_mut_ptr();
        for (step, levels) in levels.into_iter().enumerate() {
            // SAFETY: the group is one of the panel's, and half a vector one of two.
            unsafe {
                let vector = (&raw mut (*panel).levels[group][step]).cast::<u8>();
                _mm256_store_si256(vector.add(half * 32).cast(), levels);
            }
        }
    }

    /// Writes a scale of a group: kind 0 is what its levels are multiplied with, 1 a minimum, or 1 and 2 the scales of its
    /// halves.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn put_scale(
        panel: &mut MaybeUninit<Panel>,
        group: usize,
        kind: usize,
        half: usize,
        scale: __m256,
    ) {
        assert!(group < BLOCK_GROUPS && kind < SCALES && half < 2);
        let panel = panel.as_mut_ptr();
        // SAFETY: the scale is one of the panel's, and half of its rows one of two halves.
        unsafe {
            let scales = (&raw mut (*panel).scales[group][kind]).cast::<f32>();
            _mm256_store_ps(scales.add(half * 8), scale);
        }
    }
}

/// A panel whose first groups are filled; only those may be asked for.
pub(in super::super) struct Filled<'a>(pub(in super::super) &'a MaybeUninit<Panel>);

impl Filled<'_> {
    /// Scales of kind `kind` of a group.
    ///
    /// # Safety
    /// See [`Source`]; the panel must have them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(&self, group: usize, kind: usize, half: usize) -> __m256 {
        // SAFETY: the caller owes that they were written.
        unsafe {
            let scales = (&raw const (*self.0.as_ptr()).scales).cast::<f32>();
            _mm256_load_ps(scales.add((group * SCALES + kind) * ROWS + half * 8))
        }
    }
}

impl Source for Filled<'_> {
    const BYTES: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const STEP: usize>(&self, group: usize, half: usize) -> __m256i {
        // SAFETY: the caller owes that the group was filled.
        unsafe {
            let levels = (&raw const (*self.0.as_ptr()).levels).cast::<u8>();
            let at = (group * STEPS + STEP) * VECTOR + half * 32;
            _mm256_load_si256(levels.add(at).cast())
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scale(&self, group: usize, half: usize) -> __m256 {
        // SAFETY: passed on.
        unsafe { self.scales(group, 0, half) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn half_scale(&self, group: usize, part: usize, half: usize) -> __m256 {
        // SAFETY: passed on.
        unsafe { self.scales(group, 1 + part, half) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn minimum(&self, group: usize, half: usize) -> __m256 {
        // SAFETY: passed on.
        unsafe { self.scales(group, 1, half) }
    }

    /// Other columns have fetched it as they filled the panel.
    #[inline(always)]
    fn prefetch(&self, _: usize) {}
}
