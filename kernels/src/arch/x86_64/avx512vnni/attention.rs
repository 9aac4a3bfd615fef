//! Attention over a page, see [`crate::op::attention`].
//!
//! Rows are taken in blocks, so that a vector of keys or values is converted once for all rows of a block. Tiles of keys
//! are taken one after the other, although two at a time would hide the latency of few rows' additions: a single stream
//! arrives from memory in half the time of several (measured on Zen 4, where it was 3.5 and 5.2 microseconds a chunk).

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
    add_parts,
    merge,
    quantize_head,
    quantize_key,
    quantize_query,
};

/// Rows of a block.
const ROWS: usize = 8;

/// Calls `$kernel::<rows>` with a constant number of rows.
macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $arguments:tt) => {
        match $rows {
            1 => $kernel::<1> $arguments,
            2 => $kernel::<2> $arguments,
            3 => $kernel::<3> $arguments,
            4 => $kernel::<4> $arguments,
            5 => $kernel::<5> $arguments,
            6 => $kernel::<6> $arguments,
            7 => $kernel::<7> $arguments,
            _ => $kernel::<8> $arguments,
        }
    };
}

/// Calls `$kernel::<rows, columns>` with a constant number of rows, and of vectors of columns that fit the registers.
macro_rules! by_rows_and_columns {
    ($rows:expr, $kernel:ident, $arguments:tt) => {
        match $rows {
            1 => $kernel::<1, 4> $arguments,
            2 => $kernel::<2, 4> $arguments,
            3 => $kernel::<3, 4> $arguments,
            4 => $kernel::<4, 4> $arguments,
            5 => $kernel::<5, 2> $arguments,
            6 => $kernel::<6, 2> $arguments,
            7 => $kernel::<7, 2> $arguments,
            _ => $kernel::<8, 2> $arguments,
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
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
unsafe fn score_rows<const R: usize>(
    queries: &[*const f32; ROWS],
    dims: usize,
    keys: *const u16,
    tiles: usize,
    scale: f32,
    scores: *mut f32,
) {
    let scale = _mm512_set1_ps(scale);
    for tile in 0..tiles {
        let mut sums = [_mm512_setzero_ps(); R];
        for dim in 0..dims {
            // SAFETY: the caller owes the tiles.
            let key = unsafe { halves(keys.add((tile * dims + dim) * TILE)) };
            for (sum, query) in sums.iter_mut().zip(queries) {
                // SAFETY: the caller owes the rows.
                let query = _mm512_set1_ps(unsafe { *query.add(dim) });
                *sum = _mm512_fmadd_ps(query, key, *sum);
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
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
            by_rows!(count, quantized_score_rows, (block, keys, scale, output));
        }
    }
}

/// Scores of `R` rows.
///
/// # Safety
/// The slices must hold `R` rows and the tiles; `scores` must point to the scores of the rows.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn quantized_score_rows<const R: usize>(
    queries: QuantizedQueries<'_>,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: *mut f32,
) {
    let (row_levels, groups) = (key_levels(keys.head_dim), key_groups(keys.head_dim));
    // Biased by 128, keys are unsigned; the offsets take that off again.
    let bias = _mm512_set1_epi8(i8::MIN);
    let scale = _mm512_set1_ps(scale);
    for tile in 0..keys.tiles {
        let mut sums = [_mm512_setzero_ps(); R];
        for group in 0..groups {
            let mut integers = [_mm512_set1_epi32(0); R];
            for (row, integer) in integers.iter_mut().enumerate() {
                // SAFETY: the caller owes the rows.
                *integer = _mm512_set1_epi32(unsafe {
                    *queries.offsets.get_unchecked(row * groups + group)
                });
            }
            let end = ((group + 1) * GROUP).min(row_levels);
            for dim in (group * GROUP..end).step_by(4) {
                // SAFETY: the caller owes the tiles, of `row_levels * TILE` levels each.
                let levels = unsafe {
                    let from = keys.levels.as_ptr().add((tile * row_levels + dim) * TILE);
                    _mm512_loadu_si512(from.cast::<__m512i>())
                };
                let key = _mm512_xor_si512(levels, bias);
                for (row, integer) in integers.iter_mut().enumerate() {
                    // SAFETY: the caller owes the rows, whose levels are a multiple of four.
                    let query = unsafe {
                        let from = queries.levels.as_ptr().add(row * row_levels + dim);
                        _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
                    };
                    *integer = _mm512_dpbusd_epi32(*integer, key, query);
                }
            }
            // SAFETY: the caller owes the scales of the tiles.
            let key_scale = unsafe {
                let from = keys.scales.as_ptr();
                halves(from.add((tile * groups + group) * TILE))
            };
            for (row, (sum, integer)) in sums.iter_mut().zip(integers).enumerate() {
                // SAFETY: the caller owes the rows.
                let query_scale =
                    _mm512_set1_ps(unsafe { *queries.scales.get_unchecked(row * groups + group) });
                let factor = _mm512_mul_ps(query_scale, key_scale);
                *sum = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(integer), *sum);
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
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
            by_rows_and_columns!(
                rows,
                weighted_rows,
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
