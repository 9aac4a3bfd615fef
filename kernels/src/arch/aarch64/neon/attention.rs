//! Attention over a page, see [`crate::op::attention`].
//!
//! Rows are taken in blocks, so that a vector of keys or values is converted once for all rows of a block, and so that
//! there are enough sums at a time to hide the latency of an addition.

use super::matmul::{Multiply, Plain};
use crate::arch::aarch64::vector::{
    vcvt_f32_f16, vcvt_high_f32_f16, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32, vfmaq_f32,
    vfmaq_n_f32, vget_low_s16, vget_low_u16, vmovl_high_s16, vmovl_s8, vmovl_s16, vmulq_n_f32,
    vreinterpret_f16_u16, vreinterpretq_f16_u16, vreinterpretq_s8_s32,
};
use crate::arch::scalar;
use crate::op::attention::{
    CHUNK, GROUP, Kernels, PAGE, QuantizedKeys, QuantizedQueries, QuantizedValues, Queries, TILE,
    key_groups, key_levels,
};
use core::arch::aarch64::{
    float32x4_t, vld1_s8, vld1q_dup_s32, vld1q_f32, vld1q_s8, vld1q_u16, vst1q_f32,
};

/// The kernels.
pub(crate) const KERNELS: Kernels = Kernels {
    scores,
    quantized_scores: plain_quantized_scores,
    weighted_sum,
    quantized_weighted_sum,
    // Their portable bodies are compiled for these instructions as they are.
    ..scalar::attention::KERNELS
};

/// Rows of a block.
const ROWS: usize = 4;

/// Vectors of a tile.
const PARTS: usize = TILE / 4;

/// Eight halves at `from` as floats.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn halves(from: *const u16) -> [float32x4_t; 2] {
    // SAFETY: the caller owes them.
    let halves = unsafe { vld1q_u16(from) };
    [
        vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(halves))),
        vcvt_high_f32_f16(vreinterpretq_f16_u16(halves)),
    ]
}

/// Sixteen halves at `from` as floats.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn tile_halves(from: *const u16) -> [float32x4_t; PARTS] {
    // SAFETY: the caller owes them.
    let ([a, b], [c, d]) = unsafe { (halves(from), halves(from.add(8))) };
    [a, b, c, d]
}

/// Writes the sums of rows at a tile, times `scale`.
///
/// # Safety
/// `scores` must point to the scores of the rows at the tile.
#[inline(always)]
unsafe fn store_scores<const R: usize>(
    sums: &[[float32x4_t; PARTS]; R],
    scale: f32,
    scores: *mut f32,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller owes the scores.
            unsafe { vst1q_f32(scores.add(row * CHUNK + 4 * part), vmulq_n_f32(sum, scale)) };
        }
    }
}

/// [`crate::op::attention::Scores`].
///
/// # Safety
/// See that type.
unsafe fn scores(queries: Queries<'_>, keys: &[u16], tiles: usize, scale: f32, scores: &mut [f32]) {
    let (rows, dims) = (queries.rows(), queries.head_dim);
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        // Rows past the end repeat the last one and are not stored.
        let row = |index: usize| queries.row(first + index.min(count - 1)).as_ptr();
        let pointers = [row(0), row(1), row(2), row(3)];
        for tile in 0..tiles {
            let keys = keys[tile * TILE * dims..].as_ptr();
            let scores = scores[first * CHUNK + tile * TILE..].as_mut_ptr();
            // SAFETY: the caller owes the tiles and the scores of `count` rows from `first` on.
            unsafe {
                match count {
                    1 => store_scores(&score_tile::<1>(&pointers, dims, keys), scale, scores),
                    2 => store_scores(&score_tile::<2>(&pointers, dims, keys), scale, scores),
                    3 => store_scores(&score_tile::<3>(&pointers, dims, keys), scale, scores),
                    _ => store_scores(&score_tile::<4>(&pointers, dims, keys), scale, scores),
                }
            }
        }
    }
}

/// Sums of `R` rows at a tile.
///
/// # Safety
/// `queries` must point to rows of `dims` elements, and `keys` to a tile.
#[inline(always)]
unsafe fn score_tile<const R: usize>(
    queries: &[*const f32; ROWS],
    dims: usize,
    keys: *const u16,
) -> [[float32x4_t; PARTS]; R] {
    let mut sums = [[vdupq_n_f32(0.0); PARTS]; R];
    for dim in 0..dims {
        // SAFETY: the caller owes the tile.
        let key = unsafe { tile_halves(keys.add(dim * TILE)) };
        for (sums, query) in sums.iter_mut().zip(queries) {
            // SAFETY: the caller owes the rows.
            let query = unsafe { *query.add(dim) };
            for (sum, key) in sums.iter_mut().zip(key) {
                *sum = vfmaq_n_f32(*sum, key, query);
            }
        }
    }
    sums
}

/// [`quantized_scores`] for the instructions that all processors have.
///
/// # Safety
/// See that function.
unsafe fn plain_quantized_scores(
    queries: QuantizedQueries<'_>,
    rows: usize,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    // SAFETY: passed on.
    unsafe { quantized_scores::<Plain>(queries, rows, keys, scale, scores) }
}

