//! Products of packed weights, see [`crate::pack`] and [`crate::op::matmul`].
//!
//! A vector holds four elements of each of the sixteen rows of a tile, so `vpdpbusd` with four activations in every lane adds
//! to sixteen rows in lane order, and no sum has to be turned. Integer sums start at minus the levels' offset times the
//! sum of the activations. A group's levels are unpacked once for all columns that are computed together.

use super::super::column_span;
use crate::Format;
use crate::activation::{Columns, GROUP, Group};
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::{BLOCK_GROUPS, GroupScales, Layout, Packed, ROWS, STEPS};
use core::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256,
    _mm512_and_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_srai_epi32,
    _mm512_srli_epi16, _mm512_storeu_ps, _mm512_ternarylogic_epi32,
};

/// Columns computed together where there are many: their accumulators and a group's levels fit the 32 registers.
const COLUMNS: usize = 16;

/// How far ahead of a block others are fetched, into L2. Several columns keep the processor too busy to run so far ahead by
/// itself that memory is never waited for, and its own prefetching stops at each page.
const PREFETCH_BYTES: usize = 8192;

/// The kernel of a format; `None` if it has no packed layout.
pub(crate) const fn kernel(format: Format) -> Option<PackedKernel> {
    Some(match format {
        Format::Q4_0 => product::<Q4_0>,
        Format::Q4_1 => product::<Q4_1>,
        Format::Q5_0 => product::<Q5_0>,
        Format::Q5_1 => product::<Q5_1>,
        Format::Q8_0 => product::<Q8_0>,
        Format::Q4K => product::<Q4K>,
        Format::Q5K => product::<Q5K>,
        Format::Q6K => product::<Q6K>,
        _ => return None,
    })
}

/// [`PackedKernel`] of a format.
///
/// # Safety
/// See [`PackedKernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn product<F: Packed>(product: PackedProduct<'_>) {
    let tile_bytes = Layout::<F>::tile_bytes(product.columns.k);
    let span = column_span(product.columns.k, COLUMNS);
    for start in (0..product.columns.count).step_by(span) {
        let end = product.columns.count.min(start + span);
        for first in (0..product.row_count).step_by(ROWS) {
            let tile = product.tiles.wrapping_add(first / ROWS * tile_bytes);
            let mut column = start;
            while column < end {
                // SAFETY: the caller owes the tile, the columns and their output.
                unsafe {
                    column += match end - column {
                        COLUMNS.. => some_columns::<F, COLUMNS>(&product, tile, first, column),
                        8.. => some_columns::<F, 8>(&product, tile, first, column),
                        7 => some_columns::<F, 7>(&product, tile, first, column),
                        6 => some_columns::<F, 6>(&product, tile, first, column),
                        5 => some_columns::<F, 5>(&product, tile, first, column),
                        4 => some_columns::<F, 4>(&product, tile, first, column),
                        3 => some_columns::<F, 3>(&product, tile, first, column),
                        2 => some_columns::<F, 2>(&product, tile, first, column),
                        _ => some_columns::<F, 1>(&product, tile, first, column),
                    };
                }
            }
        }
    }
}

