//! Attention over a page, see [`crate::op::attention`].
//!
//! Rows are taken in blocks, so that a vector of keys or values is converted once for all rows of a block, and so that
//! there are enough sums at a time to hide the latency of an addition.

use crate::op::attention::{
    CHUNK, GROUP, Kernels, PAGE, QuantizedKeys, QuantizedQueries, QuantizedValues, Queries, TILE,
    key_groups, key_levels,
};
use core::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm256_loadu_si256,
    _mm256_maskz_loadu_epi16, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_xor_si512,
};

crate::arch::portable_attention!("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

/// The kernels.
pub(crate) const KERNELS: Kernels = Kernels {
    scores,
    quantized_scores,
    weighted_sum,
    quantized_weighted_sum,
    weigh,
    merge,
    quantize_head,
    quantize_key,
    quantize_query,
};

/// Rows of a block.
const ROWS: usize = 8;

/// Calls `$kernel::<rows, wide>` with a constant number of rows: of one or two, of up to four, or of more.
macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $one:literal, $few:literal, $many:literal, $arguments:tt) => {
        match $rows {
            1 => $kernel::<1, $one> $arguments,
            2 => $kernel::<2, $one> $arguments,
            3 => $kernel::<3, $few> $arguments,
            4 => $kernel::<4, $few> $arguments,
            5 => $kernel::<5, $many> $arguments,
            6 => $kernel::<6, $many> $arguments,
            7 => $kernel::<7, $many> $arguments,
            _ => $kernel::<8, $many> $arguments,
        }
    };
}

/// Sixteen halves at `from` as floats.
///
/// # Safety
/// 32 bytes must be readable.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
unsafe fn halves(from: *const u16) -> __m512 {
    // SAFETY: the caller owes the bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
}

/// [`crate::op::attention::Scores`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
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
            by_rows!(
                count,
                score_rows,
                4,
                2,
                2,
                (&pointers, dims, keys.as_ptr(), tiles, scale, output)
            );
        }
    }
}

/// Scores of `R` rows, `T` tiles at a time.
///
/// # Safety
/// `queries` must point to `R` rows of `dims` elements, `keys` to the tiles, `scores` to the scores of the rows.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
unsafe fn score_rows<const R: usize, const T: usize>(
    queries: &[*const f32; ROWS],
    dims: usize,
    keys: *const u16,
    tiles: usize,
    scale: f32,
    scores: *mut f32,
) {
    let mut tile = 0;
    // SAFETY: the tiles from `tile` on are the caller's.
    unsafe {
        while tile + T <= tiles {
            let (keys, scores) = (keys.add(tile * TILE * dims), scores.add(tile * TILE));
            score_tiles::<R, T>(queries, dims, keys, scale, scores);
            tile += T;
        }
        while tile < tiles {
            let (keys, scores) = (keys.add(tile * TILE * dims), scores.add(tile * TILE));
            score_tiles::<R, 1>(queries, dims, keys, scale, scores);
            tile += 1;
        }
    }
}

/// Scores of `R` rows at `T` tiles.
///
/// # Safety
/// See [`score_rows`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
unsafe fn score_tiles<const R: usize, const T: usize>(
    queries: &[*const f32; ROWS],
    dims: usize,
    keys: *const u16,
    scale: f32,
    scores: *mut f32,
) {
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for dim in 0..dims {
        let mut key = [_mm512_setzero_ps(); T];
        for (tile, key) in key.iter_mut().enumerate() {
            // SAFETY: the caller owes the tiles.
            *key = unsafe { halves(keys.add((tile * dims + dim) * TILE)) };
        }
        for (sums, query) in sums.iter_mut().zip(queries) {
            // SAFETY: the caller owes the rows.
            let query = _mm512_set1_ps(unsafe { *query.add(dim) });
            for (sum, key) in sums.iter_mut().zip(key) {
                *sum = _mm512_fmadd_ps(query, key, *sum);
            }
        }
    }
    let scale = _mm512_set1_ps(scale);
    for (row, sums) in sums.into_iter().enumerate() {
        for (tile, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller owes the scores.
            unsafe {
                _mm512_storeu_ps(
                    scores.add(row * CHUNK + tile * TILE),
                    _mm512_mul_ps(scale, sum),
                );
            }
        }
    }
}

/// [`crate::op::attention::QuantizedScores`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
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
            by_rows!(
                count,
                quantized_score_rows,
                2,
                2,
                1,
                (block, keys, scale, output)
            );
        }
    }
}

