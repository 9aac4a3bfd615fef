//! One group of a tile's sixteen rows times the same group of a few columns.
//!
//! Integer sums start at minus the levels' offset times the sum of the activations, so that they are exact for the
//! format's own levels when they meet the accumulators.

use super::Dot;
use super::source::Source;
use crate::activation::{Columns, GROUP, Group};
use crate::pack::{GroupScales, Packed};
use core::arch::x86_64::{
    __m256, __m256i, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_madd_epi16,
    _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_slli_epi32,
};

/// Accumulators of the sixteen rows of a tile, for each of `M` columns.
pub(in super::super) type Sums<const M: usize> = [[__m256; 2]; M];
/// Integer sums of a group, in the same order.
type Integers<const M: usize> = [[__m256i; 2]; M];

/// Some columns and a block of their groups.
#[derive(Clone, Copy)]
pub(in super::super) struct At<'a> {
    pub(in super::super) columns: &'a Columns<'a>,
    /// The first column.
    pub(in super::super) column: usize,
    /// How many there are, at least one.
    pub(in super::super) count: usize,
    /// The first group.
    pub(in super::super) group: usize,
}

/// Where `M` columns have the groups of a block. Where there are fewer, the last stands in for those that lack.
#[derive(Clone, Copy)]
pub(super) struct X<const M: usize> {
    levels: [*const i8; M],
    groups: [*const Group; M],
}

impl<const M: usize> X<M> {
    /// # Safety
    /// The columns must exist and have the groups of a block.
    #[inline(always)]
    pub(super) unsafe fn new(at: At<'_>) -> X<M> {
        let stride = at.columns.k / GROUP;
        let quantized = at.columns.quantized;
        let mut x = X {
            levels: [quantized.levels.as_ptr(); M],
            groups: [quantized.groups.as_ptr(); M],
        };
        for index in 0..M {
            let group = (at.column + index.min(at.count - 1)) * stride + at.group;
            // SAFETY: the caller owes the groups, of 32 levels each.
            unsafe {
                x.levels[index] = x.levels[index].add(group * GROUP);
                x.groups[index] = x.groups[index].add(group);
            }
        }
        x
    }

    /// Four levels of step `step` of a group of the column at `index`, in every lane.
    ///
    /// # Safety
    /// The group must exist.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn step(&self, index: usize, group: usize, step: usize) -> __m256i {
        // SAFETY: the caller owes the group, which has eight steps of four levels.
        _mm256_set1_epi32(unsafe {
            self.levels[index]
                .add(group * GROUP + 4 * step)
                .cast::<i32>()
                .read_unaligned()
        })
    }

    /// What a group of the column at `index` has in common.
    ///
    /// # Safety
    /// The group must exist.
    #[inline(always)]
    unsafe fn group(&self, index: usize, group: usize) -> &Group {
        // SAFETY: the caller owes the group.
        unsafe { &*self.groups[index].add(group) }
    }
}

/// Adds group `group` of a block to the sums of `M` columns.
///
/// # Safety
/// The instruction set must be supported, and block and columns must have the group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_group<F: Packed, D: Dot, S: Source, const M: usize>(
    source: &S,
    group: usize,
    x: &X<M>,
    sums: &mut Sums<M>,
) {
    // SAFETY: passed on.
    unsafe {
        let products = if F::GROUP_SCALES == GroupScales::Two {
            // Scales of a byte times these sums stay below 2^24 together, so f32 holds them exactly.
            let mut integers = half_starts::<F, D, M, 0>(group, x);
            let mut run = integers;
            multiply::<F, D, S, M, 0>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 1>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 2>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 3>(source, group, x, &mut integers, &mut run);
            let mut products = floats(&integers);
            for half in 0..2 {
                let scale = source.half_scale(group, 0, half);
                for products in &mut products {
                    products[half] = _mm256_mul_ps(scale, products[half]);
                }
            }
            integers = half_starts::<F, D, M, 1>(group, x);
            multiply::<F, D, S, M, 4>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 5>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 6>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 7>(source, group, x, &mut integers, &mut run);
            let second = floats(&integers);
            for half in 0..2 {
                let scale = source.half_scale(group, 1, half);
                for (products, second) in products.iter_mut().zip(&second) {
                    products[half] = _mm256_fmadd_ps(scale, second[half], products[half]);
                }
            }
            products
        } else {
            let mut integers = starts::<F, D, M>(group, x);
            let mut run = integers;
            multiply::<F, D, S, M, 0>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 1>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 2>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 3>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 4>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 5>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 6>(source, group, x, &mut integers, &mut run);
            multiply::<F, D, S, M, 7>(source, group, x, &mut integers, &mut run);
            floats(&integers)
        };
        for half in 0..2 {
            let scale = source.scale(group, half);
            for (index, (sums, products)) in sums.iter_mut().zip(&products).enumerate() {
                let a = _mm256_set1_ps(x.group(index, group).scale);
                sums[half] = _mm256_fmadd_ps(_mm256_mul_ps(scale, a), products[half], sums[half]);
            }
            if F::MINIMUM {
                let minimum = source.minimum(group, half);
                for (index, sums) in sums.iter_mut().enumerate() {
                    let x_sum = _mm256_set1_ps(x.group(index, group).scaled_sum);
                    sums[half] = match F::GROUP_SCALES {
                        GroupScales::None => _mm256_fmadd_ps(minimum, x_sum, sums[half]),
                        _ => _mm256_fnmadd_ps(minimum, x_sum, sums[half]),
                    };
                }
            }
        }
    }
}

