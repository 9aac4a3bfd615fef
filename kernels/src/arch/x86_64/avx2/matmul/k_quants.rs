//! Blocks of 256 elements with scales of scales: eight groups of 32, or sixteen of 16.

use super::legacy::split_halves;
use super::{
    Activation, Levels, Rows, activation, all_rows, first_words, half_pairs, halves, prefetch,
    rows_in_lanes, signed_dot, unsigned_dot,
};
use crate::activation::Columns;
use crate::block::{Block, Q2K, Q3K, Q4K, Q5K, Q6K};
use core::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_slli_epi16,
    _mm256_srai_epi16, _mm256_srli_epi16, _mm256_srli_epi32, _mm256_srlv_epi32,
    _mm256_storeu_si256, _mm256_sub_epi8, _mm256_sub_epi16, _mm256_unpackhi_epi8,
    _mm256_unpackhi_epi16, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16,
};

/// What the groups of a block have in common, for eight rows.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// Factor of the group scales.
    pub(super) scale: __m256,
    /// Factor of the group minimums; zero where the format has none.
    pub(super) minimum: __m256,
    /// Sixteen bytes of each row that the group scales and minimums are in, as [`all_rows`] loads them.
    pub(super) bytes: [__m256i; 4],
}

/// A format with blocks of 256 elements.
pub(super) trait SuperBlock: Block {
    /// How far the loaded levels are shifted up.
    const OFFSET: i8;
    /// Whether the format has minimums.
    const MINIMUM: bool;

    /// Loads scales and minimums of a block of each row.
    ///
    /// # Safety
    /// The instruction set must be supported, and a block readable at `offset` of each row.
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors;

    /// The levels of the quarter with this index (0..4) of half `half` of a block.
    ///
    /// # Safety
    /// The instruction set must be supported, and a block readable at `offset` of each row.
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels;
}

/// A super-block of eight groups of 32 elements; bytes 0..8 of its factors are scales, bytes 8..16 minimums.
pub(super) trait Grouped: SuperBlock {
    /// Whether levels and group scales have signs; else levels have at most five bits.
    const SIGNED: bool;
}

/// A super-block of sixteen groups of 16 elements, one byte of its factors for each: a signed scale or, where the
/// format has minimums, a scale in the low and a minimum in the high half. Levels have at most six bits.
pub(super) trait Halved: SuperBlock {}

/// A block of eight rows and where its columns are.
#[derive(Clone, Copy)]
struct At<'a> {
    rows: &'a Rows,
    offset: usize,
    factors: &'a Factors,
    columns: &'a Columns<'a>,
    column: usize,
    first_group: usize,
}

/// Products of eight rows and `M` columns.
///
/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn grouped_block<F: Grouped, const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    for block in 0..blocks {
        let offset = block * size_of::<F>();
        // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
        unsafe {
            let factors = &F::factors(&rows, offset);
            let at = At {
                rows: &rows,
                offset,
                factors,
                columns,
                column,
                first_group: block * 8,
            };
            let bytes = transpose(factors.bytes);
            for half in 0..2 {
                add_group::<F, M, 0>(&mut sums, half, &bytes, &at);
                add_group::<F, M, 1>(&mut sums, half, &bytes, &at);
                add_group::<F, M, 2>(&mut sums, half, &bytes, &at);
                add_group::<F, M, 3>(&mut sums, half, &bytes, &at);
            }
        }
    }
    sums
}

/// Adds the group that quarter `QUARTER` of half `half` is to the sums of all columns.
///
/// # Safety
/// The rows must have the block, and every column from `column` the groups from `first_group`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_group<F: Grouped, const M: usize, const QUARTER: usize>(
    sums: &mut [__m256; M],
    half: usize,
    bytes: &[[u8; 8]; 16],
    at: &At<'_>,
) {
    let group = half * 4 + QUARTER;
    prefetch(at.rows, at.offset, size_of::<F>(), group..group + 1);
    // SAFETY: the caller owes the rows.
    let levels = &unsafe { F::levels::<QUARTER>(at.rows, at.offset, half) };
    let group_scale = if F::SIGNED {
        signed(&bytes[group])
    } else {
        unsigned(&bytes[group])
    };
    let scale = _mm256_mul_ps(at.factors.scale, group_scale);
    for (index, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller owes the column.
        let x = unsafe { activation(at.columns, at.column + index, at.first_group + group) };
        let product = if F::SIGNED {
            signed_dot(levels, &x)
        } else {
            unsigned_dot(levels, &x)
        };
        let product = _mm256_cvtepi32_ps(product);
        *sum = _mm256_fmadd_ps(_mm256_mul_ps(scale, x.scale()), product, *sum);
        if F::MINIMUM {
            let minimum = _mm256_mul_ps(at.factors.minimum, unsigned(&bytes[group + 8]));
            *sum = _mm256_fnmadd_ps(minimum, x.scaled_sum(), *sum);
        }
    }
}

