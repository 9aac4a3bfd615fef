//! Products of quantized weights, see [`crate::op::matmul`].
//!
//! Eight rows are computed together, one per lane of the accumulators, so that the exact integer sums of eight rows
//! meet in one vector before the one rounding per group. A vector of levels holds 16 levels of row `p` in its low
//! and of row `p + 4` in its high half; two levels of pairwise addition then put the rows in lane order.

use super::super::{blocked_kernel, column_span};
use crate::Format;
use crate::activation::{Columns, GROUP};
use crate::arch::scalar;
use crate::block::Q4K;
use crate::op::matmul::{Kernel, Product};
use core::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_cvtsi64_si128, _mm_insert_epi16,
    _mm_insert_epi32, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm_set_epi64x,
    _mm_setzero_si128, _mm_storeu_si128, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpacklo_epi8,
    _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_castsi128_si256, _mm256_cvtepi8_epi16,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps,
    _mm256_hadd_epi32, _mm256_inserti128_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_shuffle_ps, _mm256_sign_epi8,
    _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_epi16, _mm256_sub_epi32,
};

/// Rows computed together.
const ROWS: usize = 8;
/// Columns computed together: their accumulators and one group's levels fit the sixteen registers.
const COLUMNS: usize = 4;

/// The kernel of a format.
pub(crate) const fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => super::float::f32,
        Format::F16 => super::float::f16,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q8_0 => q8_0,
        Format::Q4K => q4_k,
        Format::Q6K => q6_k,
        _ => scalar::matmul::kernel(format),
    }
}

type Rows = [*const u8; ROWS];

/// [`super::super::blocked_kernel`] for this instruction set.
macro_rules! kernel {
    ($name:ident, $block:ident, $format:ident) => {
        blocked_kernel!("avx2,fma,f16c", $name, $block, $format);
    };
}

kernel!(q4_0, q4_0_block, Q4_0);
kernel!(q4_1, q4_1_block, Q4_1);
kernel!(q8_0, q8_0_block, Q8_0);
kernel!(q4_k, q4_k_block, Q4K);
kernel!(q6_k, q6_k_block, Q6K);

/// Stores the accumulators of rows `first..` (as many as exist) of columns `column..`.
///
/// # Safety
/// See [`Kernel`]; the rows and columns must be the product's.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store<const M: usize>(
    product: &Product<'_>,
    first: usize,
    column: usize,
    sums: &[__m256; M],
) {
    let row_count = (product.row_count - first).min(ROWS);
    for (index, &sum) in sums.iter().enumerate() {
        // SAFETY: the caller owes the output of these rows and columns; the array takes a whole vector.
        unsafe {
            let output = product
                .output
                .add((column + index) * product.stride + first);
            if row_count == ROWS {
                _mm256_storeu_ps(output, sum);
            } else {
                let mut lanes = [0.0f32; ROWS];
                _mm256_storeu_ps(lanes.as_mut_ptr(), sum);
                core::ptr::copy_nonoverlapping(lanes.as_ptr(), output, row_count);
            }
        }
    }
}

/// One group's levels of eight rows: elements 0..16 and 16..32, four vectors of two rows each.
#[derive(Clone, Copy)]
struct Levels {
    low: [__m256i; 4],
    high: [__m256i; 4],
}

/// One group of one column.
#[derive(Clone, Copy)]
struct Activation {
    low: __m256i,
    high: __m256i,
    scale: __m256,
    sum: i32,
}

/// Group `group` of column `column`.
///
/// # Safety
/// The column must have it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn activation(columns: &Columns<'_>, column: usize, group: usize) -> Activation {
    let at = column * (columns.k / GROUP) + group;
    // SAFETY: `at` is a group of the column, with 32 levels, one scale and two sums.
    unsafe {
        let levels = columns.quantized.levels.as_ptr().add(at * GROUP);
        let sums = columns.quantized.sums.as_ptr().add(2 * at);
        Activation {
            low: _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.cast())),
            high: _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.add(16).cast())),
            scale: _mm256_set1_ps(*columns.quantized.scales.as_ptr().add(at)),
            sum: *sums + *sums.add(1),
        }
    }
}

