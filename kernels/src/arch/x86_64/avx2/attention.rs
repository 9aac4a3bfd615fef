//! Attention over a page, see [`crate::op::attention`].
//!
//! Rows are taken in blocks, so that a vector of keys or values is converted once for all rows of a block. Tiles of keys
//! are taken one after the other, although several at a time would hide the latency of few rows' additions: a single
//! stream arrives from memory sooner than several.

use crate::op::attention::{
    CHUNK, GROUP, Kernels, PAGE, QuantizedKeys, QuantizedQueries, QuantizedValues, Queries, TILE,
    key_groups, key_levels,
};
use core::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi32,
    _mm256_broadcast_ss, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_sign_epi8, _mm256_storeu_ps,
};

crate::arch::portable_attention!("avx2,fma,f16c");

/// The kernels.
pub(crate) const KERNELS: Kernels = Kernels {
    scores,
    quantized_scores,
    weighted_sum,
    quantized_weighted_sum,
    weigh,
    add_parts,
    merge,
    quantize_head,
    quantize_key,
    quantize_query,
};

/// Rows of a block.
const ROWS: usize = 4;

/// Vectors of a tile.
const PARTS: usize = 2;

/// Calls `$kernel::<rows>` with a constant number of rows.
macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $arguments:tt) => {
        match $rows {
            1 => $kernel::<1> $arguments,
            2 => $kernel::<2> $arguments,
            3 => $kernel::<3> $arguments,
            _ => $kernel::<4> $arguments,
        }
    };
}

/// Calls `$kernel::<rows, columns>` with a constant number of rows, and of vectors of columns that fit the registers.
macro_rules! by_rows_and_columns {
    ($rows:expr, $kernel:ident, $arguments:tt) => {
        match $rows {
            1 => $kernel::<1, 8> $arguments,
            2 => $kernel::<2, 4> $arguments,
            3 => $kernel::<3, 2> $arguments,
            _ => $kernel::<4, 2> $arguments,
        }
    };
}

/// Eight halves at `from` as floats.
///
/// # Safety
/// Sixteen bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(from: *const u16) -> __m256 {
    // SAFETY: the caller owes the bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
}

/// [`crate::op::attention::Scores`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn scores(
    queries: Queries<'_>,
    keys: &[u16],
    tiles: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let rows = queries.rows();
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        let mut pointers = [core::ptr::null(); ROWS];
        for (index, pointer) in pointers.iter_mut().take(count).enumerate() {
            *pointer = queries.row(first + index).as_ptr();
        }
        let output = scores[first * CHUNK..].as_mut_ptr();
        let dims = queries.head_dim;
        // SAFETY: the caller owes the tiles and the scores; the first `count` pointers are to rows of `dims` elements.
        unsafe {
            let keys = keys.as_ptr();
            by_rows!(
                count,
                score_rows,
                (&pointers, dims, keys, tiles, scale, output)
            );
        }
    }
}

/// Scores of `R` rows.
///
/// # Safety
/// `queries` must point to `R` rows of `dims` elements, `keys` to the tiles, `scores` to the scores of the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_rows<const R: usize>(
    queries: &[*const f32; ROWS],
    dims: usize,
    keys: *const u16,
    tiles: usize,
    scale: f32,
    scores: *mut f32,
) {
    for tile in 0..tiles {
        let mut sums = [[_mm256_setzero_ps(); PARTS]; R];
        for dim in 0..dims {
            // SAFETY: the caller owes the tiles.
            let key = unsafe {
                let from = keys.add((tile * dims + dim) * TILE);
                [halves(from), halves(from.add(8))]
            };
            for (sums, query) in sums.iter_mut().zip(queries) {
                // SAFETY: the caller owes the rows.
                let query = _mm256_broadcast_ss(unsafe { &*query.add(dim) });
                for (sum, key) in sums.iter_mut().zip(key) {
                    *sum = _mm256_fmadd_ps(query, key, *sum);
                }
            }
        }
        // SAFETY: the caller owes the scores.
        unsafe { store_scores(&sums, scale, scores.add(tile * TILE)) };
    }
}

