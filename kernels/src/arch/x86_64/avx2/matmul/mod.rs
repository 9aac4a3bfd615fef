//! Products of quantized weights, see [`crate::op::matmul`].
//!
//! Eight rows are computed together, one per lane of the accumulators, so that the exact integer sums of eight rows
//! meet in one vector before the one rounding per group. A vector of levels holds 16 levels of row `p` in its low
//! and of row `p + 4` in its high half; two levels of pairwise addition then put the rows in lane order.

mod float;
mod k_quants;
mod legacy;
mod panel;
mod tables;

use super::super::{PREFETCH_BYTES_MIN, blocked_kernel, column_span};
use super::packed::Dot;
use crate::Format;
use crate::activation::{Columns, GROUP, Group};
use crate::block::{IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{Kernel, Product};
use core::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _MM_HINT_T1, _mm_cvtsi32_si128, _mm_insert_epi16,
    _mm_insert_epi32, _mm_loadu_si128, _mm_prefetch, _mm_setzero_si128, _mm256_abs_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_castsi128_si256, _mm256_cvtph_ps, _mm256_hadd_epi32, _mm256_inserti128_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_ps,
    _mm256_shuffle_ps, _mm256_sign_epi8, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};
use core::ops::Range;
use k_quants::{Grouped, Halved, grouped_block, halved_block};
use legacy::{Single, single_block};

/// Eight rows up to this long fit L1 twice, with room for activations.
const L1_ROWS_BYTES_MAX: usize = 12 * 1024;
/// Rows computed together.
const ROWS: usize = 8;
/// Columns computed together: their accumulators and one group's levels fit the sixteen registers.
const COLUMNS: usize = 4;

/// The kernel of a format; where columns are many, it multiplies with `D`.
pub(crate) const fn kernel<D: Dot>(format: Format) -> Kernel {
    match format {
        Format::F32 => float::f32,
        Format::F16 => float::f16,
        Format::BF16 => float::bf16,
        Format::Q4_0 => panel::product::<Q4_0, D>,
        Format::Q4_1 => panel::product::<Q4_1, D>,
        Format::Q5_0 => panel::product::<Q5_0, D>,
        Format::Q5_1 => panel::product::<Q5_1, D>,
        Format::Q8_0 => panel::product::<Q8_0, D>,
        Format::Q2K => halved::<Q2K>,
        Format::Q3K => halved::<Q3K>,
        Format::Q4K => panel::product::<Q4K, D>,
        Format::Q5K => panel::product::<Q5K, D>,
        Format::Q6K => panel::product::<Q6K, D>,
        Format::IQ4NL => single::<IQ4NL>,
        Format::IQ4XS => grouped::<IQ4XS>,
        Format::MXFP4 => single::<MXFP4>,
    }
}

type Rows = [*const u8; ROWS];

/// [`super::super::blocked_kernel`] for this instruction set.
macro_rules! kernel {
    ($name:ident, $family:ident, $block:ident) => {
        blocked_kernel!("avx2,fma,f16c", $name, $family, $block);
    };
}

kernel!(single, Single, single_block);
kernel!(grouped, Grouped, grouped_block);
kernel!(halved, Halved, halved_block);

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
struct Activation<'a> {
    low: __m256i,
    high: __m256i,
    group: &'a Group,
}

impl Activation<'_> {
    /// The scale in every lane.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn scale(&self) -> __m256 {
        _mm256_set1_ps(self.group.scale)
    }

    /// The scaled sum in every lane.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn scaled_sum(&self) -> __m256 {
        _mm256_set1_ps(self.group.scaled_sum)
    }
}

/// Group `group` of column `column`.
///
/// # Safety
/// The column must have it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn activation<'a>(columns: &Columns<'a>, column: usize, group: usize) -> Activation<'a> {
    let at = column * (columns.k / GROUP) + group;
    // SAFETY: `at` is a group of the column, with 32 levels.
    unsafe {
        let levels = columns.quantized.levels.as_ptr().add(at * GROUP);
        Activation {
            low: _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.cast())),
            high: _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.add(16).cast())),
            group: columns.quantized.groups.get_unchecked(at),
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