/// Products of eight rows and `M` columns.
///
/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn halved_block<F: Halved, const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    for block in 0..blocks {
        let offset = block * size_of::<F>();
        // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
        unsafe {
            let factors = &F::factors(&rows, offset);
            let at = At {
                rows: &rows,
                offset,
                factors,
                columns,
                column,
                first_group: block * 8,
            };
            let minimums = if F::MINIMUM {
                transpose(high_halves(factors.bytes))
            } else {
                [[0; 8]; 16]
            };
            for half in 0..2 {
                let words = scale_words::<F>(&factors.bytes, half);
                add_halves::<F, M, 0>(&mut sums, half, (&words, &minimums), &at);
                add_halves::<F, M, 1>(&mut sums, half, (&words, &minimums), &at);
                add_halves::<F, M, 2>(&mut sums, half, (&words, &minimums), &at);
                add_halves::<F, M, 3>(&mut sums, half, (&words, &minimums), &at);
            }
        }
    }
    sums
}

/// The eight group scales of half `half` of a block as 16-bit integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale_words<F: Halved>(bytes: &[__m256i; 4], half: usize) -> [__m256i; 4] {
    let mut words = *bytes;
    for words in &mut words {
        let scales = if F::MINIMUM {
            _mm256_and_si256(*words, _mm256_set1_epi8(15))
        } else {
            *words
        };
        let high = if half == 0 {
            _mm256_unpacklo_epi8(scales, scales)
        } else {
            _mm256_unpackhi_epi8(scales, scales)
        };
        *words = _mm256_srai_epi16::<8>(high);
    }
    words
}

/// The high halves of bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn high_halves(mut bytes: [__m256i; 4]) -> [__m256i; 4] {
    for bytes in &mut bytes {
        *bytes = _mm256_and_si256(_mm256_srli_epi16::<4>(*bytes), _mm256_set1_epi8(15));
    }
    bytes
}

/// Adds the two groups of quarter `QUARTER` of half `half` to the sums of all columns.
///
/// # Safety
/// The rows must have the block, and every column from `column` the groups from `first_group`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_halves<F: Halved, const M: usize, const QUARTER: usize>(
    sums: &mut [__m256; M],
    half: usize,
    (words, minimums): (&[__m256i; 4], &[[u8; 8]; 16]),
    at: &At<'_>,
) {
    let group = half * 4 + QUARTER;
    prefetch(at.rows, at.offset, size_of::<F>(), group..group + 1);
    // SAFETY: the caller owes the rows.
    let levels = &unsafe { F::levels::<QUARTER>(at.rows, at.offset, half) };
    for (index, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller owes the column.
        let x = unsafe { activation(at.columns, at.column + index, at.first_group + group) };
        let product = _mm256_cvtepi32_ps(scaled_dot::<F, QUARTER>(levels, words, &x));
        *sum = _mm256_fmadd_ps(_mm256_mul_ps(at.factors.scale, x.scale()), product, *sum);
        if F::MINIMUM {
            // Small integers: exact in f32.
            let [low, high] = x.group.half_sums().map(|sum| _mm256_set1_ps(sum as f32));
            let minimum = _mm256_mul_ps(unsigned(&minimums[2 * group]), low);
            let minimum = _mm256_fmadd_ps(unsigned(&minimums[2 * group + 1]), high, minimum);
            *sum = _mm256_fnmadd_ps(_mm256_mul_ps(at.factors.minimum, x.scale()), minimum, *sum);
        }
    }
}

/// `g0 * (i0 - offset * s0) + g1 * (i1 - offset * s1)` of each row. The offset is taken off pair by pair, which leaves
/// 16-bit sums of magnitude at most 2 * 63 * 127, and the group scales enter as the factors of the 16-bit multiply-add
/// that widens them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled_dot<F: Halved, const QUARTER: usize>(
    levels: &Levels,
    words: &[__m256i; 4],
    x: &Activation<'_>,
) -> __m256i {
    let pick = |index: usize| _mm256_set1_epi16(((2 * index + 1) << 8 | (2 * index)) as i16);
    let (low_scale, high_scale) = (pick(2 * QUARTER), pick(2 * QUARTER + 1));
    let offset = _mm256_set1_epi8(F::OFFSET);
    let low_offset = _mm256_maddubs_epi16(offset, x.low);
    let high_offset = _mm256_maddubs_epi16(offset, x.high);
    let mut sums = levels.low;
    for (pair, sum) in sums.iter_mut().enumerate() {
        let mut low = _mm256_maddubs_epi16(levels.low[pair], x.low);
        let mut high = _mm256_maddubs_epi16(levels.high[pair], x.high);
        if F::OFFSET != 0 {
            low = _mm256_sub_epi16(low, low_offset);
            high = _mm256_sub_epi16(high, high_offset);
        }
        *sum = _mm256_add_epi32(
            _mm256_madd_epi16(low, _mm256_shuffle_epi8(words[pair], low_scale)),
            _mm256_madd_epi16(high, _mm256_shuffle_epi8(words[pair], high_scale)),
        );
    }
    rows_in_lanes(sums)
}

