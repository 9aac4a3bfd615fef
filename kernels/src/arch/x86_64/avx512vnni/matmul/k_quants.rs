//! Blocks of 256 elements with scales of scales: eight groups of 32, or sixteen of 16.
//!
//! The bits of the levels are loaded for half a block at a time, since neighbouring groups share bytes.

use super::{
    Levels, Rows, activation, all_rows, dot, first_words, half_dot, half_pairs, halves, prefetch,
    split_halves,
};
use crate::activation::Columns;
use crate::block::{Block, Q2K, Q3K, Q4K, Q5K, Q6K};
use core::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_and_si128, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_set1_epi8,
    _mm_srli_epi16, _mm512_and_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_mul_ps,
    _mm512_permutexvar_epi32, _mm512_set_epi32, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_set4_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_shuffle_epi32, _mm512_slli_epi16, _mm512_srl_epi16,
    _mm512_srli_epi16, _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_storeu_si512, _mm512_sub_epi8,
    _mm512_ternarylogic_epi32, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpacklo_epi8,
    _mm512_unpacklo_epi16,
};

/// What the groups of a block have in common, for sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// Factor of the group scales.
    pub(super) scale: __m512,
    /// Factor of the group minimums; zero where the format has none.
    pub(super) minimum: __m512,
    /// Sixteen bytes of each row that the group scales and minimums are in, as [`all_rows`] loads them.
    pub(super) bytes: [__m512i; 4],
}

/// The bytes that the levels of half a block of sixteen rows are made of, sixteen of a row in each element: low bits,
/// which are the half's own, and high bits. Filled in place: it is too large to return.
#[derive(Clone, Copy)]
pub(super) struct Bits {
    pub(super) low: [[__m512i; 4]; 4],
    high: [[__m512i; 4]; 2],
}

impl Bits {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn new() -> Bits {
        Bits {
            low: [[_mm512_setzero_si512(); 4]; 4],
            high: [[_mm512_setzero_si512(); 4]; 2],
        }
    }
}

/// A format with blocks of 256 elements.
pub(super) trait SuperBlock: Block {
    /// How far the loaded levels are shifted up: a power of two from 4, or zero.
    const OFFSET: u32;
    /// Whether the format has minimums.
    const MINIMUM: bool;
    /// Loads scales and minimums of a block of each row.
    ///
    /// # Safety
    /// The instruction set must be supported, and a block readable at `offset` of each row.
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors;

    /// Loads the bytes of half `half` of a block of each row.
    ///
    /// # Safety
    /// The instruction set must be supported, and a block readable at `offset` of each row.
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits);

    /// The levels of the quarter of 32 elements with this index (0..4).
    ///
    /// # Safety
    /// The instruction set must be supported.
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels;

    /// Group scales of sixteen rows.
    ///
    /// # Safety
    /// The instruction set must be supported.
    unsafe fn group_scale(bytes: __m128i) -> __m512;
}

/// A super-block of eight groups of 32 elements; bytes 0..8 of its factors are scales, bytes 8..16 minimums.
pub(super) trait Grouped: SuperBlock {}

/// A super-block of sixteen groups of 16 elements, one byte of its factors for each.
pub(super) trait Halved: SuperBlock {
    /// Group minimums of sixteen rows.
    ///
    /// # Safety
    /// The instruction set must be supported.
    unsafe fn group_minimum(bytes: __m128i) -> __m512;
}

/// A block of sixteen rows and where its columns are.
#[derive(Clone, Copy)]
struct At<'a> {
    rows: &'a Rows,
    offset: usize,
    factors: &'a Factors,
    /// The bytes of the factors, one byte of all rows together.
    bytes: &'a [[u8; 16]; 16],
    columns: &'a Columns<'a>,
    column: usize,
    first_group: usize,
}