/// Sixteen bytes at `offset` of rows `pair` (low half) and `pair + 4` (high half).
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn two_rows(rows: &Rows, pair: usize, offset: usize) -> __m256i {
    // SAFETY: the caller owes the bytes.
    unsafe {
        let low = _mm_loadu_si128(rows[pair].add(offset).cast());
        let high = _mm_loadu_si128(rows[pair + 4].add(offset).cast());
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    }
}

/// The 32 4-bit levels in 16 bytes at `offset`: low halves first.
///
/// # Safety
/// The bytes must be readable in every row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(rows: &Rows, offset: usize) -> Levels {
    let mask = _mm256_set1_epi8(15);
    let mut levels = Levels {
        low: [mask; 4],
        high: [mask; 4],
    };
    for pair in 0..4 {
        // SAFETY: the caller owes the bytes.
        let bytes = unsafe { two_rows(rows, pair, offset) };
        levels.low[pair] = _mm256_and_si256(bytes, mask);
        levels.high[pair] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
    }
    levels
}

/// Adds four vectors of partial sums of two rows each into one sum per row, rows in lane order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn rows_in_lanes(partial: [__m256i; 4]) -> __m256i {
    let [a, b, c, d] = partial;
    _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d))
}

/// Integer dot products of 4-bit levels: each 16-bit sum is at most 4 * 15 * 127.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_nibbles(levels: &Levels, x: &Activation) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    rows_in_lanes(core::array::from_fn(|pair| {
        let low = _mm256_maddubs_epi16(levels.low[pair], x.low);
        let high = _mm256_maddubs_epi16(levels.high[pair], x.high);
        _mm256_madd_epi16(_mm256_add_epi16(low, high), ones)
    }))
}

/// Fetches the part of the next eight rows that lies as far into them as `offset` into these, a share of
/// `8 * block_bytes`: rows follow each other in memory, so the next ones are read here in one ascending stream, where
/// the processor's own prefetching would have to follow eight.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch(rows: &Rows, offset: usize, block_bytes: usize) {
    let stride = (rows[1] as usize).wrapping_sub(rows[0] as usize);
    let next = rows[0].wrapping_add(ROWS.wrapping_mul(stride.wrapping_add(offset)));
    for line in (0..ROWS * block_bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing that the program can observe and faults on no address.
        #[allow(unused_unsafe, reason = "safe only in later compilers")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
        };
    }
}

/// An f16 at `offset` of each row, as floats.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(rows: &Rows, offset: usize) -> __m256 {
    // SAFETY: the caller owes the bytes.
    let at =
        |row: usize| i32::from(unsafe { rows[row].add(offset).cast::<u16>().read_unaligned() });
    let mut all = _mm_setzero_si128();
    all = _mm_insert_epi16::<0>(all, at(0));
    all = _mm_insert_epi16::<1>(all, at(1));
    all = _mm_insert_epi16::<2>(all, at(2));
    all = _mm_insert_epi16::<3>(all, at(3));
    all = _mm_insert_epi16::<4>(all, at(4));
    all = _mm_insert_epi16::<5>(all, at(5));
    all = _mm_insert_epi16::<6>(all, at(6));
    all = _mm_insert_epi16::<7>(all, at(7));
    _mm256_cvtph_ps(all)
}