/// Scores of `R` rows, `T` tiles at a time.
///
/// # Safety
/// The slices must hold `R` rows and the tiles; `scores` must point to the scores of the rows.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn quantized_score_rows<const R: usize, const T: usize>(
    queries: QuantizedQueries<'_>,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: *mut f32,
) {
    let mut tile = 0;
    // SAFETY: the tiles from `tile` on are the caller's.
    unsafe {
        while tile + T <= keys.tiles {
            quantized_score_tiles::<R, T>(queries, keys, tile, scale, scores);
            tile += T;
        }
        while tile < keys.tiles {
            quantized_score_tiles::<R, 1>(queries, keys, tile, scale, scores);
            tile += 1;
        }
    }
}

/// Scores of `R` rows at `T` tiles from `first` on.
///
/// # Safety
/// See [`quantized_score_rows`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn quantized_score_tiles<const R: usize, const T: usize>(
    queries: QuantizedQueries<'_>,
    keys: QuantizedKeys<'_>,
    first: usize,
    scale: f32,
    scores: *mut f32,
) {
    let (row_levels, groups) = (key_levels(keys.head_dim), key_groups(keys.head_dim));
    // Biased by 128, keys are unsigned; the offsets take that off again.
    let bias = _mm512_set1_epi8(i8::MIN);
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for group in 0..groups {
        let mut integers = [[_mm512_set1_epi32(0); T]; R];
        for (row, integers) in integers.iter_mut().enumerate() {
            // SAFETY: the caller owes the rows.
            let offset = unsafe { *queries.offsets.get_unchecked(row * groups + group) };
            *integers = [_mm512_set1_epi32(offset); T];
        }
        let end = ((group + 1) * GROUP).min(row_levels);
        for dim in (group * GROUP..end).step_by(4) {
            let mut key = [bias; T];
            for (tile, key) in key.iter_mut().enumerate() {
                // SAFETY: the caller owes the tiles, of `row_levels * TILE` levels each.
                let levels = unsafe {
                    let from = keys.levels.as_ptr();
                    _mm512_loadu_si512(
                        from.add((first + tile) * TILE * row_levels + dim * TILE)
                            .cast::<__m512i>(),
                    )
                };
                *key = _mm512_xor_si512(levels, bias);
            }
            for (row, integers) in integers.iter_mut().enumerate() {
                // SAFETY: the caller owes the rows, whose levels are a multiple of four.
                let query = unsafe {
                    let from = queries.levels.as_ptr().add(row * row_levels + dim);
                    _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
                };
                for (integer, key) in integers.iter_mut().zip(key) {
                    *integer = _mm512_dpbusd_epi32(*integer, key, query);
                }
            }
        }
        let mut key_scales = [_mm512_setzero_ps(); T];
        for (tile, key_scale) in key_scales.iter_mut().enumerate() {
            // SAFETY: the caller owes the scales of the tiles.
            *key_scale = unsafe {
                let from = keys.scales.as_ptr();
                halves(from.add(((first + tile) * groups + group) * TILE))
            };
        }
        for (row, (sums, integers)) in sums.iter_mut().zip(integers).enumerate() {
            // SAFETY: the caller owes the rows.
            let query_scale =
                _mm512_set1_ps(unsafe { *queries.scales.get_unchecked(row * groups + group) });
            for ((sum, integer), key_scale) in sums.iter_mut().zip(integers).zip(key_scales) {
                let factor = _mm512_mul_ps(query_scale, key_scale);
                *sum = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(integer), *sum);
            }
        }
    }
    let scale = _mm512_set1_ps(scale);
    for (row, sums) in sums.into_iter().enumerate() {
        for (tile, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller owes the scores.
            unsafe {
                _mm512_storeu_ps(
                    scores.add(row * CHUNK + (first + tile) * TILE),
                    _mm512_mul_ps(scale, sum),
                );
            }
        }
    }
}

/// Values that weighted sums read.
trait Load: Copy {
    /// The sixteen from `at` on, as floats.
    ///
    /// # Safety
    /// AVX-512 must be supported, and they must be there.
    unsafe fn load(self, at: usize) -> __m512;

    /// Those of them that `mask` says; the others are zero and not touched.
    ///
    /// # Safety
    /// As for [`Load::load`].
    unsafe fn load_masked(self, at: usize, mask: u16) -> __m512;
}

