//! Products of quantized weights, see [`crate::op::matmul`].
//!
//! Sixteen rows are computed together, one per lane of the accumulators. A vector of levels holds 16 levels of each
//! of the rows `q`, `q + 4`, `q + 8` and `q + 12`, one row per 128-bit lane; two rounds of unpacking and adding then
//! put the sums in row order. `vpdpbusd` takes unsigned weights and does not saturate, so signed levels are shifted
//! up by 128 and the shift is taken off through the sum of the activations.

use super::super::avx2::matmul::{group_scales, transpose};
use super::super::{avx2, blocked_kernel, column_span};
use crate::Format;
use crate::activation::{Columns, GROUP};
use crate::arch::scalar;
use crate::op::matmul::{Kernel, Product};
use core::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_insert_epi16,
    _mm_insert_epi32, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm_setzero_si128,
    _mm_unpacklo_epi64, _mm256_set_m128i, _mm512_add_epi32, _mm512_and_si512,
    _mm512_broadcast_i32x4, _mm512_castsi128_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi16,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_inserti32x4, _mm512_mul_ps, _mm512_mullo_epi32,
    _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_srli_epi32,
    _mm512_storeu_ps, _mm512_sub_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

/// Rows computed together.
const ROWS: usize = 16;
/// Columns computed together: their accumulators and one group's levels fit the 32 registers.
const COLUMNS: usize = 8;

/// The kernel of a format.
pub(crate) const fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => avx2::float::f32,
        Format::F16 => avx2::float::f16,
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
        blocked_kernel!(
            "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
            $name,
            $block,
            $format
        );
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn store<const M: usize>(
    product: &Product<'_>,
    first: usize,
    column: usize,
    sums: &[__m512; M],
) {
    let row_count = (product.row_count - first).min(ROWS);
    for (index, &sum) in sums.iter().enumerate() {
        // SAFETY: the caller owes the output of these rows and columns; the array takes a whole vector.
        unsafe {
            let output = product
                .output
                .add((column + index) * product.stride + first);
            if row_count == ROWS {
                _mm512_storeu_ps(output, sum);
            } else {
                let mut lanes = [0.0f32; ROWS];
                _mm512_storeu_ps(lanes.as_mut_ptr(), sum);
                core::ptr::copy_nonoverlapping(lanes.as_ptr(), output, row_count);
            }
        }
    }
}

/// One group's levels of sixteen rows: elements 0..16 and 16..32, four vectors of four rows each.
#[derive(Clone, Copy)]
struct Levels {
    low: [__m512i; 4],
    high: [__m512i; 4],
}

/// One group of one column.
#[derive(Clone, Copy)]
struct Activation {
    low: __m512i,
    high: __m512i,
    scale: __m512,
    sums: [i32; 2],
}

/// Group `group` of column `column`.
///
/// # Safety
/// The column must have it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn activation(columns: &Columns<'_>, column: usize, group: usize) -> Activation {
    let at = column * (columns.k / GROUP) + group;
    // SAFETY: `at` is a group of the column, with 32 levels, one scale and two sums.
    unsafe {
        let levels = columns.quantized.levels.as_ptr().add(at * GROUP);
        let sums = columns.quantized.sums.as_ptr().add(2 * at);
        Activation {
            low: _mm512_broadcast_i32x4(_mm_loadu_si128(levels.cast())),
            high: _mm512_broadcast_i32x4(_mm_loadu_si128(levels.add(16).cast())),
            scale: _mm512_set1_ps(*columns.quantized.scales.as_ptr().add(at)),
            sums: [*sums, *sums.add(1)],
        }
    }
}

/// Sixteen bytes at `offset` of rows `quad`, `quad + 4`, `quad + 8` and `quad + 12`.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn four_rows(rows: &Rows, quad: usize, offset: usize) -> __m512i {
    // SAFETY: the caller owes the bytes.
    unsafe {
        let row = |index: usize| -> __m128i {
            _mm_loadu_si128(rows[quad + 4 * index].add(offset).cast())
        };
        let all = _mm512_castsi128_si512(row(0));
        let all = _mm512_inserti32x4::<1>(all, row(1));
        let all = _mm512_inserti32x4::<2>(all, row(2));
        _mm512_inserti32x4::<3>(all, row(3))
    }
}

