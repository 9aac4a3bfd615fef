//! Levels looked up in a table.

use super::k_quants::{Factors, Grouped, SuperBlock};
use super::legacy::{Loaded, Single, split_halves};
use super::{Levels, Rows, all_rows, first_words, halves, nibbles};
use crate::block::{IQ4NL, IQ4XS, MXFP4};
use core::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi64_si128, _mm_loadu_si128, _mm256_and_si256, _mm256_blendv_epi8,
    _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_cmpgt_epi32, _mm256_cvtepu8_epi32,
    _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_slli_epi32,
    _mm256_sllv_epi32, _mm256_srli_epi16, _mm256_srlv_epi32, _mm256_sub_epi8, _mm256_sub_epi32,
};

/// The table's levels of 4-bit indices.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up(table: &[i8; 16], indices: Levels) -> Levels {
    // SAFETY: the table has sixteen bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    let one = |indices| _mm256_shuffle_epi8(table, indices);
    let (low, high) = (indices.low, indices.high);
    Levels {
        low: [one(low[0]), one(low[1]), one(low[2]), one(low[3])],
        high: [one(high[0]), one(high[1]), one(high[2]), one(high[3])],
    }
}

impl Single for IQ4NL {
    const SIGNED: bool = true;
    const OFFSET: i32 = 0;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        let (scale, indices) = unsafe { (halves(rows, offset), all_rows(rows, offset + 2)) };
        Loaded {
            scale,
            minimum: _mm256_setzero_ps(),
            levels: look_up(&IQ4NL::TABLE, nibbles(indices)),
        }
    }
}

/// [`MXFP4::scale`] of the exponent at `offset` of each row.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn powers(rows: &Rows, offset: usize) -> __m256 {
    let mut bytes = [0u8; 8];
    for (byte, row) in bytes.iter_mut().zip(rows) {
        // SAFETY: the caller owes the byte.
        *byte = unsafe { *row.add(offset) };
    }
    let exponents = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)));
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
    let is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponents);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, is_subnormal))
}

impl Single for MXFP4 {
    const SIGNED: bool = true;
    const OFFSET: i32 = 0;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        let (scale, indices) = unsafe { (powers(rows, offset), all_rows(rows, offset + 1)) };
        Loaded {
            scale,
            minimum: _mm256_setzero_ps(),
            levels: look_up(&MXFP4::TABLE, nibbles(indices)),
        }
    }
}

impl Grouped for IQ4XS {
    const SIGNED: bool = true;
}

impl SuperBlock for IQ4XS {
    const OFFSET: i8 = 0;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: the caller owes a block, which starts with scale, high and low bits of the group scales.
        let heads = unsafe { all_rows(rows, offset) };
        // Low bits: each byte twice, of which the first keeps its low and the second its high half.
        let low_bytes = _mm256_setr_epi32(
            0x0505_0404,
            0x0707_0606,
            0,
            0,
            0x0505_0404,
            0x0707_0606,
            0,
            0,
        );
        let (first, second) = (_mm256_set1_epi16(0x000f), _mm256_set1_epi16(0x0f00));
        // High bits: the word four times, each two bits further down, then the bytes in order of their groups.
        let high_word = _mm256_set1_epi32(0x0303_0302);
        let places = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
        let in_order = _mm256_setr_epi32(
            0x0c08_0400,
            0x0d09_0501,
            0,
            0,
            0x0c08_0400,
            0x0d09_0501,
            0,
            0,
        );
        let mut scales: [__m256i; 4] = heads;
        for scales in &mut scales {
            let low = _mm256_shuffle_epi8(*scales, low_bytes);
            let low = _mm256_or_si256(
                _mm256_and_si256(low, first),
                _mm256_and_si256(_mm256_srli_epi16::<4>(low), second),
            );
            let high = _mm256_srlv_epi32(_mm256_shuffle_epi8(*scales, high_word), places);
            let high = _mm256_and_si256(_mm256_shuffle_epi8(high, in_order), _mm256_set1_epi8(3));
            let joined = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
            *scales = _mm256_sub_epi8(joined, _mm256_set1_epi8(32));
        }
        Factors {
            scale: split_halves(first_words(heads)).0,
            minimum: _mm256_setzero_ps(),
            bytes: scales,
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels {
        // SAFETY: within the block that the caller owes.
        let indices = unsafe { all_rows(rows, offset + 8 + half * 64 + QUARTER * 16) };
        look_up(&IQ4NL::TABLE, nibbles(indices))
    }
}
