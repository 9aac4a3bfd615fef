//! Blocks of 32 elements with evenly spaced levels.

use super::{
    Activation, Levels, Rows, activation, all_rows, dot, first_words, half_pairs, halves, nibbles,
    prefetch, split_halves,
};
use crate::activation::Columns;
use crate::block::{Block, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use core::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi8, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_mask_add_epi8,
    _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi64, _mm512_set4_epi64, _mm512_setzero_ps,
    _mm512_shuffle_epi8, _mm512_test_epi8_mask, _mm512_xor_si512,
};

/// One block of sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Loaded {
    pub(super) scale: __m512,
    /// Zero where the format has none.
    pub(super) minimum: __m512,
    pub(super) levels: Levels,
}

/// A format whose blocks are one group of 32 elements with one scale.
pub(super) trait Single: Block {
    /// How far the loaded levels are shifted up: a power of two from 4, or zero.
    const OFFSET: u32;
    /// Whether the format has minimums.
    const MINIMUM: bool;

    /// Loads a block of each row.
    ///
    /// # Safety
    /// The instruction set must be supported, and a block readable at `offset` of each row.
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded;
}

/// Products of sixteen rows and `M` columns.
///
/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn single_block<F: Single, const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    let mut sums = [_mm512_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * size_of::<F>();
        prefetch(&rows, offset, size_of::<F>(), 0..8);
        // SAFETY: `offset` is the start of a block of every row.
        let block = unsafe { F::load(&rows, offset) };
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `group` is a group of every column.
            let x: Activation<'_> = unsafe { activation(columns, column + index, group) };
            let product = _mm512_cvtepi32_ps(dot(&block.levels, &x, x.start(F::OFFSET)));
            *sum = _mm512_fmadd_ps(_mm512_mul_ps(block.scale, x.scale()), product, *sum);
            if F::MINIMUM {
                *sum = _mm512_fmadd_ps(block.minimum, x.scaled_sum(), *sum);
            }
        }
    }
    sums
}

impl Single for Q4_0 {
    const OFFSET: u32 = 8;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        unsafe {
            Loaded {
                scale: halves(rows, offset),
                minimum: _mm512_setzero_ps(),
                levels: nibbles(all_rows(rows, offset + 2)),
            }
        }
    }
}

impl Single for Q4_1 {
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_fifth_bits(levels: Levels, heads: &[__m512i; 4], at: u8) -> Levels {
    const NEXT: i64 = 0x0101_0101_0101_0101;
    // One byte of the word for each eight levels, and of it one bit for each level.
    let bytes = |first: u8| {
        let first = _mm512_set1_epi8((at + first) as i8);
        _mm512_add_epi8(first, _mm512_set4_epi64(NEXT, 0, NEXT, 0))
    };
    let (low_bytes, high_bytes) = (bytes(0), bytes(2));
    let bit = _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64);
    let sixteen = _mm512_set1_epi8(16);
    let one = |level, head, bytes| {
        let set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(head, bytes), bit);
        _mm512_mask_add_epi8(level, set, level, sixteen)
    };
    let low = |quad: usize| one(levels.low[quad], heads[quad], low_bytes);
    let high = |quad: usize| one(levels.high[quad], heads[quad], high_bytes);
    Levels {
        low: [low(0), low(1), low(2), low(3)],
        high: [high(0), high(1), high(2), high(3)],
    }
}

impl Single for Q5_0 {
    const OFFSET: u32 = 16;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block of 22 bytes.
        let (heads, low) = unsafe { (all_rows(rows, offset), all_rows(rows, offset + 6)) };
        Loaded {
            scale: split_halves(first_words(heads)).0,
            minimum: _mm512_setzero_ps(),
            levels: add_fifth_bits(nibbles(low), &heads, 2),
        }
    }
}

impl Single for Q5_1 {
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
    const OFFSET: u32 = 128;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // Flipping the sign bit adds 128 and makes the level unsigned.
        let flip = _mm512_set1_epi8(i8::MIN);
        // SAFETY: the caller owes a block.
        let (scale, low, high) = unsafe {
            (
                halves(rows, offset),
                all_rows(rows, offset + 2),
                all_rows(rows, offset + 18),
            )
        };
        let one = |bytes| _mm512_xor_si512(bytes, flip);
        Loaded {
            scale,
            minimum: _mm512_setzero_ps(),
            levels: Levels {
                low: [one(low[0]), one(low[1]), one(low[2]), one(low[3])],
                high: [one(high[0]), one(high[1]), one(high[2]), one(high[3])],
            },
        }
    }
}