/// Two adjacent f16 at `offset` of each row, as floats: all the first, all the second.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_pairs(rows: &Rows, offset: usize) -> (__m256, __m256) {
    // SAFETY: the caller owes the bytes.
    let at = |row: usize| unsafe { rows[row].add(offset).cast::<i32>().read_unaligned() };
    // The shuffles below work within 128-bit halves, hence the order of the rows.
    let four = |rows: [usize; 4]| {
        let mut pairs = _mm_cvtsi32_si128(at(rows[0]));
        pairs = _mm_insert_epi32::<1>(pairs, at(rows[1]));
        pairs = _mm_insert_epi32::<2>(pairs, at(rows[2]));
        pairs = _mm_insert_epi32::<3>(pairs, at(rows[3]));
        _mm256_cvtph_ps(pairs)
    };
    let (a, b) = (four([0, 1, 4, 5]), four([2, 3, 6, 7]));
    (
        _mm256_shuffle_ps::<0b10_00_10_00>(a, b),
        _mm256_shuffle_ps::<0b11_01_11_01>(a, b),
    )
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_0_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * Format::Q4_0.block_bytes();
        prefetch(&rows, offset, Format::Q4_0.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, and `group` a group of every column.
        unsafe {
            let scale = halves(&rows, offset);
            let levels = nibbles(&rows, offset + 2);
            for (index, sum) in sums.iter_mut().enumerate() {
                let x = activation(columns, column + index, group);
                let dot = _mm256_sub_epi32(dot_nibbles(&levels, &x), _mm256_set1_epi32(8 * x.sum));
                *sum =
                    _mm256_fmadd_ps(_mm256_mul_ps(scale, x.scale), _mm256_cvtepi32_ps(dot), *sum);
            }
        }
    }
    sums
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_1_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * Format::Q4_1.block_bytes();
        prefetch(&rows, offset, Format::Q4_1.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, and `group` a group of every column.
        unsafe {
            let (scale, minimum) = half_pairs(&rows, offset);
            let levels = nibbles(&rows, offset + 4);
            for (index, sum) in sums.iter_mut().enumerate() {
                let x = activation(columns, column + index, group);
                let dot = _mm256_cvtepi32_ps(dot_nibbles(&levels, &x));
                *sum = _mm256_fmadd_ps(_mm256_mul_ps(scale, x.scale), dot, *sum);
                *sum = _mm256_fmadd_ps(
                    _mm256_mul_ps(minimum, x.scale),
                    _mm256_set1_ps(x.sum as f32),
                    *sum,
                );
            }
        }
    }
    sums
}

/// Signed levels meet `maddubs`, whose first operand is unsigned, as magnitudes, with their signs moved to the
/// activations; a pair is then at most 2 * 128 * 127 and does not saturate.
///
/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_0_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * Format::Q8_0.block_bytes();
        prefetch(&rows, offset, Format::Q8_0.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, and `group` a group of every column.
        unsafe {
            let scale = halves(&rows, offset);
            let low: [__m256i; 4] = core::array::from_fn(|pair| two_rows(&rows, pair, offset + 2));
            let high: [__m256i; 4] =
                core::array::from_fn(|pair| two_rows(&rows, pair, offset + 18));
            for (index, sum) in sums.iter_mut().enumerate() {
                let x = activation(columns, column + index, group);
                let signed = |level: __m256i, x: __m256i| {
                    let products =
                        _mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(x, level));
                    _mm256_madd_epi16(products, ones)
                };
                let dot = rows_in_lanes(core::array::from_fn(|pair| {
                    _mm256_add_epi32(signed(low[pair], x.low), signed(high[pair], x.high))
                }));
                *sum =
                    _mm256_fmadd_ps(_mm256_mul_ps(scale, x.scale), _mm256_cvtepi32_ps(dot), *sum);
            }
        }
    }
    sums
}

/// The group scales and minimums of eight Q4_K blocks, one group's eight rows together.
pub(in super::super) struct GroupScales {
    pub(in super::super) scales: [u8; 64],
    pub(in super::super) minimums: [u8; 64],
}

