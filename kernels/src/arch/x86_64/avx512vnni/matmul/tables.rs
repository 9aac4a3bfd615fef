//! Levels looked up in a table.

use super::k_quants::{Bits, Factors, Grouped, SuperBlock, load, signed};
use super::legacy::{Loaded, Single};
use super::{Levels, Rows, all_rows, first_words, halves, nibbles, split_halves};
use crate::block::{IQ4NL, IQ4XS, MXFP4};
use core::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_insert_epi8, _mm_loadu_si128, _mm_setzero_si128, _mm512_add_epi8,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castsi512_ps, _mm512_cmplt_epi32_mask,
    _mm512_cvtepu8_epi32, _mm512_mask_sllv_epi32, _mm512_or_si512, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set4_epi32, _mm512_set4_epi64, _mm512_setzero_ps,
    _mm512_shuffle_epi8, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_srli_epi16,
    _mm512_srlv_epi32, _mm512_sub_epi8, _mm512_sub_epi32,
};

/// The table's levels of 4-bit indices, shifted up by `offset`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn look_up(table: &[i8; 16], offset: u32, indices: Levels) -> Levels {
    // SAFETY: the table has sixteen bytes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    let table = _mm512_add_epi8(table, _mm512_set1_epi8(offset as i8));
    let one = |indices| _mm512_shuffle_epi8(table, indices);
    let (low, high) = (indices.low, indices.high);
    Levels {
        low: [one(low[0]), one(low[1]), one(low[2]), one(low[3])],
        high: [one(high[0]), one(high[1]), one(high[2]), one(high[3])],
    }
}

impl Single for IQ4NL {
    const OFFSET: u32 = 128;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        let (scale, indices) = unsafe { (halves(rows, offset), all_rows(rows, offset + 2)) };
        Loaded {
            scale,
            minimum: _mm512_setzero_ps(),
            levels: look_up(&IQ4NL::TABLE, Self::OFFSET, nibbles(indices)),
        }
    }
}

/// [`MXFP4::scale`] of the exponent at `offset` of each row.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn powers(rows: &Rows, offset: usize) -> __m512i {
    // SAFETY: the caller owes the bytes.
    let at = |row: usize| i32::from(unsafe { *rows[row].add(offset) });
    let mut bytes: __m128i = _mm_setzero_si128();
    bytes = _mm_insert_epi8::<0>(bytes, at(0));
    bytes = _mm_insert_epi8::<1>(bytes, at(1));
    bytes = _mm_insert_epi8::<2>(bytes, at(2));
    bytes = _mm_insert_epi8::<3>(bytes, at(3));
    bytes = _mm_insert_epi8::<4>(bytes, at(4));
    bytes = _mm_insert_epi8::<5>(bytes, at(5));
    bytes = _mm_insert_epi8::<6>(bytes, at(6));
    bytes = _mm_insert_epi8::<7>(bytes, at(7));
    bytes = _mm_insert_epi8::<8>(bytes, at(8));
    bytes = _mm_insert_epi8::<9>(bytes, at(9));
    bytes = _mm_insert_epi8::<10>(bytes, at(10));
    bytes = _mm_insert_epi8::<11>(bytes, at(11));
    bytes = _mm_insert_epi8::<12>(bytes, at(12));
    bytes = _mm_insert_epi8::<13>(bytes, at(13));
    bytes = _mm_insert_epi8::<14>(bytes, at(14));
    bytes = _mm_insert_epi8::<15>(bytes, at(15));
    let exponents = _mm512_cvtepu8_epi32(bytes);
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
    let subnormal = _mm512_cmplt_epi32_mask(exponents, _mm512_set1_epi32(2));
    _mm512_mask_sllv_epi32(normal, subnormal, _mm512_set1_epi32(0x0020_0000), exponents)
}

impl Single for MXFP4 {
    const OFFSET: u32 = 16;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize) -> Loaded {
        // SAFETY: the caller owes a block.
        let (scale, indices) = unsafe { (powers(rows, offset), all_rows(rows, offset + 1)) };
        Loaded {
            scale: _mm512_castsi512_ps(scale),
            minimum: _mm512_setzero_ps(),
            levels: look_up(&MXFP4::TABLE, Self::OFFSET, nibbles(indices)),
        }
    }
}

impl Grouped for IQ4XS {}

impl SuperBlock for IQ4XS {
    const OFFSET: u32 = 128;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: the caller owes a block, which starts with scale, high and low bits of the group scales.
        let heads = unsafe { all_rows(rows, offset) };
        // Low bits: each byte twice, of which the first keeps its low and the second its high half.
        let low_bytes = _mm512_set4_epi64(0, 0x0707_0606_0505_0404, 0, 0x0707_0606_0505_0404);
        let (first, second) = (_mm512_set1_epi16(0x000f), _mm512_set1_epi16(0x0f00));
        // High bits: the word four times, each two bits further down, then the bytes in order of their groups.
        let high_word = _mm512_set1_epi32(0x0303_0302);
        let places = _mm512_set4_epi32(6, 4, 2, 0);
        let in_order = _mm512_set4_epi64(0, 0x0d09_0501_0c08_0400, 0, 0x0d09_0501_0c08_0400);
        let two_bits = _mm512_set1_epi8(3);
        let mut scales = heads;
        for scales in &mut scales {
            let low = _mm512_shuffle_epi8(*scales, low_bytes);
            let low = _mm512_or_si512(
                _mm512_and_si512(low, first),
                _mm512_and_si512(_mm512_srli_epi16::<4>(low), second),
            );
            let high = _mm512_srlv_epi32(_mm512_shuffle_epi8(*scales, high_word), places);
            let high = _mm512_and_si512(_mm512_shuffle_epi8(high, in_order), two_bits);
            let joined = _mm512_or_si512(low, _mm512_slli_epi16::<4>(high));
            *scales = _mm512_sub_epi8(joined, _mm512_set1_epi8(32));
        }
        Factors {
            scale: split_halves(first_words(heads)).0,
            minimum: _mm512_setzero_ps(),
            bytes: scales,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits) {
        // SAFETY: within the block that the caller owes.
        unsafe { load(rows, offset + 8 + half * 64, &mut bits.low) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels {
        look_up(&IQ4NL::TABLE, Self::OFFSET, nibbles(bits.low[QUARTER]))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_scale(bytes: __m128i) -> __m512 {
        signed(bytes)
    }
}