/// [`crate::op::attention::QuantizedScores`].
///
/// # Safety
/// See that type; the instruction set of `D` must be supported.
#[inline(always)]
pub(in super::super) unsafe fn quantized_scores<D: Multiply>(
    queries: QuantizedQueries<'_>,
    rows: usize,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    let (row_levels, groups) = (key_levels(keys.head_dim), key_groups(keys.head_dim));
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        let block = QuantizedQueries {
            levels: &queries.levels[first * row_levels..],
            scales: &queries.scales[first * groups..],
            offsets: &queries.offsets[first * groups..],
        };
        for tile in 0..keys.tiles {
            let scores = scores[first * CHUNK + tile * TILE..].as_mut_ptr();
            // SAFETY: the caller owes `count` rows from `first` on, the tiles and the scores.
            unsafe {
                match count {
                    1 => store_scores(&quantized_tile::<D, 1>(block, keys, tile), scale, scores),
                    2 => store_scores(&quantized_tile::<D, 2>(block, keys, tile), scale, scores),
                    3 => store_scores(&quantized_tile::<D, 3>(block, keys, tile), scale, scores),
                    _ => store_scores(&quantized_tile::<D, 4>(block, keys, tile), scale, scores),
                }
            }
        }
    }
}

/// Sums of `R` rows at tile `tile`.
///
/// # Safety
/// The instruction set of `D` must be supported, and the slices hold `R` rows and the tile.
#[inline(always)]
unsafe fn quantized_tile<D: Multiply, const R: usize>(
    queries: QuantizedQueries<'_>,
    keys: QuantizedKeys<'_>,
    tile: usize,
) -> [[float32x4_t; PARTS]; R] {
    let (row_levels, groups) = (key_levels(keys.head_dim), key_groups(keys.head_dim));
    let mut sums = [[vdupq_n_f32(0.0); PARTS]; R];
    for group in 0..groups {
        let mut integers = [[vdupq_n_s32(0); PARTS]; R];
        let end = ((group + 1) * GROUP).min(row_levels);
        for dim in (group * GROUP..end).step_by(4) {
            // SAFETY: the caller owes the tile, of `row_levels * TILE` levels, and the rows, whose levels are a multiple
            // of four; the instruction set is the caller's debt.
            unsafe {
                let key = keys.levels.as_ptr().add((tile * row_levels + dim) * TILE);
                let key = [
                    vld1q_s8(key),
                    vld1q_s8(key.add(16)),
                    vld1q_s8(key.add(32)),
                    vld1q_s8(key.add(48)),
                ];
                for (row, integers) in integers.iter_mut().enumerate() {
                    let query = queries.levels.as_ptr().add(row * row_levels + dim);
                    let query = vreinterpretq_s8_s32(vld1q_dup_s32(query.cast()));
                    for (integer, key) in integers.iter_mut().zip(key) {
                        *integer = D::dot(*integer, key, query);
                    }
                }
            }
        }
        // SAFETY: the caller owes the scales of the tile and of the rows.
        unsafe {
            let scales = keys.scales.as_ptr().add((tile * groups + group) * TILE);
            let scales = tile_halves(scales);
            for (row, (sums, integers)) in sums.iter_mut().zip(integers).enumerate() {
                let query = *queries.scales.get_unchecked(row * groups + group);
                for ((sum, integer), scale) in sums.iter_mut().zip(integers).zip(scales) {
                    *sum = vfmaq_f32(*sum, vmulq_n_f32(scale, query), vcvtq_f32_s32(integer));
                }
            }
        }
    }
    sums
}

/// How values are stored.
trait Load: Copy {
    /// Eight of them from the one at `index` on, as floats.
    ///
    /// # Safety
    /// They must exist.
    unsafe fn eight(self, index: usize) -> [float32x4_t; 2];

    /// The one at `index`.
    ///
    /// # Safety
    /// It must exist.
    unsafe fn one(self, index: usize) -> f32;
}

impl Load for *const u16 {
    #[inline(always)]
    unsafe fn eight(self, index: usize) -> [float32x4_t; 2] {
        // SAFETY: passed on.
        unsafe { halves(self.add(index)) }
    }

    #[inline(always)]
    unsafe fn one(self, index: usize) -> f32 {
        // SAFETY: passed on.
        half::f16::from_bits(unsafe { *self.add(index) }).to_f32()
    }
}

impl Load for *const i8 {
    #[inline(always)]
    unsafe fn eight(self, index: usize) -> [float32x4_t; 2] {
        // SAFETY: passed on.
        let levels = vmovl_s8(unsafe { vld1_s8(self.add(index)) });
        [
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(levels))),
            vcvtq_f32_s32(vmovl_high_s16(levels)),
        ]
    }

    #[inline(always)]
    unsafe fn one(self, index: usize) -> f32 {
        // SAFETY: passed on.
        f32::from(unsafe { *self.add(index) })
    }
}

/// Weights of rows that begin `stride` apart.
#[derive(Clone, Copy)]
struct Weights {
    from: *const f32,
    stride: usize,
    positions: usize,
}