/// # Safety
/// A Q4_K block must be readable at `offset` of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn group_scales(rows: &Rows, offset: usize) -> GroupScales {
    // SAFETY: the caller owes a block at each row's offset; blocks have alignment 1.
    let groups = rows.map(|row| unsafe { &*row.add(offset).cast::<Q4K>() }.groups());
    GroupScales {
        scales: transpose(groups.map(|groups| groups.scales)),
        minimums: transpose(groups.map(|groups| groups.minimums)),
    }
}

/// Transposes a matrix of 8 by 8 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn transpose(rows: [[u8; 8]; 8]) -> [u8; 64] {
    let row = |index: usize| _mm_cvtsi64_si128(i64::from_le_bytes(rows[index]));
    let pairs: [__m128i; 4] =
        core::array::from_fn(|index| _mm_unpacklo_epi8(row(2 * index), row(2 * index + 1)));
    let first = [
        _mm_unpacklo_epi16(pairs[0], pairs[1]),
        _mm_unpackhi_epi16(pairs[0], pairs[1]),
    ];
    let second = [
        _mm_unpacklo_epi16(pairs[2], pairs[3]),
        _mm_unpackhi_epi16(pairs[2], pairs[3]),
    ];
    let mut output = [0; 64];
    for half in 0..2 {
        let (low, high) = output[half * 32..half * 32 + 32].split_at_mut(16);
        // SAFETY: both have sixteen bytes.
        unsafe {
            _mm_storeu_si128(
                low.as_mut_ptr().cast(),
                _mm_unpacklo_epi32(first[half], second[half]),
            );
            _mm_storeu_si128(
                high.as_mut_ptr().cast(),
                _mm_unpackhi_epi32(first[half], second[half]),
            );
        }
    }
    output
}

