//! Products of many columns with rows as files have them, computed as those of packed weights are.
//!
//! A block of sixteen rows is brought into the order of packed levels once, in a [`Panel`], for all columns of a span.
//! Turning levels around takes a few shuffles for each row; the sums of every row and column, which the kernels for few
//! columns turn instead, are many more.

use super::super::super::column_span;
use super::super::packed::{At, COLUMNS, Dot, Filled, Panel, SPAN_MAX, add_block, store};
use super::k_quants::{Grouped, Halved, signed, transpose, unsigned};
use super::legacy::Single;
use super::{Levels, Rows, grouped, halved, single};
use crate::activation::GROUP;
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{Kernel, Product};
use crate::pack::{BLOCK_GROUPS, Packed, ROWS, STEPS};
use core::arch::x86_64::{
    __m256i, _mm256_mul_ps, _mm256_set1_epi8, _mm256_setzero_ps, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};
use core::mem::MaybeUninit;

/// Columns up to which the kernels for few are faster.
const FEW: usize = 8;

/// A format that panels are filled with.
pub(super) trait Unpack: Packed {
    /// The kernel for few columns.
    const FEW: Kernel;

    /// Fills half `half` of the rows of a panel with `groups` groups from `first` of eight rows.
    ///
    /// # Safety
    /// The instruction set must be supported, the groups be a whole number of blocks, and each row have them.
    unsafe fn fill<D: Dot>(
        panel: &mut MaybeUninit<Panel>,
        half: usize,
        rows: &Rows,
        first: usize,
        groups: usize,
    );
}

/// Implements [`Unpack`] for formats of a family.
macro_rules! unpack {
    ($kernel:ident, $fill:ident: $($format:ty)*) => {$(
        impl Unpack for $format {
            const FEW: Kernel = $kernel::<$format>;

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn fill<D: Dot>(
                panel: &mut MaybeUninit<Panel>,
                half: usize,
                rows: &Rows,
                first: usize,
                groups: usize,
            ) {
                // SAFETY: passed on.
                unsafe { $fill::<$format, D>(panel, half, rows, first, groups) }
            }
        }
    )*};
}

unpack!(single, fill_single: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0);
unpack!(grouped, fill_grouped: Q4K Q5K);
unpack!(halved, fill_halved: Q6K);

/// See [`Kernel`].
///
/// # Safety
/// See [`Kernel`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn product<F: Unpack, D: Dot>(product: Product<'_>) {
    let columns = &product.columns;
    if columns.count <= FEW {
        // SAFETY: passed on.
        return unsafe { F::FEW(product) };
    }
    let groups = columns.k / GROUP;
    let span = column_span(columns.k, COLUMNS).min(SPAN_MAX);
    for start in (0..columns.count).step_by(span) {
        let count = span.min(columns.count - start);
        for first in (0..product.row_count).step_by(ROWS) {
            // Rows past the end repeat the last one, and the copies are dropped.
            let row = |index: usize| {
                let row = (first + index).min(product.row_count - 1);
                product.weights.wrapping_add(row * product.row_bytes)
            };
            let rows: [Rows; 2] = [
                core::array::from_fn(row),
                core::array::from_fn(|index| row(8 + index)),
            ];
            let mut all = [[[_mm256_setzero_ps(); 2]; COLUMNS]; SPAN_MAX / COLUMNS];
            let mut panel = MaybeUninit::uninit();
            for group in (0..groups).step_by(BLOCK_GROUPS) {
                let groups = BLOCK_GROUPS.min(groups - group);
                let at = At {
                    columns,
                    column: start,
                    count,
                    group,
                };
                // SAFETY: every row and column has these groups, and the panel is filled with as many.
                unsafe {
                    F::fill::<D>(&mut panel, 0, &rows[0], group, groups);
                    F::fill::<D>(&mut panel, 1, &rows[1], group, groups);
                    add_block::<F, D, _>(&Filled(&panel), groups, at, &mut all);
                }
            }
            for (index, sums) in all.as_flattened().iter().take(count).enumerate() {
                // SAFETY: the caller owes the output of every row and column.
                unsafe {
                    let output = product.output.add((start + index) * product.stride + first);
                    store(output, product.row_count - first, sums);
                }
            }
        }
    }
}