/// Unsigned bytes as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unsigned(bytes: &[u8; 8]) -> __m256 {
    // SAFETY: eight bytes are readable.
    let bytes = unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
}

/// Signed bytes as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn signed(bytes: &[u8; 8]) -> __m256 {
    // SAFETY: eight bytes are readable.
    let bytes = unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
}

/// Turns sixteen bytes of each row, as [`all_rows`] loads them, into one byte of all rows together.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn transpose([a, b, c, d]: [__m256i; 4]) -> [[u8; 8]; 16] {
    // Rows p, p + 1, p + 2, p + 3 side by side: one word of four rows for each byte index, within each 128-bit lane.
    let (ab_low, ab_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
    let words = [
        _mm256_unpacklo_epi16(ab_low, cd_low),
        _mm256_unpackhi_epi16(ab_low, cd_low),
        _mm256_unpacklo_epi16(ab_high, cd_high),
        _mm256_unpackhi_epi16(ab_high, cd_high),
    ];
    // The words of the two lanes that belong to one byte index, next to each other.
    let lanes = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut bytes = [[0u8; 8]; 16];
    for (words, bytes) in words.into_iter().zip(bytes.as_chunks_mut::<4>().0) {
        // SAFETY: four times eight bytes.
        unsafe {
            _mm256_storeu_si256(
                bytes.as_mut_ptr().cast(),
                _mm256_permutevar8x32_epi32(words, lanes),
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn minimum_factors(rows: &Rows, offset: usize) -> Factors {
    // SAFETY: the caller owes the bytes.
    let heads = unsafe { all_rows(rows, offset) };
    // See `Groups::unpack`: after the two f16 come three words, here S, M and L. The words that are made of them hold
    // four scales (S), four more (L, with the top of S), four minimums (M), four more (L shifted, with the top of M).
    let places = _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4);
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let low_mask = _mm256_setr_epi32(six, four, six, four, six, four, six, four);
    let top_mask = _mm256_setr_epi32(0, two, 0, two, 0, two, 0, two);
    let mut bytes = heads;
    for bytes in &mut bytes {
        let low = _mm256_shuffle_epi32::<0b11_10_11_01>(*bytes);
        let low = _mm256_and_si256(_mm256_srlv_epi32(low, places), low_mask);
        let top = _mm256_srli_epi32::<2>(_mm256_shuffle_epi32::<0b10_10_01_01>(*bytes));
        *bytes = _mm256_or_si256(low, _mm256_and_si256(top, top_mask));
    }
    let (scale, minimum) = split_halves(first_words(heads));
    Factors {
        scale,
        minimum,
        bytes,
    }
}

/// `bytes` shifted left, or right if negative; bits cross from byte to byte. The match is decided when `left` is known.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn shifted(bytes: __m256i, left: i32) -> __m256i {
    match left {
        0 => bytes,
        1 => _mm256_slli_epi16::<1>(bytes),
        2 => _mm256_slli_epi16::<2>(bytes),
        3 => _mm256_slli_epi16::<3>(bytes),
        4 => _mm256_slli_epi16::<4>(bytes),
        -1 => _mm256_srli_epi16::<1>(bytes),
        -2 => _mm256_srli_epi16::<2>(bytes),
        -3 => _mm256_srli_epi16::<3>(bytes),
        -4 => _mm256_srli_epi16::<4>(bytes),
        -5 => _mm256_srli_epi16::<5>(bytes),
        -6 => _mm256_srli_epi16::<6>(bytes),
        _ => unreachable!("no level is that far up"),
    }
}

/// Levels from 32 bytes at `offset` of each row, shifted down by `down`.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn masked(rows: &Rows, offset: usize, down: i32, mask: i8) -> Levels {
    let mask = _mm256_set1_epi8(mask);
    let one = |bytes| _mm256_and_si256(shifted(bytes, -down), mask);
    // SAFETY: the caller owes the bytes.
    let (low, high) = unsafe { (all_rows(rows, offset), all_rows(rows, offset + 16)) };
    Levels {
        low: [one(low[0]), one(low[1]), one(low[2]), one(low[3])],
        high: [one(high[0]), one(high[1]), one(high[2]), one(high[3])],
    }
}

/// Adds higher bits to levels.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn joined(a: Levels, b: Levels) -> Levels {
    let low = |pair: usize| _mm256_or_si256(a.low[pair], b.low[pair]);
    let high = |pair: usize| _mm256_or_si256(a.high[pair], b.high[pair]);
    Levels {
        low: [low(0), low(1), low(2), low(3)],
        high: [high(0), high(1), high(2), high(3)],
    }
}