/// The 32 4-bit levels in 16 bytes at `offset`: low halves first.
///
/// # Safety
/// The bytes must be readable in every row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn nibbles(rows: &Rows, offset: usize) -> Levels {
    let mask = _mm512_set1_epi8(15);
    let mut levels = Levels {
        low: [mask; 4],
        high: [mask; 4],
    };
    for quad in 0..4 {
        // SAFETY: the caller owes the bytes.
        let bytes = unsafe { four_rows(rows, quad, offset) };
        levels.low[quad] = _mm512_and_si512(bytes, mask);
        levels.high[quad] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
    }
    levels
}

/// Adds four vectors of partial sums of four rows each into one sum per row, rows in lane order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn rows_in_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// Integer dot products of unsigned levels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dot(levels: &Levels, x: &Activation) -> __m512i {
    rows_in_lanes(core::array::from_fn(|quad| {
        let low = _mm512_dpbusd_epi32(_mm512_setzero_si512(), levels.low[quad], x.low);
        _mm512_dpbusd_epi32(low, levels.high[quad], x.high)
    }))
}

/// Fetches the part of the next sixteen rows that lies as far into them as `offset` into these, see
/// [`super::super::avx2::matmul`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn prefetch(rows: &Rows, offset: usize, block_bytes: usize) {
    let stride = (rows[1] as usize).wrapping_sub(rows[0] as usize);
    let next = rows[0].wrapping_add(ROWS.wrapping_mul(stride.wrapping_add(offset)));
    for line in (0..ROWS * block_bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing that the program can observe and faults on no address.
        #[allow(unused_unsafe, reason = "safe only in later compilers")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
        }
    }
}

/// An f16 at `offset` of each row, as floats.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn halves(rows: &Rows, offset: usize) -> __m512 {
    // SAFETY: the caller owes the bytes.
    let at =
        |row: usize| i32::from(unsafe { rows[row].add(offset).cast::<u16>().read_unaligned() });
    let eight = |first: usize| {
        let mut all = _mm_setzero_si128();
        all = _mm_insert_epi16::<0>(all, at(first));
        all = _mm_insert_epi16::<1>(all, at(first + 1));
        all = _mm_insert_epi16::<2>(all, at(first + 2));
        all = _mm_insert_epi16::<3>(all, at(first + 3));
        all = _mm_insert_epi16::<4>(all, at(first + 4));
        all = _mm_insert_epi16::<5>(all, at(first + 5));
        all = _mm_insert_epi16::<6>(all, at(first + 6));
        _mm_insert_epi16::<7>(all, at(first + 7))
    };
    _mm512_cvtph_ps(_mm256_set_m128i(eight(8), eight(0)))
}