/// Defines `$name`, the products of sixteen rows and `M` columns, by `$quarter`, which adds up one quarter of half a
/// block.
macro_rules! super_block {
    ($name:ident, $family:ident, $quarter:ident) => {
        /// Products of sixteen rows and `M` columns.
        ///
        /// # Safety
        /// The rows must have `blocks` blocks, and the columns must exist.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        pub(super) unsafe fn $name<F: $family, const M: usize>(
            rows: Rows,
            blocks: usize,
            columns: &Columns<'_>,
            column: usize,
        ) -> [__m512; M] {
            let mut sums = [_mm512_setzero_ps(); M];
            let mut bits = Bits::new();
            for block in 0..blocks {
                let offset = block * size_of::<F>();
                // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
                unsafe {
                    let factors = F::factors(&rows, offset);
                    let at = At {
                        rows: &rows,
                        offset,
                        factors: &factors,
                        bytes: &transpose(factors.bytes),
                        columns,
                        column,
                        first_group: block * 8,
                    };
                    for half in 0..2 {
                        F::load(&rows, offset, half, &mut bits);
                        $quarter::<F, M, 0>(&mut sums, &bits, half, &at);
                        $quarter::<F, M, 1>(&mut sums, &bits, half, &at);
                        $quarter::<F, M, 2>(&mut sums, &bits, half, &at);
                        $quarter::<F, M, 3>(&mut sums, &bits, half, &at);
                    }
                }
            }
            sums
        }
    };
}

super_block!(grouped_block, Grouped, add_group);
super_block!(halved_block, Halved, add_halves);

/// Byte `index` of all rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn byte_of_rows(bytes: &[[u8; 16]; 16], index: usize) -> __m128i {
    // SAFETY: sixteen bytes.
    unsafe { _mm_loadu_si128(bytes[index].as_ptr().cast()) }
}

/// Adds the group that quarter `QUARTER` of half `half` is to the sums of all columns.
///
/// # Safety
/// Every column from `column` must have the groups from `first_group`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_group<F: Grouped, const M: usize, const QUARTER: usize>(
    sums: &mut [__m512; M],
    bits: &Bits,
    half: usize,
    at: &At<'_>,
) {
    let group = half * 4 + QUARTER;
    prefetch(at.rows, at.offset, size_of::<F>(), group..group + 1);
    // SAFETY: the caller owes the instruction set.
    let levels = &unsafe { F::levels::<QUARTER>(bits) };
    // SAFETY: the caller owes the instruction set.
    let group_scale = unsafe { F::group_scale(byte_of_rows(at.bytes, group)) };
    let scale = _mm512_mul_ps(at.factors.scale, group_scale);
    let minimum = if F::MINIMUM {
        _mm512_mul_ps(
            at.factors.minimum,
            unsigned(byte_of_rows(at.bytes, group + 8)),
        )
    } else {
        _mm512_setzero_ps()
    };
    for (index, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller owes the column.
        let x = unsafe { activation(at.columns, at.column + index, at.first_group + group) };
        let product = _mm512_cvtepi32_ps(dot(levels, &x, x.start(F::OFFSET)));
        *sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, x.scale()), product, *sum);
        if F::MINIMUM {
            *sum = _mm512_fnmadd_ps(minimum, x.scaled_sum(), *sum);
        }
    }
}

