//! Products of unquantized weights: sixteen lanes in four vectors.

use crate::Format;
use crate::arch::aarch64::vector::{
    vadd_f32, vaddq_f32, vcvt_f32_f16, vcvt_high_f32_f16, vdupq_n_f32, vfmaq_f32, vget_high_f32,
    vget_lane_f32, vget_low_f32, vget_low_u16, vreinterpret_f16_u16, vreinterpretq_f16_u16,
    vreinterpretq_f32_u32, vshll_high_n_u16, vshll_n_u16,
};
use crate::op::LANES;
use crate::op::matmul::{Kernel, Product};
use core::arch::aarch64::{float32x4_t, vld1q_f32, vld1q_u16};

/// The kernel of an unquantized format; there is none of others.
pub(super) const fn kernel(format: Format) -> Kernel {
    match format {
        Format::F16 => rows::<Half>,
        Format::BF16 => rows::<Brain>,
        _ => rows::<Single>,
    }
}

/// How sixteen consecutive weights become four vectors of floats.
trait Weights {
    const BYTES: usize;
    /// # Safety
    /// Sixteen weights must be readable at `from`.
    unsafe fn sixteen(from: *const u8) -> [float32x4_t; 4];
}

struct Single;
struct Half;
struct Brain;

impl Weights for Single {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn sixteen(from: *const u8) -> [float32x4_t; 4] {
        // SAFETY: the caller owes 64 bytes.
        unsafe { four(from.cast()) }
    }
}

impl Weights for Half {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn sixteen(from: *const u8) -> [float32x4_t; 4] {
        // SAFETY: the caller owes 32 bytes.
        let [low, high] = unsafe { [vld1q_u16(from.cast()), vld1q_u16(from.add(16).cast())] };
        [
            vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(low))),
            vcvt_high_f32_f16(vreinterpretq_f16_u16(low)),
            vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(high))),
            vcvt_high_f32_f16(vreinterpretq_f16_u16(high)),
        ]
    }
}

impl Weights for Brain {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn sixteen(from: *const u8) -> [float32x4_t; 4] {
        // SAFETY: the caller owes 32 bytes.
        let [low, high] = unsafe { [vld1q_u16(from.cast()), vld1q_u16(from.add(16).cast())] };
        [
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
        ]
    }
}

/// Sixteen floats.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn four(from: *const f32) -> [float32x4_t; 4] {
    // SAFETY: the caller owes them.
    unsafe {
        [
            vld1q_f32(from),
            vld1q_f32(from.add(4)),
            vld1q_f32(from.add(8)),
            vld1q_f32(from.add(12)),
        ]
    }
}

/// [`Kernel`] of a kind of weights.
///
/// # Safety
/// See that type.
unsafe fn rows<W: Weights>(product: Product<'_>) {
    let mut first = 0;
    while first < product.row_count {
        // Accumulators of four rows and one column, or of two rows and two columns, take sixteen registers.
        let mut column = 0;
        while column < product.columns.count {
            // SAFETY: passed on; the rows and columns exist, where `block` goes past the last it repeats that.
            unsafe {
                if product.columns.count - column == 1 {
                    block::<W, 4, 1>(&product, first, column);
                    column += 1;
                } else {
                    block::<W, 2, 2>(&product, first, column);
                    if first + 2 < product.row_count {
                        block::<W, 2, 2>(&product, first + 2, column);
                    }
                    column += 2;
                }
            }
        }
        first += 4;
    }
}

/// Computes and stores rows `first .. first + R`, as many as exist, of columns `column .. column + C`.
///
/// # Safety
/// See [`Kernel`]; row `first` and the columns must exist.
#[inline(always)]
unsafe fn block<W: Weights, const R: usize, const C: usize>(
    product: &Product<'_>,
    first: usize,
    column: usize,
) {
    let k = product.columns.k;
    let mut rows = [product.weights; R];
    for (index, pointer) in rows.iter_mut().enumerate() {
        let row = (first + index).min(product.row_count - 1);
        // SAFETY: `row` is one of the rows the caller owes.
        *pointer = unsafe { product.weights.add(row * product.row_bytes) };
    }
    let mut values = [product.columns.values; C];
    for (index, values) in values.iter_mut().enumerate() {
        let column = column + index;
        *values = &values[column * k..(column + 1) * k];
    }
    // SAFETY: every row has `k` weights, and every column as many values.
    let results = unsafe { dots::<W, R, C>(rows, values) };
    for (row, results) in results.iter().enumerate().take(product.row_count - first) {
        for (index, &result) in results.iter().enumerate() {
            let at = (column + index) * product.stride + first + row;
            // SAFETY: the caller owes the output of every row and column.
            unsafe { *product.output.add(at) = result };
        }
    }
}

/// Dot products of `R` rows with `C` columns.
///
/// # Safety
/// The columns must have the same length, and each row as many readable weights.
#[inline(always)]
unsafe fn dots<W: Weights, const R: usize, const C: usize>(
    rows: [*const u8; R],
    values: [&[f32]; C],
) -> [[f32; C]; R] {
    let mut sums = [[[vdupq_n_f32(0.0); 4]; C]; R];
    let k = values[0].len();
    let zero = [vdupq_n_f32(0.0); 4];
    for at in (0..k / LANES * LANES).step_by(LANES) {
        let (mut w, mut x) = ([zero; R], [zero; C]);
        for column in 0..C {
            // SAFETY: the columns have sixteen values from here.
            x[column] = unsafe { four(values[column].as_ptr().add(at)) };
        }
        for row in 0..R {
            // SAFETY: so have the rows.
            w[row] = unsafe { W::sixteen(rows[row].add(at * W::BYTES)) };
        }
        add(&mut sums, &w, &x);
    }
    let rest = k % LANES;
    if rest > 0 {
        let x = values.map(|values| {
            let mut padded = [0.0f32; LANES];
            padded[..rest].copy_from_slice(&values[k - rest..]);
            // SAFETY: the array has sixteen.
            unsafe { four(padded.as_ptr()) }
        });
        let w = rows.map(|row| {
            let mut padded = [0u8; LANES * 4];
            // SAFETY: the row has `rest` more weights, and the array holds sixteen of anything.
            unsafe {
                let from = row.add((k - rest) * W::BYTES);
                core::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), rest * W::BYTES);
                W::sixteen(padded.as_ptr())
            }
        });
        add(&mut sums, &w, &x);
    }
    let mut results = [[0.0; C]; R];
    for row in 0..R {
        for column in 0..C {
            results[row][column] = sum_lanes(sums[row][column]);
        }
    }
    results
}

/// Adds the products of sixteen weights of each row with sixteen values of each column, lane by lane.
#[inline(always)]
fn add<const R: usize, const C: usize>(
    sums: &mut [[[float32x4_t; 4]; C]; R],
    weights: &[[float32x4_t; 4]; R],
    values: &[[float32x4_t; 4]; C],
) {
    for row in 0..R {
        for column in 0..C {
            for part in 0..4 {
                let sum = &mut sums[row][column][part];
                *sum = vfmaq_f32(*sum, weights[row][part], values[column][part]);
            }
        }
    }
}

/// [`crate::op::sum_lanes`].
#[inline(always)]
fn sum_lanes([a, b, c, d]: [float32x4_t; 4]) -> f32 {
    let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}