impl Load for *const u16 {
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn load(self, at: usize) -> __m512 {
        // SAFETY: the caller owes the values.
        unsafe { halves(self.add(at)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn load_masked(self, at: usize, mask: u16) -> __m512 {
        // SAFETY: the caller owes the values that the mask names.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, self.add(at).cast()) })
    }
}

impl Load for *const i8 {
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn load(self, at: usize) -> __m512 {
        // SAFETY: the caller owes the values.
        let levels = unsafe { _mm_loadu_si128(self.add(at).cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn load_masked(self, at: usize, mask: u16) -> __m512 {
        // SAFETY: the caller owes the values that the mask names.
        let levels = unsafe { _mm_maskz_loadu_epi8(mask, self.add(at)) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels))
    }
}

/// [`crate::op::attention::WeightedSum`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
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
            by_rows!(
                rows,
                weighted_rows,
                4,
                4,
                2,
                (weights, values.as_ptr(), head_dim, output)
            );
        }
    }
}

/// [`crate::op::attention::QuantizedWeightedSum`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn quantized_weighted_sum(
    weights: &[f32],
    values: QuantizedValues<'_>,
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    for (block, output) in output.chunks_mut(ROWS * head_dim).enumerate() {
        let rows = output.len() / head_dim;
        let mut scaled = [[0.0f32; PAGE]; ROWS];
        for at in (0..positions).step_by(16) {
            let mask = mask_of(positions - at);
            // SAFETY: the mask names positions below `positions` only, which the caller owes.
            let scales = unsafe {
                let from = values.scales.as_ptr().add(at);
                _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast()))
            };
            for (row, scaled) in scaled.iter_mut().take(rows).enumerate() {
                let weights = &weights[(block * ROWS + row) * CHUNK + at..];
                // SAFETY: as above; `scaled` has a page of positions.
                unsafe {
                    let weights = _mm512_maskz_loadu_ps(mask, weights.as_ptr());
                    let to = scaled.as_mut_ptr().add(at);
                    _mm512_mask_storeu_ps(to, mask, _mm512_mul_ps(weights, scales));
                }
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
            by_rows!(
                rows,
                weighted_rows,
                4,
                4,
                2,
                (weights, values.levels.as_ptr(), head_dim, output)
            );
        }
    }
}

/// The first of sixteen lanes, as many as `count` says.
#[inline]
fn mask_of(count: usize) -> u16 {
    if count < 16 {
        (1 << count) - 1
    } else {
        u16::MAX
    }
}

/// Weights of rows that begin `stride` apart.
#[derive(Clone, Copy)]
struct Weights {
    from: *const f32,
    stride: usize,
    positions: usize,
}

/// The weighted sum of `R` rows, `16 * D` columns at a time.
///
/// # Safety
/// `weights`, `values` and `output` must point to the rows' weights, the positions' values and the rows' outputs.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
unsafe fn weighted_rows<const R: usize, const D: usize>(
    weights: Weights,
    values: impl Load,
    head_dim: usize,
    output: *mut f32,
) {
    let mut done = 0;
    // SAFETY: columns from `done` on, below `head_dim`, are the caller's.
    unsafe {
        while done + 16 * D <= head_dim {
            weighted_columns::<R, D, false>(weights, values, head_dim, done, output);
            done += 16 * D;
        }
        while done + 16 <= head_dim {
            weighted_columns::<R, 1, false>(weights, values, head_dim, done, output);
            done += 16;
        }
        if done < head_dim {
            weighted_columns::<R, 1, true>(weights, values, head_dim, done, output);
        }
    }
}

/// The weighted sum of `R` rows in `16 * D` columns from `first` on, or, if `LAST`, in those that are left.
///
/// # Safety
/// See [`weighted_rows`]; the columns must exist.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
unsafe fn weighted_columns<const R: usize, const D: usize, const LAST: bool>(
    weights: Weights,
    values: impl Load,
    head_dim: usize,
    first: usize,
    output: *mut f32,
) {
    let mask = mask_of(if LAST { head_dim - first } else { 16 });
    let mut sums = [[_mm512_setzero_ps(); D]; R];
    for (row, sums) in sums.iter_mut().enumerate() {
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller owes the output.
            unsafe {
                let from = output.add(row * head_dim + first + index * 16);
                *sum = if LAST {
                    _mm512_maskz_loadu_ps(mask, from)
                } else {
                    _mm512_loadu_ps(from)
                };
            }
        }
    }
    for position in 0..weights.positions {
        let mut value = [_mm512_setzero_ps(); D];
        for (index, value) in value.iter_mut().enumerate() {
            let at = position * head_dim + first + index * 16;
            // SAFETY: the caller owes the columns at this position.
            *value = unsafe {
                if LAST {
                    values.load_masked(at, mask)
                } else {
                    values.load(at)
                }
            };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller owes the weights.
            let weight =
                _mm512_set1_ps(unsafe { *weights.from.add(row * weights.stride + position) });
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = _mm512_fmadd_ps(weight, value, *sum);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (index, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller owes the output.
            unsafe {
                let to = output.add(row * head_dim + first + index * 16);
                if LAST {
                    _mm512_mask_storeu_ps(to, mask, sum);
                } else {
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}