/// Adds the two groups of quarter `QUARTER` of half `half` to the sums of all columns. Group scales times integer sums, and
/// group minimums times sums of activations, stay below 2^24 together, so forming them in f32 is exact.
///
/// # Safety
/// Every column from `column` must have the groups from `first_group`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_halves<F: Halved, const M: usize, const QUARTER: usize>(
    sums: &mut [__m512; M],
    bits: &Bits,
    half: usize,
    at: &At<'_>,
) {
    let group = half * 4 + QUARTER;
    prefetch(at.rows, at.offset, size_of::<F>(), group..group + 1);
    // SAFETY: the caller owes the instruction set.
    let levels = &unsafe { F::levels::<QUARTER>(bits) };
    let low = byte_of_rows(at.bytes, 2 * group);
    let high = byte_of_rows(at.bytes, 2 * group + 1);
    // SAFETY: the caller owes the instruction set.
    let (scales, minimums) = unsafe {
        (
            [F::group_scale(low), F::group_scale(high)],
            [F::group_minimum(low), F::group_minimum(high)],
        )
    };
    for (index, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller owes the column.
        let x = unsafe { activation(at.columns, at.column + index, at.first_group + group) };
        let low = half_dot(&levels.low, x.low, x.half_start(0, F::OFFSET));
        let high = half_dot(&levels.high, x.high, x.half_start(1, F::OFFSET));
        let product = _mm512_mul_ps(scales[0], _mm512_cvtepi32_ps(low));
        let product = _mm512_fmadd_ps(scales[1], _mm512_cvtepi32_ps(high), product);
        *sum = _mm512_fmadd_ps(_mm512_mul_ps(at.factors.scale, x.scale()), product, *sum);
        if F::MINIMUM {
            let [x_low, x_high] = x.group.half_sums().map(|sum| sum as f32);
            let minimum = _mm512_mul_ps(minimums[0], _mm512_set1_ps(x_low));
            let x_high = _mm512_set1_ps(x_high);
            let minimum = _mm512_fmadd_ps(minimums[1], x_high, minimum);
            *sum = _mm512_fnmadd_ps(_mm512_mul_ps(at.factors.minimum, x.scale()), minimum, *sum);
        }
    }
}

/// Turns sixteen bytes of each row, as [`all_rows`] loads them, into one byte of all rows together.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn transpose([a, b, c, d]: [__m512i; 4]) -> [[u8; 16]; 16] {
    // Rows q, q + 1, q + 2, q + 3 side by side: one word of four rows for each byte index, within each 128-bit lane.
    let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    let words = [
        _mm512_unpacklo_epi16(ab_low, cd_low),
        _mm512_unpackhi_epi16(ab_low, cd_low),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ];
    // The words of the four lanes that belong to one byte index, next to each other.
    let lanes = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let mut bytes = [[0u8; 16]; 16];
    for (words, bytes) in words.into_iter().zip(bytes.as_chunks_mut::<4>().0) {
        // SAFETY: four times sixteen bytes.
        unsafe {
            _mm512_storeu_si512(
                bytes.as_mut_ptr().cast(),
                _mm512_permutexvar_epi32(lanes, words),
            );
        }
    }
    bytes
}

/// Scales and minimums of Q4_K and Q5_K, which start alike.
///
/// # Safety
/// Sixteen bytes of a block must be readable at `offset` of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn minimum_factors(rows: &Rows, offset: usize) -> Factors {
    // SAFETY: the caller owes the bytes.
    let heads = unsafe { all_rows(rows, offset) };
    // See `Groups::unpack`: after the two f16 come three words, here S, M and L. The words that are made of them hold
    // four scales (S), four more (L, with the top of S), four minimums (M), four more (L shifted, with the top of M).
    let places = _mm512_set4_epi32(4, 0, 0, 0);
    let low_mask = _mm512_set4_epi32(0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f);
    let top_mask = _mm512_set4_epi32(0x3030_3030, 0, 0x3030_3030, 0);
    let mut bytes = heads;
    for bytes in &mut bytes {
        let low = _mm512_shuffle_epi32::<0b11_10_11_01>(*bytes);
        let low = _mm512_and_si512(_mm512_srlv_epi32(low, places), low_mask);
        let top = _mm512_srli_epi32::<2>(_mm512_shuffle_epi32::<0b10_10_01_01>(*bytes));
        *bytes = or_masked(low, top, top_mask);
    }
    let (scale, minimum) = split_halves(first_words(heads));
    Factors {
        scale,
        minimum,
        bytes,
    }
}

/// `a | b & mask`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn or_masked(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xf8>(a, b, mask)
}

/// `bytes` shifted left, or right if negative; bits cross from byte to byte. The match is decided when `left` is known.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn shifted(bytes: __m512i, left: i32) -> __m512i {
    match left {
        0 => bytes,
        1 => _mm512_slli_epi16::<1>(bytes),
        2 => _mm512_slli_epi16::<2>(bytes),
        3 => _mm512_slli_epi16::<3>(bytes),
        4 => _mm512_slli_epi16::<4>(bytes),
        -1 => _mm512_srli_epi16::<1>(bytes),
        -2 => _mm512_srli_epi16::<2>(bytes),
        -3 => _mm512_srli_epi16::<3>(bytes),
        -4 => _mm512_srli_epi16::<4>(bytes),
        -5 => _mm512_srli_epi16::<5>(bytes),
        -6 => _mm512_srli_epi16::<6>(bytes),
        _ => unreachable!("no level is that far up"),
    }
}

