//! Matrix products of weight rows with activation columns.
//!
//! For row `r` and column `c`, with `fma` rounding once and all integer sums exact:
//!
//! - Quantized formats. Groups of 32 elements are taken in ascending order into one accumulator that starts at zero.
//!   With `i` the integer sum of weight level × activation level over the group, `s` the sum of the activation
//!   levels, and `a` the activation scale:
//!   - `Q8_0`: `acc = fma(scale * a, i, acc)`
//!   - `Q4_0`: `acc = fma(scale * a, i - 8 s, acc)`
//!   - `Q4_1`: `acc = fma(scale * a, i, acc)`, then `acc = fma(minimum * a, s, acc)`
//!   - `Q4_K`: `acc = fma(scale * a, group_scale * i, acc)`, then
//!     `acc = fma(-(minimum_scale * a), group_minimum * s, acc)`
//!   - `Q6_K`: `acc = fma(scale * a, g0 * (i0 - 32 s0) + g1 * (i1 - 32 s1), acc)`, where 0 and 1 are the halves of
//!     the group with their own group scales; the integer fits 24 bits, so its conversion is exact.
//! - `F32`, `F16`: lane `l` of 16 accumulates `fma(weight, value, lane)` over the elements with index `l` modulo 16,
//!   the row padded with zeros to a multiple of 16; then the tree of [`super::sum_lanes`].
//!
//! An accumulator belongs to one row and one column, so nothing else in the call changes it.

use crate::activation::Columns;

/// Arguments of a matrix product kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    /// First byte of the first row.
    pub(crate) weights: *const u8,
    /// Bytes from one row to the next.
    pub(crate) row_bytes: usize,
    /// Rows to compute.
    pub(crate) row_count: usize,
    /// The activations.
    pub(crate) columns: Columns<'a>,
    /// Element of the first row and column; column `c` is `c * stride` further.
    pub(crate) output: *mut f32,
    /// Distance between columns of the output.
    pub(crate) stride: usize,
}

/// A matrix product kernel.
///
/// # Safety
/// The instruction set must be supported; `weights` must be readable for `row_count` rows of `columns.k` elements,
/// `row_bytes` apart; `columns` must be readable for the format (`Columns::assert_readable`); `output` must be
/// writable for `row_count` elements at each of `columns.count` distances of `stride`, by nobody else meanwhile.
pub(crate) type Kernel = unsafe fn(Product<'_>);