/// Computes and stores `M` columns of a tile's rows `first..`; returns `M`.
///
/// # Safety
/// See [`PackedKernel`]; the tile must be that of row `first`, and the columns must exist.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn some_columns<F: Packed, const M: usize>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    column: usize,
) -> usize {
    // SAFETY: the caller owes the tile, the columns and the output.
    unsafe {
        let sums = tile_product::<F, M>(tile, &product.columns, column);
        let row_count = (product.row_count - first).min(ROWS);
        for (index, &sum) in sums.iter().enumerate() {
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
    M
}

/// Products of a tile with `M` columns.
///
/// # Safety
/// The tile must be readable for rows of `columns.k` elements, and the columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile_product<F: Packed, const M: usize>(
    tile: *const u8,
    columns: &Columns<'_>,
    column: usize,
) -> [__m512; M] {
    let groups = columns.k / GROUP;
    let mut sums = [_mm512_setzero_ps(); M];
    let mut block = tile;
    let mut at = X {
        // SAFETY: the column exists.
        levels: unsafe { columns.quantized.levels.as_ptr().add(column * columns.k) },
        // SAFETY: as above.
        groups: unsafe { columns.quantized.groups.as_ptr().add(column * groups) },
        k: columns.k,
    };
    let mut left = groups;
    while left > 0 {
        let count = left.min(BLOCK_GROUPS);
        // SAFETY: the tile has `left` more groups, and so has each column.
        unsafe {
            let factors = if F::GROUP_SCALES == GroupScales::None {
                Factors::zero()
            } else {
                Factors::load::<F>(block)
            };
            let mut levels = block.add(Layout::<F>::head_bytes(count));
            for group in 0..count {
                prefetch::<F>(block, group);
                let scales = Scales::load::<F>(block, group, factors);
                add_group::<F, M>(&mut sums, unpack::<F>(levels), &scales, at);
                levels = levels.add(Layout::<F>::LEVEL_BYTES);
                at = at.next();
            }
            block = block.add(Layout::<F>::block_bytes(count));
        }
        left -= count;
    }
    sums
}

/// Fetches the eighth with index `group` of what lies [`PREFETCH_BYTES`] after a block, be it in this tile or a later one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn prefetch<F: Packed>(block: *const u8, group: usize) {
    let eighth = Layout::<F>::block_bytes(BLOCK_GROUPS) / BLOCK_GROUPS;
    let ahead = block.wrapping_add(PREFETCH_BYTES + group * eighth);
    for line in 0..eighth.div_ceil(64) {
        // SAFETY: a prefetch reads nothing that the program can observe and faults on no address.
        #[allow(unused_unsafe, reason = "safe only in later compilers")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast());
        }
    }
}

/// Where a group of the first of several columns is.
#[derive(Clone, Copy)]
struct X {
    levels: *const i8,
    groups: *const Group,
    k: usize,
}

impl X {
    /// The next group.
    #[inline(always)]
    fn next(self) -> X {
        X {
            levels: self.levels.wrapping_add(GROUP),
            groups: self.groups.wrapping_add(1),
            k: self.k,
        }
    }

    /// Four levels of step `step` of the column at `index`, in every lane.
    ///
    /// # Safety
    /// The column must exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn step(&self, index: usize, step: usize) -> __m512i {
        // SAFETY: the caller owes the column, whose group has eight steps of four levels.
        _mm512_set1_epi32(unsafe {
            self.levels
                .add(index * self.k + 4 * step)
                .cast::<i32>()
                .read_unaligned()
        })
    }

    /// What the group of the column at `index` has in common.
    ///
    /// # Safety
    /// The column must exist.
    #[inline(always)]
    unsafe fn group(&self, index: usize) -> &Group {
        // SAFETY: the caller owes the column.
        unsafe { &*self.groups.add(index * (self.k / GROUP)) }
    }
}

/// The f16 factors of a block of sixteen rows, as floats.
#[derive(Clone, Copy)]
struct Factors {
    scale: __m512,
    minimum: __m512,
}

impl Factors {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn zero() -> Factors {
        Factors {
            scale: _mm512_setzero_ps(),
            minimum: _mm512_setzero_ps(),
        }
    }

    /// # Safety
    /// Factors of `F` must be readable at `from`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load<F: Packed>(from: *const u8) -> Factors {
        // SAFETY: the caller owes sixteen halves, and as many again if there are minimums.
        unsafe {
            Factors {
                scale: _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                minimum: if F::MINIMUM {
                    _mm512_cvtph_ps(_mm256_loadu_si256(from.add(2 * ROWS).cast()))
                } else {
                    _mm512_setzero_ps()
                },
            }
        }
    }
}

/// The scales of one group of sixteen rows.
#[derive(Clone, Copy)]
struct Scales {
    /// Factor of the integer sums.
    scale: __m512,
    /// Factor of the sum of the activations.
    minimum: __m512,
    /// The scales of the halves, where they have their own.
    halves: [__m512; 2],
}