/// The bits of `bytes` that `mask` has after a shift to the left.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn masked([a, b, c, d]: [__m512i; 4], left: i32, mask: i8) -> [__m512i; 4] {
    let mask = _mm512_set1_epi8(mask);
    let one = |bytes| _mm512_and_si512(shifted(bytes, left), mask);
    [one(a), one(b), one(c), one(d)]
}

/// `levels`, with the bits of `bytes` that `mask` has after a shift to the left.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn joined(levels: [__m512i; 4], bytes: [__m512i; 4], left: i32, mask: i8) -> [__m512i; 4] {
    let mask = _mm512_set1_epi8(mask);
    let one = |index: usize| or_masked(levels[index], shifted(bytes[index], left), mask);
    [one(0), one(1), one(2), one(3)]
}

/// Loads the bytes from `offset` of all rows.
///
/// # Safety
/// Sixteen times as many bytes as `bits` has elements must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn load(rows: &Rows, offset: usize, bits: &mut [[__m512i; 4]]) {
    for (index, bits) in bits.iter_mut().enumerate() {
        // SAFETY: the caller owes the bytes.
        *bits = unsafe { all_rows(rows, offset + 16 * index) };
    }
}

/// [`load`] of the 32 bytes that hold one bit for each group of 32, those of half `half` moved to the low four bits.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn load_bits(rows: &Rows, offset: usize, half: usize, bits: &mut [[__m512i; 4]; 2]) {
    let down = _mm_cvtsi32_si128(4 * half as i32);
    for (index, bits) in bits.iter_mut().enumerate() {
        // SAFETY: the caller owes the bytes.
        let [a, b, c, d] = unsafe { all_rows(rows, offset + 16 * index) };
        let one = |bytes| _mm512_srl_epi16(bytes, down);
        *bits = [one(a), one(b), one(c), one(d)];
    }
}

/// Unsigned bytes as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unsigned(bytes: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
}

/// Signed bytes as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn signed(bytes: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
}

impl Grouped for Q4K {}