/// Two adjacent f16 at `offset` of each row, as floats: all the first, all the second.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn half_pairs(rows: &Rows, offset: usize) -> (__m512, __m512) {
    // SAFETY: the caller owes the bytes.
    let at = |row: usize| unsafe { rows[row].add(offset).cast::<i32>().read_unaligned() };
    let four = |first: usize| {
        let mut pairs = _mm_cvtsi32_si128(at(first));
        pairs = _mm_insert_epi32::<1>(pairs, at(first + 1));
        pairs = _mm_insert_epi32::<2>(pairs, at(first + 2));
        _mm_insert_epi32::<3>(pairs, at(first + 3))
    };
    let pairs = _mm512_castsi128_si512(four(0));
    let pairs = _mm512_inserti32x4::<1>(pairs, four(4));
    let pairs = _mm512_inserti32x4::<2>(pairs, four(8));
    let pairs = _mm512_inserti32x4::<3>(pairs, four(12));
    let first: __m256i = _mm512_cvtepi32_epi16(pairs);
    let second: __m256i = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs));
    (_mm512_cvtph_ps(first), _mm512_cvtph_ps(second))
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q4_0_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    let mut sums = [_mm512_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * Format::Q4_0.block_bytes();
        prefetch(&rows, offset, Format::Q4_0.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, and `group` a group of every column.
        unsafe {
            let scale = halves(&rows, offset);
            let levels = nibbles(&rows, offset + 2);
            for (index, sum) in sums.iter_mut().enumerate() {
                let x = activation(columns, column + index, group);
                let shift = _mm512_set1_epi32(8 * (x.sums[0] + x.sums[1]));
                let product = _mm512_sub_epi32(dot(&levels, &x), shift);
                *sum = _mm512_fmadd_ps(
                    _mm512_mul_ps(scale, x.scale),
                    _mm512_cvtepi32_ps(product),
                    *sum,
                );
            }
        }
    }
    sums
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q4_1_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    let mut sums = [_mm512_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * Format::Q4_1.block_bytes();
        prefetch(&rows, offset, Format::Q4_1.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, and `group` a group of every column.
        unsafe {
            let (scale, minimum) = half_pairs(&rows, offset);
            let levels = nibbles(&rows, offset + 4);
            for (index, sum) in sums.iter_mut().enumerate() {
                let x = activation(columns, column + index, group);
                let product = _mm512_cvtepi32_ps(dot(&levels, &x));
                let x_sum = _mm512_set1_ps((x.sums[0] + x.sums[1]) as f32);
                *sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, x.scale), product, *sum);
                *sum = _mm512_fmadd_ps(_mm512_mul_ps(minimum, x.scale), x_sum, *sum);
            }
        }
    }
    sums
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q8_0_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    // Flipping the sign bit adds 128 and makes the level unsigned.
    let flip = _mm512_set1_epi8(i8::MIN);
    let mut sums = [_mm512_setzero_ps(); M];
    for group in 0..blocks {
        let offset = group * Format::Q8_0.block_bytes();
        prefetch(&rows, offset, Format::Q8_0.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, and `group` a group of every column.
        unsafe {
            let scale = halves(&rows, offset);
            let part = |at: usize| -> [__m512i; 4] {
                core::array::from_fn(|quad| {
                    _mm512_xor_si512(four_rows(&rows, quad, offset + at), flip)
                })
            };
            let levels = Levels {
                low: part(2),
                high: part(18),
            };
            for (index, sum) in sums.iter_mut().enumerate() {
                let x = activation(columns, column + index, group);
                let shift = _mm512_set1_epi32(128 * (x.sums[0] + x.sums[1]));
                let product = _mm512_sub_epi32(dot(&levels, &x), shift);
                *sum = _mm512_fmadd_ps(
                    _mm512_mul_ps(scale, x.scale),
                    _mm512_cvtepi32_ps(product),
                    *sum,
                );
            }
        }
    }
    sums
}

/// Eight bytes of `first` and eight of `second` at group `group`: one byte per row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn sixteen_bytes(first: &[u8; 64], second: &[u8; 64], group: usize) -> __m128i {
    let at = group * 8..group * 8 + 8;
    // SAFETY: both ranges have eight bytes.
    unsafe {
        _mm_unpacklo_epi64(
            _mm_loadl_epi64(first[at.clone()].as_ptr().cast()),
            _mm_loadl_epi64(second[at].as_ptr().cast()),
        )
    }
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q4_k_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    let mask = _mm512_set1_epi8(15);
    let [first, second]: [[*const u8; 8]; 2] = [
        core::array::from_fn(|i| rows[i]),
        core::array::from_fn(|i| rows[i + 8]),
    ];
    let mut sums = [_mm512_setzero_ps(); M];
    for block in 0..blocks {
        let offset = block * Format::Q4K.block_bytes();
        prefetch(&rows, offset, Format::Q4K.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
        unsafe {
            let (scale, minimum_scale) = half_pairs(&rows, offset);
            let (first, second) = (group_scales(&first, offset), group_scales(&second, offset));
            for group in 0..8 {
                let at = offset + 16 + group / 2 * 32;
                let part = |part: usize| -> [__m512i; 4] {
                    core::array::from_fn(|quad| {
                        let bytes = four_rows(&rows, quad, at + part * 16);
                        let shifted = if group % 2 == 0 {
                            bytes
                        } else {
                            _mm512_srli_epi16::<4>(bytes)
                        };
                        _mm512_and_si512(shifted, mask)
                    })
                };
                let levels = Levels {
                    low: part(0),
                    high: part(1),
                };
                let scales = sixteen_bytes(&first.scales, &second.scales, group);
                let minimums = sixteen_bytes(&first.minimums, &second.minimums, group);
                let group_scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(scales));
                let group_minimum = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(minimums));
                for (index, sum) in sums.iter_mut().enumerate() {
                    let x = activation(columns, column + index, block * 8 + group);
                    // Both integer products stay below 2^24, so forming them in f32 is exact.
                    let product = _mm512_mul_ps(group_scale, _mm512_cvtepi32_ps(dot(&levels, &x)));
                    let x_sum = _mm512_set1_ps((x.sums[0] + x.sums[1]) as f32);
                    let minimum = _mm512_mul_ps(group_minimum, x_sum);
                    *sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, x.scale), product, *sum);
                    *sum = _mm512_fnmadd_ps(_mm512_mul_ps(minimum_scale, x.scale), minimum, *sum);
                }
            }
        }
    }
    sums
}