/// The bit of quarter `quarter` of half `half` in 32 bytes at `offset` of each row that hold one bit for each group of
/// 32, moved to `bit`.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn one_bit(rows: &Rows, offset: usize, (half, quarter): (usize, i32), bit: i32) -> Levels {
    // SAFETY: the caller owes the bytes.
    unsafe {
        if half == 0 {
            masked(rows, offset, quarter - bit, 1 << bit)
        } else {
            masked(rows, offset, quarter + 4 - bit, 1 << bit)
        }
    }
}

impl Grouped for Q4K {
    const SIGNED: bool = false;
}

impl SuperBlock for Q4K {
    const OFFSET: i8 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: passed on.
        unsafe { minimum_factors(rows, offset) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels {
        let at = offset + 16 + half * 64 + QUARTER / 2 * 32;
        // SAFETY: within the block that the caller owes.
        unsafe { masked(rows, at, QUARTER as i32 % 2 * 4, 15) }
    }
}

impl Grouped for Q5K {
    const SIGNED: bool = false;
}

impl SuperBlock for Q5K {
    const OFFSET: i8 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: passed on.
        unsafe { minimum_factors(rows, offset) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels {
        let (at, quarter) = (offset + 48 + half * 64 + QUARTER / 2 * 32, QUARTER as i32);
        // SAFETY: within the block that the caller owes.
        unsafe {
            let low = masked(rows, at, quarter % 2 * 4, 15);
            joined(low, one_bit(rows, offset + 16, (half, quarter), 4))
        }
    }
}

impl Halved for Q6K {}

impl SuperBlock for Q6K {
    const OFFSET: i8 = 32;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // SAFETY: within the block that the caller owes.
        unsafe {
            Factors {
                scale: halves(rows, offset + 208),
                minimum: _mm256_setzero_ps(),
                bytes: all_rows(rows, offset + 192),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels {
        let quarter = QUARTER as i32;
        // SAFETY: within the block that the caller owes.
        unsafe {
            let low = masked(
                rows,
                offset + half * 64 + QUARTER % 2 * 32,
                quarter / 2 * 4,
                15,
            );
            let high = masked(rows, offset + 128 + half * 32, 2 * quarter - 4, 48);
            joined(low, high)
        }
    }
}

impl Halved for Q3K {}

impl SuperBlock for Q3K {
    const OFFSET: i8 = 4;
    const MINIMUM: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn factors(rows: &Rows, offset: usize) -> Factors {
        // The last sixteen bytes of the block: two that are not wanted, the three words of the scales, the f16.
        // SAFETY: within the block that the caller owes.
        let (tails, scale) = unsafe { (all_rows(rows, offset + 94), halves(rows, offset + 108)) };
        // See `Q3K::scales`: the first two words, once as they are and once shifted, have the low bits of all groups;
        // the third word, shifted by 0, 2, 4 and 6, has their high bits.
        let (first, second) = (0x0504_0302, 0x0908_0706);
        let low_bytes =
            _mm256_setr_epi32(first, second, first, second, first, second, first, second);
        let high_bytes = _mm256_set1_epi32(0x0d0c_0b0a);
        let low_places = _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4);
        let high_places = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
        let (four_bits, two_bits) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
        let mut scales = tails;
        for scales in &mut scales {
            let low = _mm256_srlv_epi32(_mm256_shuffle_epi8(*scales, low_bytes), low_places);
            let high = _mm256_srlv_epi32(_mm256_shuffle_epi8(*scales, high_bytes), high_places);
            let high = _mm256_and_si256(_mm256_slli_epi16::<4>(high), two_bits);
            let joined = _mm256_or_si256(_mm256_and_si256(low, four_bits), high);
            *scales = _mm256_sub_epi8(joined, _mm256_set1_epi8(32));
        }
        Factors {
            scale,
            minimum: _mm256_setzero_ps(),
            bytes: scales,
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels {
        let quarter = QUARTER as i32;
        // SAFETY: within the block that the caller owes.
        unsafe {
            let low = masked(rows, offset + 32 + half * 32, 2 * quarter, 3);
            joined(low, one_bit(rows, offset, (half, quarter), 2))
        }
    }
}

impl Halved for Q2K {}

impl SuperBlock for Q2K {
    const OFFSET: i8 = 0;
    const MINIMUM: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
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
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels<const QUARTER: usize>(rows: &Rows, offset: usize, half: usize) -> Levels {
        // SAFETY: within the block that the caller owes.
        unsafe { masked(rows, offset + 16 + half * 32, 2 * QUARTER as i32, 3) }
    }
}