/// [`crate::op::attention::WeightedSum`].
///
/// # Safety
/// See that type.
unsafe fn weighted_sum(
    weights: &[f32],
    values: &[u16],
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    for (block, output) in output.chunks_mut(ROWS * head_dim).enumerate() {
        let weights = Weights {
            from: weights[block * ROWS * CHUNK..].as_ptr(),
            stride: CHUNK,
            positions,
        };
        // SAFETY: the caller owes the weights and the values.
        unsafe { weighted_block(weights, values.as_ptr(), head_dim, output) };
    }
}

/// [`crate::op::attention::QuantizedWeightedSum`].
///
/// # Safety
/// See that type.
unsafe fn quantized_weighted_sum(
    weights: &[f32],
    values: QuantizedValues<'_>,
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    let mut scales = [0.0f32; PAGE];
    for (scale, &half) in scales[..positions].iter_mut().zip(values.scales) {
        *scale = half::f16::from_bits(half).to_f32();
    }
    for (block, output) in output.chunks_mut(ROWS * head_dim).enumerate() {
        let mut scaled = [[0.0f32; PAGE]; ROWS];
        let rows = output.len() / head_dim;
        for (row, scaled) in scaled.iter_mut().take(rows).enumerate() {
            let weights = &weights[(block * ROWS + row) * CHUNK..][..positions];
            for ((scaled, weight), scale) in scaled.iter_mut().zip(weights).zip(&scales) {
                *scaled = weight * scale;
            }
        }
        let weights = Weights {
            from: scaled.as_flattened().as_ptr(),
            stride: PAGE,
            positions,
        };
        // SAFETY: the caller owes the values of the positions.
        unsafe { weighted_block(weights, values.levels.as_ptr(), head_dim, output) };
    }
}

/// The weighted sum of up to [`ROWS`] rows, as many as `output` has.
///
/// # Safety
/// `weights` and `values` must point to the rows' weights and the positions' values.
#[inline(always)]
unsafe fn weighted_block(weights: Weights, values: impl Load, head_dim: usize, output: &mut [f32]) {
    let rows = output.len() / head_dim;
    let output = output.as_mut_ptr();
    // SAFETY: passed on; the output has the rows.
    unsafe {
        match rows {
            1 => weighted_rows::<1, 8>(weights, values, head_dim, output),
            2 => weighted_rows::<2, 4>(weights, values, head_dim, output),
            3 => weighted_rows::<3, 2>(weights, values, head_dim, output),
            4 => weighted_rows::<4, 2>(weights, values, head_dim, output),
            _ => {}
        }
    }
}

/// The weighted sum of `R` rows, `8 * D` columns at a time.
///
/// # Safety
/// `weights`, `values` and `output` must point to the rows' weights, the positions' values and the rows' outputs.
#[inline(always)]
unsafe fn weighted_rows<const R: usize, const D: usize>(
    weights: Weights,
    values: impl Load,
    head_dim: usize,
    output: *mut f32,
) {
    let mut done = 0;
    // SAFETY: columns from `done` on, below `head_dim`, are the caller's.
    unsafe {
        while done + 8 * D <= head_dim {
            weighted_columns::<R, D>(weights, values, head_dim, done, output);
            done += 8 * D;
        }
        while done + 8 <= head_dim {
            weighted_columns::<R, 1>(weights, values, head_dim, done, output);
            done += 8;
        }
        for row in 0..R {
            for column in done..head_dim {
                let output = output.add(row * head_dim + column);
                for position in 0..weights.positions {
                    let weight = *weights.from.add(row * weights.stride + position);
                    let value = values.one(position * head_dim + column);
                    *output = libm::fmaf(weight, value, *output);
                }
            }
        }
    }
}

/// The weighted sum of `R` rows in `8 * D` columns from `first` on.
///
/// # Safety
/// See [`weighted_rows`]; the columns must exist.
#[inline(always)]
unsafe fn weighted_columns<const R: usize, const D: usize>(
    weights: Weights,
    values: impl Load,
    head_dim: usize,
    first: usize,
    output: *mut f32,
) {
    let mut sums = [[[vdupq_n_f32(0.0); 2]; D]; R];
    // SAFETY: the caller owes the output, the columns at every position, and the weights.
    unsafe {
        for (row, sums) in sums.iter_mut().enumerate() {
            let output = output.add(row * head_dim + first);
            for (index, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                *sum = vld1q_f32(output.add(4 * index));
            }
        }
        for position in 0..weights.positions {
            let mut value = [[vdupq_n_f32(0.0); 2]; D];
            for (index, value) in value.iter_mut().enumerate() {
                *value = values.eight(position * head_dim + first + 8 * index);
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = *weights.from.add(row * weights.stride + position);
                for (sums, value) in sums.iter_mut().zip(value) {
                    sums[0] = vfmaq_n_f32(sums[0], value[0], weight);
                    sums[1] = vfmaq_n_f32(sums[1], value[1], weight);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let output = output.add(row * head_dim + first);
            for (index, &sum) in sums.as_flattened().iter().enumerate() {
                vst1q_f32(output.add(4 * index), sum);
            }
        }
    }
}