/// Sixteen bytes at `offset` of all rows.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all_rows(rows: &Rows, offset: usize) -> [__m256i; 4] {
    // SAFETY: the caller owes the bytes.
    unsafe {
        [
            two_rows(rows, 0, offset),
            two_rows(rows, 1, offset),
            two_rows(rows, 2, offset),
            two_rows(rows, 3, offset),
        ]
    }
}

/// The halves of bytes: low ones first.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles([a, b, c, d]: [__m256i; 4]) -> Levels {
    let mask = _mm256_set1_epi8(15);
    let low = |bytes| _mm256_and_si256(bytes, mask);
    let high = |bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
    Levels {
        low: [low(a), low(b), low(c), low(d)],
        high: [high(a), high(b), high(c), high(d)],
    }
}

/// Adds four vectors of partial sums of two rows each into one sum per row, rows in lane order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn rows_in_lanes(partial: [__m256i; 4]) -> __m256i {
    let [a, b, c, d] = partial;
    _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d))
}

/// The first four bytes of each row of [`all_rows`], rows in lane order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn first_words([a, b, c, d]: [__m256i; 4]) -> __m256i {
    _mm256_unpacklo_epi64(_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d))
}

/// Integer dot products of unsigned levels of at most five bits: each 16-bit sum is at most 4 * 31 * 127.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unsigned_dot(levels: &Levels, x: &Activation<'_>) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let mut sums = levels.low;
    for (pair, sum) in sums.iter_mut().enumerate() {
        let low = _mm256_maddubs_epi16(levels.low[pair], x.low);
        let high = _mm256_maddubs_epi16(levels.high[pair], x.high);
        *sum = _mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
    }
    rows_in_lanes(sums)
}

/// Integer dot products of signed levels. They meet `maddubs`, whose first operand is unsigned, as magnitudes, with
/// their signs moved to the activations; a pair is then at most 2 * 128 * 127 and does not saturate.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signed_dot(levels: &Levels, x: &Activation<'_>) -> __m256i {
    let mut sums = levels.low;
    for (pair, sum) in sums.iter_mut().enumerate() {
        let low = signed_pairs(levels.low[pair], x.low);
        *sum = _mm256_add_epi32(low, signed_pairs(levels.high[pair], x.high));
    }
    rows_in_lanes(sums)
}

/// Sums of four products of signed levels, see [`signed_dot`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signed_pairs(levels: __m256i, x: __m256i) -> __m256i {
    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(x, levels));
    _mm256_madd_epi16(products, _mm256_set1_epi16(1))
}

/// Fetches these eighths of the part of the next eight rows that lies as far into them as the block at `offset` into
/// these: rows follow each other in memory, so the next ones are read here in one ascending stream, where the
/// processor's own prefetching would have to follow eight. A little at a time, since the misses that L1 can have open
/// are few, and into L2 if the rows are too long for L1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch(rows: &Rows, offset: usize, block_bytes: usize, eighths: Range<usize>) {
    let stride = (rows[1] as usize).wrapping_sub(rows[0] as usize);
    let ahead = ROWS.wrapping_mul(stride).max(PREFETCH_BYTES_MIN);
    let next = rows[0].wrapping_add(ROWS.wrapping_mul(offset).wrapping_add(ahead));
    let long = ahead > L1_ROWS_BYTES_MAX;
    let eighth = ROWS * block_bytes / 8;
    for line in (eighths.start * eighth..eighths.end * eighth).step_by(64) {
        let line = next.wrapping_add(line).cast();
        // SAFETY: a prefetch reads nothing that the program can observe and faults on no address.
        #[allow(unused_unsafe, reason = "safe only in later compilers")]
        unsafe {
            if long {
                _mm_prefetch::<_MM_HINT_T1>(line);
            } else {
                _mm_prefetch::<_MM_HINT_T0>(line);
            }
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