impl Scales {
    /// Of group `group` of a block with `factors`.
    ///
    /// # Safety
    /// The block must be readable up to its levels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load<F: Packed>(block: *const u8, group: usize, factors: Factors) -> Scales {
        let zero = _mm512_setzero_ps();
        // SAFETY: the caller owes the head of the block.
        unsafe {
            let own = block.wrapping_add(Layout::<F>::group_scales_at(group));
            match F::GROUP_SCALES {
                GroupScales::None => {
                    let factors = Factors::load::<F>(block.add(Layout::<F>::factors_at(group)));
                    Scales {
                        scale: factors.scale,
                        minimum: factors.minimum,
                        halves: [zero; 2],
                    }
                }
                GroupScales::One => Scales {
                    scale: _mm512_mul_ps(factors.scale, unsigned(own)),
                    minimum: if F::MINIMUM {
                        _mm512_mul_ps(factors.minimum, unsigned(own.add(ROWS)))
                    } else {
                        zero
                    },
                    halves: [zero; 2],
                },
                GroupScales::Two => Scales {
                    scale: factors.scale,
                    minimum: zero,
                    halves: [signed(own), signed(own.add(ROWS))],
                },
            }
        }
    }
}

/// Sixteen bytes without signs as floats.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unsigned(from: *const u8) -> __m512 {
    // SAFETY: the caller owes the bytes.
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(unsafe {
        _mm_loadu_si128(from.cast())
    }))
}

/// Sixteen bytes with signs as floats.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn signed(from: *const u8) -> __m512 {
    // SAFETY: the caller owes the bytes.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe {
        _mm_loadu_si128(from.cast())
    }))
}

/// Adds a group to the sums of `M` columns.
///
/// # Safety
/// The columns must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_group<F: Packed, const M: usize>(
    sums: &mut [__m512; M],
    levels: [__m512i; STEPS],
    scales: &Scales,
    at: X,
) {
    for (index, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller owes the column.
        unsafe {
            let x = at.group(index);
            let scale = _mm512_mul_ps(scales.scale, _mm512_set1_ps(x.scale));
            if F::GROUP_SCALES == GroupScales::Two {
                let low = dot_half::<F, 0>(&levels, at, index, x);
                let high = dot_half::<F, 1>(&levels, at, index, x);
                // Scales of a byte times these sums stay below 2^24 together, so f32 holds them exactly.
                let product = _mm512_mul_ps(scales.halves[0], _mm512_cvtepi32_ps(low));
                let product = _mm512_fmadd_ps(scales.halves[1], _mm512_cvtepi32_ps(high), product);
                *sum = _mm512_fmadd_ps(scale, product, *sum);
                continue;
            }
            let mut product = if F::OFFSET == 0 {
                _mm512_setzero_si512()
            } else {
                times_offset::<F>(_mm512_set1_epi32(x.negated_sum))
            };
            product = _mm512_dpbusd_epi32(product, levels[0], at.step(index, 0));
            product = _mm512_dpbusd_epi32(product, levels[1], at.step(index, 1));
            product = _mm512_dpbusd_epi32(product, levels[2], at.step(index, 2));
            product = _mm512_dpbusd_epi32(product, levels[3], at.step(index, 3));
            product = _mm512_dpbusd_epi32(product, levels[4], at.step(index, 4));
            product = _mm512_dpbusd_epi32(product, levels[5], at.step(index, 5));
            product = _mm512_dpbusd_epi32(product, levels[6], at.step(index, 6));
            product = _mm512_dpbusd_epi32(product, levels[7], at.step(index, 7));
            *sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(product), *sum);
            if F::MINIMUM {
                let x_sum = _mm512_set1_ps(x.scaled_sum);
                *sum = match F::GROUP_SCALES {
                    GroupScales::None => _mm512_fmadd_ps(scales.minimum, x_sum, *sum),
                    _ => _mm512_fnmadd_ps(scales.minimum, x_sum, *sum),
                };
            }
        }
    }
}