/// Writes the sums of `R` rows at a tile, times `scale`.
///
/// # Safety
/// `scores` must point to the scores of the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_scores<const R: usize>(sums: &[[__m256; PARTS]; R], scale: f32, scores: *mut f32) {
    let scale = _mm256_set1_ps(scale);
    for (row, sums) in sums.iter().enumerate() {
        for (index, sum) in sums.iter().enumerate() {
            // SAFETY: the caller owes the scores.
            unsafe {
                _mm256_storeu_ps(
                    scores.add(row * CHUNK + index * 8),
                    _mm256_mul_ps(scale, *sum),
                );
            }
        }
    }
}

/// [`crate::op::attention::QuantizedScores`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn quantized_scores(
    queries: QuantizedQueries<'_>,
    rows: usize,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    let (stride, groups) = (key_levels(keys.head_dim), key_groups(keys.head_dim));
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        let block = QuantizedQueries {
            levels: &queries.levels[first * stride..],
            scales: &queries.scales[first * groups..],
            offsets: &queries.offsets[first * groups..],
        };
        let output = scores[first * CHUNK..].as_mut_ptr();
        // SAFETY: the caller owes `count` rows from `first` on, the tiles and the scores.
        unsafe {
            by_rows!(count, quantized_score_rows, (block, keys, scale, output));
        }
    }
}

/// Scores of `R` rows.
///
/// # Safety
/// The slices must hold `R` rows and the tiles; `scores` must point to the scores of the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantized_score_rows<const R: usize>(
    queries: QuantizedQueries<'_>,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: *mut f32,
) {
    let (row_levels, groups) = (key_levels(keys.head_dim), key_groups(keys.head_dim));
    let ones = _mm256_set1_epi16(1);
    for tile in 0..keys.tiles {
        let mut sums = [[_mm256_setzero_ps(); PARTS]; R];
        for group in 0..groups {
            let mut integers = [[_mm256_setzero_si256(); PARTS]; R];
            let end = ((group + 1) * GROUP).min(row_levels);
            for dim in (group * GROUP..end).step_by(4) {
                // SAFETY: the caller owes the tiles, of `row_levels * TILE` levels each.
                let key = unsafe {
                    let from = keys.levels.as_ptr().add((tile * row_levels + dim) * TILE);
                    [
                        _mm256_loadu_si256(from.cast::<__m256i>()),
                        _mm256_loadu_si256(from.add(32).cast::<__m256i>()),
                    ]
                };
                for (row, integers) in integers.iter_mut().enumerate() {
                    // SAFETY: the caller owes the rows, whose levels are a multiple of four.
                    let query = unsafe {
                        let from = queries.levels.as_ptr().add(row * row_levels + dim);
                        _mm256_set1_epi32(from.cast::<i32>().read_unaligned())
                    };
                    for (integer, key) in integers.iter_mut().zip(key) {
                        // Levels are within ±127, so two products fit 16 bits.
                        let pairs = _mm256_maddubs_epi16(
                            _mm256_abs_epi8(key),
                            _mm256_sign_epi8(query, key),
                        );
                        *integer = _mm256_add_epi32(*integer, _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            // SAFETY: the caller owes the scales of the tiles.
            let key_scale = unsafe {
                let from = keys.scales.as_ptr().add((tile * groups + group) * TILE);
                [halves(from), halves(from.add(8))]
            };
            for (row, (sums, integers)) in sums.iter_mut().zip(integers).enumerate() {
                // SAFETY: the caller owes the rows.
                let query_scale =
                    _mm256_set1_ps(unsafe { *queries.scales.get_unchecked(row * groups + group) });
                for ((sum, integer), key_scale) in sums.iter_mut().zip(integers).zip(key_scale) {
                    let factor = _mm256_mul_ps(query_scale, key_scale);
                    *sum = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(integer), *sum);
                }
            }
        }
        // SAFETY: the caller owes the scores.
        unsafe { store_scores(&sums, scale, scores.add(tile * TILE)) };
    }
}

/// Values that weighted sums read.
trait Load: Copy {
    /// The eight from `at` on, as floats.
    ///
    /// # Safety
    /// The instruction set must be supported, and they must be there.
    unsafe fn load(self, at: usize) -> __m256;

    /// The one at `at`.
    ///
    /// # Safety
    /// It must be there.
    unsafe fn one(self, at: usize) -> f32;
}

impl Load for *const u16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(self, at: usize) -> __m256 {
        // SAFETY: the caller owes the values.
        unsafe { halves(self.add(at)) }
    }

    #[inline]
    unsafe fn one(self, at: usize) -> f32 {
        // SAFETY: the caller owes the value.
        half::f16::from_bits(unsafe { *self.add(at) }).to_f32()
    }
}

impl Load for *const i8 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(self, at: usize) -> __m256 {
        // SAFETY: the caller owes the values.
        let levels = unsafe { _mm_loadl_epi64(self.add(at).cast()) };
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels))
    }

    #[inline]
    unsafe fn one(self, at: usize) -> f32 {
        // SAFETY: the caller owes the value.
        f32::from(unsafe { *self.add(at) })
    }
}