/// # Safety
/// The rows must have `blocks` blocks, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q6_k_block<const M: usize>(
    rows: Rows,
    blocks: usize,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    let mut sums = [_mm512_setzero_ps(); M];
    for block in 0..blocks {
        let offset = block * Format::Q6K.block_bytes();
        prefetch(&rows, offset, Format::Q6K.block_bytes());
        // SAFETY: `offset` is the start of a block of every row, whose eight groups every column has.
        unsafe {
            let scale = halves(&rows, offset + 208);
            for half in 0..2 {
                // The eight group scales of this half, one byte per row.
                let eight = |first: usize| -> [u8; 64] {
                    transpose(core::array::from_fn(|row| {
                        rows[first + row]
                            .add(offset + 192 + half * 8)
                            .cast::<[u8; 8]>()
                            .read_unaligned()
                    }))
                };
                let (first, second) = (eight(0), eight(8));
                for quarter in 0..4 {
                    let levels = q6_k_levels(&rows, offset, half, quarter);
                    let scales: [__m512i; 2] = core::array::from_fn(|part| {
                        _mm512_cvtepi8_epi32(sixteen_bytes(&first, &second, quarter * 2 + part))
                    });
                    for (index, sum) in sums.iter_mut().enumerate() {
                        let x = activation(columns, column + index, block * 8 + half * 4 + quarter);
                        let product = dot_q6_k(&levels, scales, &x);
                        *sum = _mm512_fmadd_ps(
                            _mm512_mul_ps(scale, x.scale),
                            _mm512_cvtepi32_ps(product),
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q6_k_levels(rows: &Rows, offset: usize, half: usize, quarter: usize) -> Levels {
    let (four_bits, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(3));
    let part = |part: usize| -> [__m512i; 4] {
        core::array::from_fn(|quad| {
            // SAFETY: within the 128 bytes of low and the 64 bytes of high bits.
            let (low, high) = unsafe {
                (
                    four_rows(
                        rows,
                        quad,
                        offset + half * 64 + quarter % 2 * 32 + part * 16,
                    ),
                    four_rows(rows, quad, offset + 128 + half * 32 + part * 16),
                )
            };
            let low = if quarter < 2 {
                low
            } else {
                _mm512_srli_epi16::<4>(low)
            };
            let high = match quarter {
                0 => high,
                1 => _mm512_srli_epi16::<2>(high),
                2 => _mm512_srli_epi16::<4>(high),
                _ => _mm512_srli_epi16::<6>(high),
            };
            let high = _mm512_slli_epi16::<4>(_mm512_and_si512(high, two_bits));
            _mm512_or_si512(_mm512_and_si512(low, four_bits), high)
        })
    };
    Levels {
        low: part(0),
        high: part(1),
    }
}

/// `g0 * (i0 - 32 s0) + g1 * (i1 - 32 s1)` of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dot_q6_k(levels: &Levels, scales: [__m512i; 2], x: &Activation) -> __m512i {
    let part = |levels: &[__m512i; 4], x_levels: __m512i, part: usize| {
        let zero = _mm512_setzero_si512();
        let sums = rows_in_lanes(core::array::from_fn(|quad| {
            _mm512_dpbusd_epi32(zero, levels[quad], x_levels)
        }));
        let shifted = _mm512_sub_epi32(sums, _mm512_set1_epi32(32 * x.sums[part]));
        _mm512_mullo_epi32(scales[part], shifted)
    };
    _mm512_add_epi32(part(&levels.low, x.low, 0), part(&levels.high, x.high, 1))
}
