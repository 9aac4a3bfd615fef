//! Products of unquantized weights, see [`crate::op::matmul`].

use crate::op::LANES;
use crate::op::matmul::Product;
use core::arch::x86_64::{
    __m128i, __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps,
    _mm_shuffle_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_setzero_ps, _mm256_slli_epi32,
};

/// How sixteen consecutive weights become two vectors of floats.
trait Weights {
    const BYTES: usize;
    /// # Safety
    /// Sixteen weights must be readable at `from`, and the instruction set supported.
    unsafe fn sixteen(from: *const u8) -> [__m256; 2];
}

struct Single;
struct Half;
struct Brain;

impl Weights for Single {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller owes 64 bytes.
        unsafe {
            [
                _mm256_loadu_ps(from.cast()),
                _mm256_loadu_ps(from.add(32).cast()),
            ]
        }
    }
}

impl Weights for Half {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller owes 32 bytes.
        let [low, high]: [__m128i; 2] = unsafe {
            [
                _mm_loadu_si128(from.cast()),
                _mm_loadu_si128(from.add(16).cast()),
            ]
        };
        [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
    }
}

impl Weights for Brain {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller owes 32 bytes.
        let [low, high]: [__m128i; 2] = unsafe {
            [
                _mm_loadu_si128(from.cast()),
                _mm_loadu_si128(from.add(16).cast()),
            ]
        };
        [low, high]
            .map(|bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))))
    }
}

/// F32 weights, as [`crate::op::matmul::Kernel`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn f32(product: Product<'_>) {
    // SAFETY: passed on.
    unsafe { rows::<Single>(product) }
}

/// F16 weights, as [`crate::op::matmul::Kernel`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn f16(product: Product<'_>) {
    // SAFETY: passed on.
    unsafe { rows::<Half>(product) }
}

/// BF16 weights, as [`crate::op::matmul::Kernel`].
///
/// # Safety
/// See that type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn bf16(product: Product<'_>) {
    // SAFETY: passed on.
    unsafe { rows::<Brain>(product) }
}

/// # Safety
/// See [`crate::op::matmul::Kernel`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<W: Weights>(product: Product<'_>) {
    const BLOCK: usize = 4;
    let columns = product.columns;
    for first in (0..product.row_count).step_by(BLOCK) {
        // A block past the end repeats the last row and drops the copies.
        let pointers: [*const u8; BLOCK] = core::array::from_fn(|index| {
            let row = (first + index).min(product.row_count - 1);
            // SAFETY: `row` is one of the rows the caller owes.
            unsafe { product.weights.add(row * product.row_bytes) }
        });
        for column in 0..columns.count {
            let values = &columns.values[column * columns.k..(column + 1) * columns.k];
            // SAFETY: every pointer has a row of `columns.k` weights.
            let results = unsafe { dots::<W, BLOCK>(pointers, values) };
            for (index, result) in results
                .into_iter()
                .enumerate()
                .take(product.row_count - first)
            {
                // SAFETY: the caller owes the output of every row and column.
                unsafe { *product.output.add(column * product.stride + first + index) = result };
            }
        }
    }
}

/// Dot products of `N` rows with one column.
///
/// # Safety
/// Each row must have `values.len()` readable weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<W: Weights, const N: usize>(rows: [*const u8; N], values: &[f32]) -> [f32; N] {
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for (index, chunk) in chunks.iter().enumerate() {
        // SAFETY: the chunk has sixteen floats, and so has every row at this place.
        unsafe {
            let x = [
                _mm256_loadu_ps(chunk.as_ptr()),
                _mm256_loadu_ps(chunk.as_ptr().add(8)),
            ];
            for (row, sum) in rows.into_iter().zip(&mut sums) {
                let w = W::sixteen(row.add(index * LANES * W::BYTES));
                *sum = [
                    _mm256_fmadd_ps(w[0], x[0], sum[0]),
                    _mm256_fmadd_ps(w[1], x[1], sum[1]),
                ];
            }
        }
    }
    if !tail.is_empty() {
        let mut x = [0.0f32; LANES];
        x[..tail.len()].copy_from_slice(tail);
        for (row, sum) in rows.into_iter().zip(&mut sums) {
            let mut weights = [0u8; LANES * 4];
            // SAFETY: the row has `tail.len()` more weights, and the buffers hold sixteen of anything.
            unsafe {
                let rest = row.add(chunks.len() * LANES * W::BYTES);
                core::ptr::copy_nonoverlapping(rest, weights.as_mut_ptr(), tail.len() * W::BYTES);
                let w = W::sixteen(weights.as_ptr());
                let x = [
                    _mm256_loadu_ps(x.as_ptr()),
                    _mm256_loadu_ps(x.as_ptr().add(8)),
                ];
                *sum = [
                    _mm256_fmadd_ps(w[0], x[0], sum[0]),
                    _mm256_fmadd_ps(w[1], x[1], sum[1]),
                ];
            }
        }
    }
    sums.map(|[low, high]| sum_lanes(low, high))
}

/// [`crate::op::sum_lanes`] of lanes 0..8 and 8..16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_lanes(low: __m256, high: __m256) -> f32 {
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<0b01>(two, two)))
}
