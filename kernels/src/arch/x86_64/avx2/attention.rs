//! Attention over a page, see [`crate::op::attention`].

use crate::op::attention::TILE;
use core::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_broadcast_ss, _mm256_cvtph_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

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
pub(crate) unsafe fn scores(query: &[f32], keys: &[u16], scale: f32, scores: &mut [f32]) {
    let tile_elements = TILE * query.len();
    assert!(
        keys.len() >= scores.len().div_ceil(TILE) * tile_elements,
        "keys cover the positions"
    );
    let scale = _mm256_set1_ps(scale);
    for (tile, scores) in scores.chunks_mut(TILE).enumerate() {
        let keys = keys[tile * tile_elements..].as_ptr();
        let (mut first, mut second) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for (dim, q) in query.iter().enumerate() {
            let q = _mm256_broadcast_ss(q);
            // SAFETY: each dimension of the tile has TILE halves, within the length asserted above.
            let (low, high) = unsafe {
                (
                    halves(keys.add(dim * TILE)),
                    halves(keys.add(dim * TILE + 8)),
                )
            };
            first = _mm256_fmadd_ps(q, low, first);
            second = _mm256_fmadd_ps(q, high, second);
        }
        let mut tile_scores = [0.0f32; TILE];
        // SAFETY: the array has TILE elements.
        unsafe {
            _mm256_storeu_ps(tile_scores.as_mut_ptr(), _mm256_mul_ps(scale, first));
            _mm256_storeu_ps(
                tile_scores.as_mut_ptr().add(8),
                _mm256_mul_ps(scale, second),
            );
        }
        scores.copy_from_slice(&tile_scores[..scores.len()]);
    }
}

/// [`crate::op::attention::WeightedSum`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn weighted_sum(weights: &[f32], values: &[u16], output: &mut [f32]) {
    let dims = output.len();
    assert!(
        values.len() >= weights.len() * dims,
        "values cover the positions"
    );
    let (mut done, mut rest) = (0, output);
    while rest.len() >= 64 {
        let (chunk, after) = rest.split_at_mut(64);
        // SAFETY: columns `done .. done + 64` of every position exist.
        unsafe {
            weighted_columns::<8>(weights, values.as_ptr().add(done), dims, chunk.as_mut_ptr());
        };
        (done, rest) = (done + 64, after);
    }
    while rest.len() >= 8 {
        let (chunk, after) = rest.split_at_mut(8);
        // SAFETY: columns `done .. done + 8` of every position exist.
        unsafe {
            weighted_columns::<1>(weights, values.as_ptr().add(done), dims, chunk.as_mut_ptr());
        };
        (done, rest) = (done + 8, after);
    }
    for (index, output) in rest.iter_mut().enumerate() {
        for (position, &weight) in weights.iter().enumerate() {
            let value = half::f16::from_bits(values[position * dims + done + index]).to_f32();
            *output = libm::fmaf(weight, value, *output);
        }
    }
}

/// `8 * N` columns of the weighted sum.
///
/// # Safety
/// `values` must be readable for them at every position, `dims` apart; `output` writable for them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weighted_columns<const N: usize>(
    weights: &[f32],
    values: *const u16,
    dims: usize,
    output: *mut f32,
) {
    let mut sums = [_mm256_setzero_ps(); N];
    for (index, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller owes the output.
        *sum = unsafe { _mm256_loadu_ps(output.add(index * 8)) };
    }
    for (position, weight) in weights.iter().enumerate() {
        let weight = _mm256_broadcast_ss(weight);
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller owes the columns at this position.
            *sum = _mm256_fmadd_ps(
                weight,
                unsafe { halves(values.add(position * dims + index * 8)) },
                *sum,
            );
        }
    }
    for (index, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller owes the output.
        unsafe { _mm256_storeu_ps(output.add(index * 8), sum) };
    }
}
