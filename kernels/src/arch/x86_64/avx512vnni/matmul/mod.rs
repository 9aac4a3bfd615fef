//! Products of quantized weights, see [`crate::op::matmul`].
//!
//! Sixteen rows are computed together, one per lane of the accumulators. A vector of levels holds 16 levels of each
//! of the rows `q`, `q + 4`, `q + 8` and `q + 12`, one row per 128-bit lane; two rounds of unpacking and adding then
//! put the sums in row order. `vpdpbusd` takes unsigned weights and does not saturate, so signed levels are shifted
//! up, and the shift is taken off through the sum of the activations, with which the integer sums start.
//!
//! Arrays of vectors are built as a whole, element by element. `core::array::from_fn` may call its closure out of line,
//! and a loop that fills an array through references may leave it in memory; both cost more than what they compute.

mod k_quants;
mod legacy;
mod tables;

use super::super::{PREFETCH_BYTES_MIN, avx2, avxvnni, blocked_kernel, column_span};
use crate::Format;
use crate::activation::{Columns, GROUP, Group};
use crate::block::{IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{Kernel, Product};
use core::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _MM_HINT_T1, _mm_cvtsi32_si128, _mm_insert_epi16,
    _mm_insert_epi32, _mm_loadu_si128, _mm_prefetch, _mm_setzero_si128, _mm256_set_m128i,
    _mm512_add_epi32, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castsi128_si512,
    _mm512_cvtepi32_epi16, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_inserti32x4,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_sll_epi32,
    _mm512_srli_epi16, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use core::ops::Range;
use k_quants::{Grouped, Halved, grouped_block, halved_block};
use legacy::{Single, single_block};

/// Rows computed together.
const ROWS: usize = 16;
/// Columns computed together: their accumulators and one group's levels fit the 32 registers.
const COLUMNS: usize = 8;

/// The kernel of a format.
pub(crate) const fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => {
            avx2::matmul::kernel::<avx2::packed::Evex>(format)
        }
        Format::Q4_0 => single_or_panel::<Q4_0>,
        Format::Q4_1 => single_or_panel::<Q4_1>,
        Format::Q5_0 => single_or_panel::<Q5_0>,
        Format::Q5_1 => single_or_panel::<Q5_1>,
        Format::Q8_0 => single_or_panel::<Q8_0>,
        Format::Q2K => halved::<Q2K>,
        Format::Q3K => halved::<Q3K>,
        Format::Q4K => grouped_or_panel::<Q4K>,
        Format::Q5K => grouped_or_panel::<Q5K>,
        Format::Q6K => halved_or_panel::<Q6K>,
        Format::IQ4NL => single::<IQ4NL>,
        Format::IQ4XS => grouped::<IQ4XS>,
        Format::MXFP4 => single::<MXFP4>,
    }
}

type Rows = [*const u8; ROWS];

/// [`super::super::blocked_kernel`] for this instruction set.
macro_rules! kernel {
    ($name:ident, $family:ident, $block:ident) => {
        blocked_kernel!(
            "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
            $name,
            $family,
            $block
        );
    };
}

kernel!(single, Single, single_block);
kernel!(grouped, Grouped, grouped_block);
kernel!(halved, Halved, halved_block);

/// Columns up to which the kernels here are faster than the panels of [`avxvnni`].
const FEW: usize = 8;

/// Defines `$name`, which leaves many columns to the panels.
macro_rules! or_panel {
    ($name:ident, $family:ident, $few:ident) => {
        /// See [`Kernel`].
        ///
        /// # Safety
        /// See [`Kernel`].
        unsafe fn $name<F: $family>(product: Product<'_>) {
            let kernel = if product.columns.count > FEW {
                const { avxvnni::matmul::evex(F::FORMAT) }
            } else {
                $few::<F>
            };
            // SAFETY: the caller owes what any kernel of the format asks for; the panels use instructions of this set.
            unsafe { kernel(product) }
        }
    };
}

or_panel!(single_or_panel, Single, single);
or_panel!(grouped_or_panel, Grouped, grouped);
or_panel!(halved_or_panel, Halved, halved);

/// Stores the accumulators of rows `first..` (as many as exist) of columns `column..`.
///
/// # Safety
/// See [`Kernel`]; the rows and columns must be the product's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
struct Activation<'a> {
    low: __m512i,
    high: __m512i,
    group: &'a Group,
}

/// Group `group` of column `column`.
///
/// # Safety
/// The column must have it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn activation<'a>(columns: &Columns<'a>, column: usize, group: usize) -> Activation<'a> {
    let at = column * (columns.k / GROUP) + group;
    // SAFETY: `at` is a group of the column, with 32 levels.
    unsafe {
        let levels = columns.quantized.levels.as_ptr().add(at * GROUP);
        Activation {
            low: _mm512_broadcast_i32x4(_mm_loadu_si128(levels.cast())),
            high: _mm512_broadcast_i32x4(_mm_loadu_si128(levels.add(16).cast())),
            group: columns.quantized.groups.get_unchecked(at),
        }
    }
}