/// Eight bytes as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes_to_floats(bytes: &[u8; 64], group: usize) -> __m256 {
    let eight = &bytes[group * 8..group * 8 + 8];
    // SAFETY: eight bytes are readable.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe {
        _mm_loadl_epi64(eight.as_ptr().cast())
    }))
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_k_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mask = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_ps(); M];
    for block in 0..blocks {
        let offset = block * Format::Q4K.block_bytes();
        prefetch(&rows, offset, Format::Q4K.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
        unsafe {
            let (scale, minimum_scale) = half_pairs(&rows, offset);
            let groups = group_scales(&rows, offset);
            for group in 0..8 {
                let at = offset + 16 + group / 2 * 32;
                let bytes = |half: usize| -> [__m256i; 4] {
                    core::array::from_fn(|pair| {
                        let bytes = two_rows(&rows, pair, at + half * 16);
                        let shifted = if group % 2 == 0 {
                            bytes
                        } else {
                            _mm256_srli_epi16::<4>(bytes)
                        };
                        _mm256_and_si256(shifted, mask)
                    })
                };
                let levels = Levels {
                    low: bytes(0),
                    high: bytes(1),
                };
                let group_scale = bytes_to_floats(&groups.scales, group);
                let group_minimum = bytes_to_floats(&groups.minimums, group);
                for (index, sum) in sums.iter_mut().enumerate() {
                    let x = activation(columns, column + index, block * 8 + group);
                    // Both integer products stay below 2^24, so forming them in f32 is exact.
                    let dot =
                        _mm256_mul_ps(group_scale, _mm256_cvtepi32_ps(dot_nibbles(&levels, &x)));
                    let minimum = _mm256_mul_ps(group_minimum, _mm256_set1_ps(x.sum as f32));
                    *sum = _mm256_fmadd_ps(_mm256_mul_ps(scale, x.scale), dot, *sum);
                    *sum = _mm256_fnmadd_ps(_mm256_mul_ps(minimum_scale, x.scale), minimum, *sum);
                }
            }
        }
    }
    sums
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    for block in 0..blocks {
        let offset = block * Format::Q6K.block_bytes();
        prefetch(&rows, offset, Format::Q6K.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
        unsafe {
            let scale = halves(&rows, offset + 208);
            for half in 0..2 {
                // Eight group scales of each row as 16-bit integers, two rows a vector.
                let scales: [__m256i; 4] = core::array::from_fn(|pair| {
                    let at = offset + 192 + half * 8;
                    let low = rows[pair].add(at).cast::<i64>().read_unaligned();
                    let high = rows[pair + 4].add(at).cast::<i64>().read_unaligned();
                    _mm256_cvtepi8_epi16(_mm_set_epi64x(high, low))
                });
                for quarter in 0..4 {
                    let levels = q6_k_levels(&rows, offset, half, quarter);
                    let pick = |index: usize| {
                        _mm256_set1_epi16(((2 * index + 1) << 8 | (2 * index)) as i16)
                    };
                    let picks = [pick(2 * quarter), pick(2 * quarter + 1)];
                    for (index, sum) in sums.iter_mut().enumerate() {
                        let x = activation(columns, column + index, block * 8 + half * 4 + quarter);
                        let dot = dot_q6_k(&levels, &scales, picks, &x);
                        *sum = _mm256_fmadd_ps(
                            _mm256_mul_ps(scale, x.scale),
                            _mm256_cvtepi32_ps(dot),
                            *sum,
                        );
                    }
                }
            }
        }
    }
    sums
}

/// The 32 levels of quarter `quarter` of half `half` of a block, see [`crate::block::Q6K::level`].
///
/// # Safety
/// A block must be readable at `offset` of every row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k_levels(rows: &Rows, offset: usize, half: usize, quarter: usize) -> Levels {
    let (four_bits, two_bits) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
    let part = |part: usize| -> [__m256i; 4] {
        core::array::from_fn(|pair| {
            // SAFETY: within the 128 bytes of low and the 64 bytes of high bits.
            let (low, high) = unsafe {
                (
                    two_rows(
                        rows,
                        pair,
                        offset + half * 64 + quarter % 2 * 32 + part * 16,
                    ),
                    two_rows(rows, pair, offset + 128 + half * 32 + part * 16),
                )
            };
            let low = if quarter < 2 {
                low
            } else {
                _mm256_srli_epi16::<4>(low)
            };
            let high = match quarter {
                0 => high,
                1 => _mm256_srli_epi16::<2>(high),
                2 => _mm256_srli_epi16::<4>(high),
                _ => _mm256_srli_epi16::<6>(high),
            };
            let high = _mm256_slli_epi16::<4>(_mm256_and_si256(high, two_bits));
            _mm256_or_si256(_mm256_and_si256(low, four_bits), high)
        })
    };
    Levels {
        low: part(0),
        high: part(1),
    }
}

/// `g0 * (i0 - 32 s0) + g1 * (i1 - 32 s1)` of each row. The offset of 32 is taken off pair by pair, which leaves
/// 16-bit sums of magnitude at most 2 * 32 * 127, and the group scales enter as the factors of the 16-bit
/// multiply-add that widens them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q6_k(
    levels: &Levels,
    scales: &[__m256i; 4],
    picks: [__m256i; 2],
    x: &Activation,
) -> __m256i {
    let offset = _mm256_set1_epi8(32);
    let (low_offset, high_offset) = (
        _mm256_maddubs_epi16(offset, x.low),
        _mm256_maddubs_epi16(offset, x.high),
    );
    rows_in_lanes(core::array::from_fn(|pair| {
        let low = _mm256_sub_epi16(_mm256_maddubs_epi16(levels.low[pair], x.low), low_offset);
        let high = _mm256_sub_epi16(_mm256_maddubs_epi16(levels.high[pair], x.high), high_offset);
        _mm256_add_epi32(
            _mm256_madd_epi16(low, _mm256_shuffle_epi8(scales[pair], picks[0])),
            _mm256_madd_epi16(high, _mm256_shuffle_epi8(scales[pair], picks[1])),
        )
    }))
}