/// See [`Unpack::fill`].
///
/// # Safety
/// See there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fill_single<F: Packed + Single, D: Dot>(
    panel: &mut MaybeUninit<Panel>,
    half: usize,
    rows: &Rows,
    first: usize,
    groups: usize,
) {
    for group in 0..groups {
        // SAFETY: each row has the group, which is a block.
        let block = unsafe { F::load(rows, (first + group) * size_of::<F>()) };
        let mut levels = steps(&block.levels);
        if <F as Packed>::BITS == 8 && !D::SIGNED_BYTES {
            for levels in &mut levels {
                *levels = _mm256_xor_si256(*levels, _mm256_set1_epi8(-128));
            }
        }
        Panel::put_levels(panel, group, half, levels);
        Panel::put_scale(panel, group, 0, half, block.scale);
        if <F as Packed>::MINIMUM {
            Panel::put_scale(panel, group, 1, half, block.minimum);
        }
    }
}

/// See [`Unpack::fill`].
///
/// # Safety
/// See there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fill_grouped<F: Packed + Grouped, D: Dot>(
    panel: &mut MaybeUninit<Panel>,
    half: usize,
    rows: &Rows,
    first: usize,
    _: usize,
) {
    let offset = first / BLOCK_GROUPS * size_of::<F>();
    // SAFETY: each row has the groups, which are a block.
    unsafe {
        let factors = F::factors(rows, offset);
        let bytes = transpose(factors.bytes);
        for part in 0..2 {
            let quarters = [
                F::levels::<0>(rows, offset, part),
                F::levels::<1>(rows, offset, part),
                F::levels::<2>(rows, offset, part),
                F::levels::<3>(rows, offset, part),
            ];
            for (quarter, levels) in quarters.iter().enumerate() {
                let group = part * 4 + quarter;
                Panel::put_levels(panel, group, half, steps(levels));
                let scale = _mm256_mul_ps(factors.scale, unsigned(&bytes[group]));
                Panel::put_scale(panel, group, 0, half, scale);
                let minimum = _mm256_mul_ps(factors.minimum, unsigned(&bytes[group + 8]));
                Panel::put_scale(panel, group, 1, half, minimum);
            }
        }
    }
}

/// See [`Unpack::fill`].
///
/// # Safety
/// See there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fill_halved<F: Packed + Halved, D: Dot>(
    panel: &mut MaybeUninit<Panel>,
    half: usize,
    rows: &Rows,
    first: usize,
    _: usize,
) {
    let offset = first / BLOCK_GROUPS * size_of::<F>();
    // SAFETY: each row has the groups, which are a block.
    unsafe {
        let factors = F::factors(rows, offset);
        let bytes = transpose(factors.bytes);
        for part in 0..2 {
            let quarters = [
                F::levels::<0>(rows, offset, part),
                F::levels::<1>(rows, offset, part),
                F::levels::<2>(rows, offset, part),
                F::levels::<3>(rows, offset, part),
            ];
            for (quarter, levels) in quarters.iter().enumerate() {
                let group = part * 4 + quarter;
                Panel::put_levels(panel, group, half, steps(levels));
                Panel::put_scale(panel, group, 0, half, factors.scale);
                Panel::put_scale(panel, group, 1, half, signed(&bytes[2 * group]));
                Panel::put_scale(panel, group, 2, half, signed(&bytes[2 * group + 1]));
            }
        }
    }
}

/// Levels by steps: from vectors of sixteen elements of rows `p` and `p + 4` to ones of four elements of all eight.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn steps(levels: &Levels) -> [__m256i; STEPS] {
    let [s0, s1, s2, s3] = turned(levels.low);
    let [s4, s5, s6, s7] = turned(levels.high);
    [s0, s1, s2, s3, s4, s5, s6, s7]
}

/// Turns four words of four rows around, within each 128-bit lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn turned([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}