impl Activation<'_> {
    /// The scale in every lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn scale(&self) -> __m512 {
        _mm512_set1_ps(self.group.scale)
    }

    /// The scaled sum in every lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn scaled_sum(&self) -> __m512 {
        _mm512_set1_ps(self.group.scaled_sum)
    }

    /// Where the integer sums of levels that were shifted up by `offset`, a power of two from 4 or zero, start: the four
    /// partial sums of a row add up to `-offset` times the sum of the activations.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn start(&self, offset: u32) -> __m512i {
        if offset == 0 {
            return _mm512_setzero_si512();
        }
        // Each row has the sum four times.
        start(_mm512_set1_epi32(self.group.negated_sum), offset / 4)
    }

    /// [`Activation::start`] for the levels of half `half` alone and an `offset` from 4.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn half_start(&self, half: usize, offset: u32) -> __m512i {
        if offset == 0 {
            return _mm512_setzero_si512();
        }
        let sum = i32::from(self.group.negated_half_sums[half]);
        start(_mm512_set1_epi32(sum), offset / 4)
    }
}

/// `factor * sums`, for a power of two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn start(sums: __m512i, factor: u32) -> __m512i {
    let shift = _mm_cvtsi32_si128(factor.trailing_zeros() as i32);
    _mm512_sll_epi32(sums, shift)
}

/// Sixteen bytes at `offset` of rows `quad`, `quad + 4`, `quad + 8` and `quad + 12`.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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

/// Sixteen bytes at `offset` of all rows.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn all_rows(rows: &Rows, offset: usize) -> [__m512i; 4] {
    // SAFETY: the caller owes the bytes.
    unsafe {
        [
            four_rows(rows, 0, offset),
            four_rows(rows, 1, offset),
            four_rows(rows, 2, offset),
            four_rows(rows, 3, offset),
        ]
    }
}

/// The halves of bytes: low ones first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn nibbles([a, b, c, d]: [__m512i; 4]) -> Levels {
    let mask = _mm512_set1_epi8(15);
    let low = |bytes| _mm512_and_si512(bytes, mask);
    let high = |bytes| _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
    Levels {
        low: [low(a), low(b), low(c), low(d)],
        high: [high(a), high(b), high(c), high(d)],
    }
}

/// Adds four vectors of partial sums of four rows each into one sum per row, rows in lane order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn rows_in_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// The first four bytes of each row of [`all_rows`], rows in lane order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn first_words([a, b, c, d]: [__m512i; 4]) -> __m512i {
    _mm512_unpacklo_epi64(_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d))
}

/// Integer dot products of unsigned levels, added to `start`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot(levels: &Levels, x: &Activation<'_>, start: __m512i) -> __m512i {
    let mut sums = [start; 4];
    for (quad, sum) in sums.iter_mut().enumerate() {
        *sum = _mm512_dpbusd_epi32(*sum, levels.low[quad], x.low);
        *sum = _mm512_dpbusd_epi32(*sum, levels.high[quad], x.high);
    }
    rows_in_lanes(sums)
}

/// [`dot`] of one half of a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn half_dot(levels: &[__m512i; 4], x: __m512i, start: __m512i) -> __m512i {
    let mut sums = [start; 4];
    for (quad, sum) in sums.iter_mut().enumerate() {
        *sum = _mm512_dpbusd_epi32(*sum, levels[quad], x);
    }
    rows_in_lanes(sums)
}

/// Fetches these eighths of the part of the next sixteen rows that lies as far into them as the block at `offset` into
/// these, see [`super::super::avx2::matmul`]; into L2, since sixteen rows twice seldom fit L1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn prefetch(rows: &Rows, offset: usize, block_bytes: usize, eighths: Range<usize>) {
    let stride = (rows[1] as usize).wrapping_sub(rows[0] as usize);
    let ahead = ROWS.wrapping_mul(stride).max(PREFETCH_BYTES_MIN);
    let next = rows[0].wrapping_add(ROWS.wrapping_mul(offset).wrapping_add(ahead));
    let eighth = ROWS * block_bytes / 8;
    for line in (eighths.start * eighth..eighths.end * eighth).step_by(64) {
        // SAFETY: a prefetch reads nothing that the program can observe and faults on no address.
        #[allow(unused_unsafe, reason = "safe only in later compilers")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast());
        }
    }
}

/// An f16 at `offset` of each row, as floats.
///
/// # Safety
/// The bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
    split_halves(_mm512_inserti32x4::<3>(pairs, four(12)))
}

/// Pairs of adjacent f16 as floats: all the first, all the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn split_halves(pairs: __m512i) -> (__m512, __m512) {
    let first: __m256i = _mm512_cvtepi32_epi16(pairs);
    let second: __m256i = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs));
    (_mm512_cvtph_ps(first), _mm512_cvtph_ps(second))
}