/// Adds step `STEP` of a group to a run of steps, and the run to the integer sums if the step is its last.
///
/// # Safety
/// See [`add_group`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<F: Packed, D: Dot, S: Source, const M: usize, const STEP: usize>(
    source: &S,
    group: usize,
    x: &X<M>,
    integers: &mut Integers<M>,
    run: &mut Integers<M>,
) {
    // No run reaches over the halves of a group that have their own scales.
    let length = match F::GROUP_SCALES {
        GroupScales::Two => D::run(F::BITS).min(4),
        _ => D::run(F::BITS),
    };
    // SAFETY: passed on.
    unsafe {
        let levels = [
            source.levels::<STEP>(group, 0),
            source.levels::<STEP>(group, 1),
        ];
        for (index, (integers, run)) in integers.iter_mut().zip(run).enumerate() {
            let x = x.step(index, group, STEP);
            for half in 0..2 {
                run[half] = if STEP.is_multiple_of(length) {
                    D::first(integers[half], levels[half], x, F::BITS == 8)
                } else {
                    D::next(run[half], levels[half], x)
                };
                if STEP % length == length - 1 {
                    integers[half] = D::last(integers[half], run[half]);
                }
            }
        }
    }
}

/// What the integer sums of a group start with: minus the levels' offset times the sum of the activations.
///
/// # Safety
/// The columns must have the group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn starts<F: Packed, D: Dot, const M: usize>(group: usize, x: &X<M>) -> Integers<M> {
    let mut integers = [[_mm256_setzero_si256(); 2]; M];
    if F::OFFSET == 0 || F::BITS == 8 && D::SIGNED_BYTES {
        return integers;
    }
    for (index, integers) in integers.iter_mut().enumerate() {
        // SAFETY: the caller owes the group.
        let sum = _mm256_set1_epi32(unsafe { x.group(index, group) }.negated_sum);
        *integers = [match F::OFFSET {
            8 => _mm256_slli_epi32::<3>(sum),
            16 => _mm256_slli_epi32::<4>(sum),
            128 => _mm256_slli_epi32::<7>(sum),
            _ => unreachable!("no format has this offset"),
        }; 2];
    }
    integers
}

/// [`starts`] of half `PART` of a group.
///
/// # Safety
/// The columns must have the group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_starts<F: Packed, D: Dot, const M: usize, const PART: usize>(
    group: usize,
    x: &X<M>,
) -> Integers<M> {
    let mut integers = [[_mm256_setzero_si256(); 2]; M];
    // One of the pair of sums times the offset, the other times zero.
    let offset = _mm256_set1_epi32((F::OFFSET << (16 * PART)) as i32);
    for (index, integers) in integers.iter_mut().enumerate() {
        // SAFETY: the caller owes the group.
        let pair = unsafe {
            let sums = &raw const x.group(index, group).negated_half_sums;
            sums.cast::<i32>().read_unaligned()
        };
        *integers = [_mm256_madd_epi16(_mm256_set1_epi32(pair), offset); 2];
    }
    integers
}

/// Integer sums as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn floats<const M: usize>(integers: &Integers<M>) -> Sums<M> {
    let mut floats = [[_mm256_setzero_ps(); 2]; M];
    for (floats, integers) in floats.iter_mut().zip(integers) {
        *floats = [
            _mm256_cvtepi32_ps(integers[0]),
            _mm256_cvtepi32_ps(integers[1]),
        ];
    }
    floats
}