impl SuperBlock for Q4K {
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: passed on.
        unsafe { minimum_factors(rows, offset) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits) {
        // SAFETY: within the block that the caller owes.
        unsafe { load(rows, offset + 16 + half * 64, &mut bits.low) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels {
        let (at, left) = (QUARTER / 2 * 2, QUARTER as i32 % 2 * -4);
        Levels {
            low: masked(bits.low[at], left, 15),
            high: masked(bits.low[at + 1], left, 15),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_scale(bytes: __m128i) -> __m512 {
        unsigned(bytes)
    }
}

impl Grouped for Q5K {}

impl SuperBlock for Q5K {
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: passed on.
        unsafe { minimum_factors(rows, offset) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits) {
        // SAFETY: within the block that the caller owes.
        unsafe {
            load(rows, offset + 48 + half * 64, &mut bits.low);
            load_bits(rows, offset + 16, half, &mut bits.high);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels {
        let (at, quarter) = (QUARTER / 2 * 2, QUARTER as i32);
        let low = masked(bits.low[at], quarter % 2 * -4, 15);
        let high = masked(bits.low[at + 1], quarter % 2 * -4, 15);
        Levels {
            low: joined(low, bits.high[0], 4 - quarter, 16),
            high: joined(high, bits.high[1], 4 - quarter, 16),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_scale(bytes: __m128i) -> __m512 {
        unsigned(bytes)
    }
}

impl SuperBlock for Q6K {
    const OFFSET: u32 = 32;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: within the block that the caller owes.
        unsafe {
            Factors {
                scale: halves(rows, offset + 208),
                minimum: _mm512_setzero_ps(),
                bytes: all_rows(rows, offset + 192),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits) {
        // SAFETY: within the block that the caller owes.
        unsafe {
            load(rows, offset + half * 64, &mut bits.low);
            load(rows, offset + 128 + half * 32, &mut bits.high);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels {
        let (at, quarter) = (QUARTER % 2 * 2, QUARTER as i32);
        let low = masked(bits.low[at], quarter / 2 * -4, 15);
        let high = masked(bits.low[at + 1], quarter / 2 * -4, 15);
        Levels {
            low: joined(low, bits.high[0], 4 - 2 * quarter, 48),
            high: joined(high, bits.high[1], 4 - 2 * quarter, 48),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_scale(bytes: __m128i) -> __m512 {
        signed(bytes)
    }
}

impl Halved for Q6K {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_minimum(_: __m128i) -> __m512 {
        _mm512_setzero_ps()
    }
}

impl SuperBlock for Q3K {
    const OFFSET: u32 = 4;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // The last sixteen bytes of the block: two that are not wanted, the three words of the scales, the f16.
        // SAFETY: within the block that the caller owes.
        let (tails, scale) = unsafe { (all_rows(rows, offset + 94), halves(rows, offset + 108)) };
        // See `Q3K::scales`: the first two words, once as they are and once shifted, have the low bits of all groups;
        // the third word, shifted by 0, 2, 4 and 6, has their high bits.
        let low_bytes = _mm512_set4_epi32(0x0908_0706, 0x0504_0302, 0x0908_0706, 0x0504_0302);
        let high_bytes = _mm512_set1_epi32(0x0d0c_0b0a);
        let low_places = _mm512_set4_epi32(4, 4, 0, 0);
        let high_places = _mm512_set4_epi32(6, 4, 2, 0);
        let (four_bits, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(48));
        let mut scales = tails;
        for scales in &mut scales {
            let low = _mm512_srlv_epi32(_mm512_shuffle_epi8(*scales, low_bytes), low_places);
            let high = _mm512_srlv_epi32(_mm512_shuffle_epi8(*scales, high_bytes), high_places);
            let low = _mm512_and_si512(low, four_bits);
            let joined = or_masked(low, _mm512_slli_epi16::<4>(high), two_bits);
            *scales = _mm512_sub_epi8(joined, _mm512_set1_epi8(32));
        }
        Factors {
            scale,
            minimum: _mm512_setzero_ps(),
            bytes: scales,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits) {
        // SAFETY: within the block that the caller owes.
        unsafe {
            load(rows, offset + 32 + half * 32, &mut bits.low[..2]);
            load_bits(rows, offset, half, &mut bits.high);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels {
        let quarter = QUARTER as i32;
        let low = masked(bits.low[0], -2 * quarter, 3);
        let high = masked(bits.low[1], -2 * quarter, 3);
        Levels {
            low: joined(low, bits.high[0], 2 - quarter, 4),
            high: joined(high, bits.high[1], 2 - quarter, 4),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_scale(bytes: __m128i) -> __m512 {
        signed(bytes)
    }
}

impl Halved for Q3K {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_minimum(_: __m128i) -> __m512 {
        _mm512_setzero_ps()
    }
}

impl SuperBlock for Q2K {
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: within the block that the caller owes.
        unsafe {
            let (scale, minimum) = half_pairs(rows, offset + 80);
            Factors {
                scale,
                minimum,
                bytes: all_rows(rows, offset),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(rows: &Rows, offset: usize, half: usize, bits: &mut Bits) {
        // SAFETY: within the block that the caller owes.
        unsafe { load(rows, offset + 16 + half * 32, &mut bits.low[..2]) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn levels<const QUARTER: usize>(bits: &Bits) -> Levels {
        let left = -2 * QUARTER as i32;
        Levels {
            low: masked(bits.low[0], left, 3),
            high: masked(bits.low[1], left, 3),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_scale(bytes: __m128i) -> __m512 {
        unsigned(_mm_and_si128(bytes, _mm_set1_epi8(15)))
    }
}

impl Halved for Q2K {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_minimum(bytes: __m128i) -> __m512 {
        unsigned(_mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15)))
    }
}