/// [`crate::op::attention::WeightedSum`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn weighted_sum(
    weights: &[f32],
    values: &[u16],
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    for (block, output) in output.chunks_mut(ROWS * head_dim).enumerate() {
        let rows = output.len() / head_dim;
        let weights = Weights {
            from: weights[block * ROWS * CHUNK..].as_ptr(),
            stride: CHUNK,
            positions,
        };
        let output = output.as_mut_ptr();
        // SAFETY: the caller owes the weights and values of the positions; the output is `rows` rows.
        unsafe {
            by_rows_and_columns!(
                rows,
                weighted_rows,
                (weights, values.as_ptr(), head_dim, output)
            );
        }
    }
}

/// [`crate::op::attention::QuantizedWeightedSum`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn quantized_weighted_sum(
    weights: &[f32],
    values: QuantizedValues<'_>,
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    let mut scales = [0.0f32; PAGE];
    let (eights, _) = values.scales[..positions].as_chunks::<8>();
    for (scales, halves_of) in scales.chunks_exact_mut(8).zip(eights) {
        // SAFETY: both have eight elements.
        unsafe { _mm256_storeu_ps(scales.as_mut_ptr(), halves(halves_of.as_ptr())) };
    }
    for (scale, &bits) in scales
        .iter_mut()
        .zip(&values.scales[..positions])
        .skip(eights.len() * 8)
    {
        *scale = half::f16::from_bits(bits).to_f32();
    }
    for (block, output) in output.chunks_mut(ROWS * head_dim).enumerate() {
        let rows = output.len() / head_dim;
        let mut scaled = [[0.0f32; PAGE]; ROWS];
        for (row, scaled) in scaled.iter_mut().take(rows).enumerate() {
            let weights = &weights[(block * ROWS + row) * CHUNK..][..positions];
            for ((scaled, weight), scale) in scaled.iter_mut().zip(weights).zip(&scales) {
                *scaled = weight * scale;
            }
        }
        let weights = Weights {
            from: scaled.as_ptr().cast(),
            stride: PAGE,
            positions,
        };
        let output = output.as_mut_ptr();
        // SAFETY: the caller owes the values of the positions; the output is `rows` rows.
        unsafe {
            by_rows_and_columns!(
                rows,
                weighted_rows,
                (weights, values.levels.as_ptr(), head_dim, output)
            );
        }
    }
}

/// Weights of rows that begin `stride` apart.
#[derive(Clone, Copy)]
struct Weights {
    from: *const f32,
    stride: usize,
    positions: usize,
}

/// The weighted sum of `R` rows, `8 * D` columns at a time.
///
/// # Safety
/// `weights`, `values` and `output` must point to the rows' weights, the positions' values and the rows' outputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weighted_columns<const R: usize, const D: usize>(
    weights: Weights,
    values: impl Load,
    head_dim: usize,
    first: usize,
    output: *mut f32,
) {
    let mut sums = [[_mm256_setzero_ps(); D]; R];
    for (row, sums) in sums.iter_mut().enumerate() {
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller owes the output.
            *sum = unsafe { _mm256_loadu_ps(output.add(row * head_dim + first + index * 8)) };
        }
    }
    for position in 0..weights.positions {
        let mut value = [_mm256_setzero_ps(); D];
        for (index, value) in value.iter_mut().enumerate() {
            // SAFETY: the caller owes the columns at this position.
            *value = unsafe { values.load(position * head_dim + first + index * 8) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller owes the weights.
            let weight =
                _mm256_broadcast_ss(unsafe { &*weights.from.add(row * weights.stride + position) });
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = _mm256_fmadd_ps(weight, value, *sum);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (index, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller owes the output.
            unsafe { _mm256_storeu_ps(output.add(row * head_dim + first + index * 8), sum) };
        }
    }
}
