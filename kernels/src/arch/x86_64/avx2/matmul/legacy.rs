//! Blocks of 32 elements with evenly spaced levels.

use super::{
    Activation, Levels, Rows, activation, all_rows, first_words, half_pairs, halves, nibbles,
    prefetch, signed_dot, unsigned_dot,
};
use crate::activation::Columns;
use crate::block::{Block, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use core::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_castsi256_si128, _mm256_cmpeq_epi8,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_mul_ps,
    _mm256_or_si256, _mm256_packus_epi32, _mm256_permute4x64_epi64, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setr_epi64x, _mm256_setzero_ps,
    _mm256_shuffle_epi8, _mm256_srli_epi32,
};

/// One block of eight rows.
#[derive(Clone, Copy)]
pub(super) struct Loaded {
    pub(super) scale: __m256,
    /// Zero where the format has none.
    pub(super) minimum: __m256,
    pub(super) levels: Levels,
}

/// A format whose blocks are one group of 32 elements with one scale.
pub(super) trait Single: Block {
    /// Whether the loaded levels have signs; else they have at most five bits.
    const SIGNED: bool;
    /// How far the loaded levels are shifted up.
    const OFFSET: i32;
    /// Whether the format has minimums.
    const MINIMUM: bool;

    /// Loads a block of each row.
    ///
    /// # Safety
    /// The instruction set must be supported, and a block readable at `offset` of each row.
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded;
}

/// Products of eight rows and `M` columns.
///
/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn single_block<F: Single, const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * size_of::<F>();
        prefetch(&rows, offset, size_of::<F>(), 0..8);
        // SAFETY: `offset` is the start of a block of every row.
        let block = unsafe { F::load(&rows, offset) };
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `group` is a group of every column.
            let x: Activation<'_> = unsafe { activation(columns, column + index, group) };
            let mut product = if F::SIGNED {
                signed_dot(&block.levels, &x)
            } else {
                unsigned_dot(&block.levels, &x)
            };
            if F::OFFSET != 0 {
                let start = _mm256_set1_epi32(F::OFFSET * x.group.negated_sum);
                product = _mm256_add_epi32(product, start);
            }
            let product = _mm256_cvtepi32_ps(product);
            *sum = _mm256_fmadd_ps(_mm256_mul_ps(block.scale, x.scale()), product, *sum);
            if F::MINIMUM {
                *sum = _mm256_fmadd_ps(block.minimum, x.scaled_sum(), *sum);
            }
        }
    }
    sums
}

impl Single for Q4_0 {
    const SIGNED: bool = false;
    const OFFSET: i32 = 8;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        unsafe {
            Loaded {
                scale: halves(rows, offset),
                minimum: _mm256_setzero_ps(),
                levels: nibbles(all_rows(rows, offset + 2)),
            }
        }
    }
}

impl Single for Q4_1 {
    const SIGNED: bool = false;
    const OFFSET: i32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        unsafe {
            let (scale, minimum) = half_pairs(rows, offset);
            Loaded {
                scale,
                minimum,
                levels: nibbles(all_rows(rows, offset + 4)),
            }
        }
    }
}

/// Adds the fifth bits to 4-bit levels: the word of them is at byte `at` of each row of `heads`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_fifth_bits(levels: Levels, heads: &[__m256i; 4], at: u8) -> Levels {
    // One byte of the word for each eight levels, and of it one bit for each level.
    let bytes = |first: u8| {
        let low = i64::from_le_bytes([at + first; 8]);
        let high = i64::from_le_bytes([at + first + 1; 8]);
        _mm256_setr_epi64x(low, high, low, high)
    };
    let (low_bytes, high_bytes) = (bytes(0), bytes(2));
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let sixteen = _mm256_set1_epi8(16);
    let one = |level, head, bytes| {
        let bits = _mm256_and_si256(_mm256_shuffle_epi8(head, bytes), bit);
        let set = _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), sixteen);
        _mm256_or_si256(level, set)
    };
    let low = |pair: usize| one(levels.low[pair], heads[pair], low_bytes);
    let high = |pair: usize| one(levels.high[pair], heads[pair], high_bytes);
    Levels {
        low: [low(0), low(1), low(2), low(3)],
        high: [high(0), high(1), high(2), high(3)],
    }
}

/// Pairs of adjacent f16 as floats: all the first, all the second.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn split_halves(pairs: __m256i) -> (__m256, __m256) {
    // First ones of rows 0..4, second ones of rows 0..4, first ones of rows 4..8, second ones of rows 4..8.
    let first = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
    let mixed = _mm256_packus_epi32(first, _mm256_srli_epi32::<16>(pairs));
    let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed);
    (
        _mm256_cvtph_ps(_mm256_castsi256_si128(in_order)),
        _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(in_order)),
    )
}

impl Single for Q5_0 {
    const SIGNED: bool = false;
    const OFFSET: i32 = 16;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block of 22 bytes.
        let (heads, low) = unsafe { (all_rows(rows, offset), all_rows(rows, offset + 6)) };
        Loaded {
            scale: split_halves(first_words(heads)).0,
            minimum: _mm256_setzero_ps(),
            levels: add_fifth_bits(nibbles(low), &heads, 2),
        }
    }
}

impl Single for Q5_1 {
    const SIGNED: bool = false;
    const OFFSET: i32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block of 24 bytes.
        let (heads, low) = unsafe { (all_rows(rows, offset), all_rows(rows, offset + 8)) };
        let (scale, minimum) = split_halves(first_words(heads));
        Loaded {
            scale,
            minimum,
            levels: add_fifth_bits(nibbles(low), &heads, 4),
        }
    }
}

impl Single for Q8_0 {
    const SIGNED: bool = true;
    const OFFSET: i32 = 0;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        unsafe {
            Loaded {
                scale: halves(rows, offset),
                minimum: _mm256_setzero_ps(),
                levels: Levels {
                    low: all_rows(rows, offset + 2),
                    high: all_rows(rows, offset + 18),
                },
            }
        }
    }
}