/// The integer sum of half `HALF` of a group, the offset taken off.
///
/// # Safety
/// The column at `index` must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_half<F: Packed, const HALF: usize>(
    levels: &[__m512i; STEPS],
    at: X,
    index: usize,
    x: &Group,
) -> __m512i {
    let [low, high] = x.negated_half_sums.map(|sum| i32::from(sum as u16));
    let pair = _mm512_set1_epi32(low | high << 16);
    let first = HALF * STEPS / 2;
    // Shifts, since multiplications would wait for the same ports as the products.
    let mut product = times_offset::<F>(_mm512_srai_epi32::<16>(if HALF == 0 {
        _mm512_slli_epi32::<16>(pair)
    } else {
        pair
    }));
    // SAFETY: the caller owes the column.
    unsafe {
        product = _mm512_dpbusd_epi32(product, levels[first], at.step(index, first));
        product = _mm512_dpbusd_epi32(product, levels[first + 1], at.step(index, first + 1));
        product = _mm512_dpbusd_epi32(product, levels[first + 2], at.step(index, first + 2));
        _mm512_dpbusd_epi32(product, levels[first + 3], at.step(index, first + 3))
    }
}

/// `sums` times the format's offset.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn times_offset<F: Packed>(sums: __m512i) -> __m512i {
    const { assert!(F::OFFSET == 0 || F::OFFSET.is_power_of_two()) };
    match F::OFFSET {
        8 => _mm512_slli_epi32::<3>(sums),
        16 => _mm512_slli_epi32::<4>(sums),
        32 => _mm512_slli_epi32::<5>(sums),
        128 => _mm512_slli_epi32::<7>(sums),
        _ => unreachable!("no format has this offset"),
    }
}

/// The levels of a group at `from`, one vector for each step.
///
/// # Safety
/// A group's levels must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unpack<F: Packed>(from: *const u8) -> [__m512i; STEPS] {
    // SAFETY: the caller owes `64 * BITS` bytes.
    let load = |vector: usize| unsafe { _mm512_loadu_si512(from.add(64 * vector).cast()) };
    if F::BITS == 8 {
        return [
            load(0),
            load(1),
            load(2),
            load(3),
            load(4),
            load(5),
            load(6),
            load(7),
        ];
    }
    let mask = _mm512_set1_epi8(15);
    let (a, b, c, d) = (load(0), load(1), load(2), load(3));
    let low = |bytes| _mm512_and_si512(bytes, mask);
    let high = |bytes| _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
    let [l0, l1, l2, l3] = [low(a), low(b), low(c), low(d)];
    let [l4, l5, l6, l7] = [high(a), high(b), high(c), high(d)];
    match F::BITS {
        4 => [l0, l1, l2, l3, l4, l5, l6, l7],
        5 => {
            let bits = load(4);
            let bit = _mm512_set1_epi8(16);
            [
                or_masked(l0, _mm512_slli_epi16::<4>(bits), bit),
                or_masked(l1, _mm512_slli_epi16::<3>(bits), bit),
                or_masked(l2, _mm512_slli_epi16::<2>(bits), bit),
                or_masked(l3, _mm512_slli_epi16::<1>(bits), bit),
                or_masked(l4, bits, bit),
                or_masked(l5, _mm512_srli_epi16::<1>(bits), bit),
                or_masked(l6, _mm512_srli_epi16::<2>(bits), bit),
                or_masked(l7, _mm512_srli_epi16::<3>(bits), bit),
            ]
        }
        6 => {
            let (first, second) = (load(4), load(5));
            let bits = _mm512_set1_epi8(48);
            [
                or_masked(l0, _mm512_slli_epi16::<4>(first), bits),
                or_masked(l1, _mm512_slli_epi16::<2>(first), bits),
                or_masked(l2, first, bits),
                or_masked(l3, _mm512_srli_epi16::<2>(first), bits),
                or_masked(l4, _mm512_slli_epi16::<4>(second), bits),
                or_masked(l5, _mm512_slli_epi16::<2>(second), bits),
                or_masked(l6, second, bits),
                or_masked(l7, _mm512_srli_epi16::<2>(second), bits),
            ]
        }
        _ => unreachable!("levels have 4, 5, 6 or 8 bits"),
    }
}

/// `a | b & mask`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn or_masked(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xf8>(a, b, mask)
}
