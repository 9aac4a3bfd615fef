//! Matrix products of weight rows with activation columns.
//!
//! For row `r` and column `c`, with `fma` rounding once and all integer sums exact:
//!
//! - Quantized formats. Groups of 32 elements are taken in ascending order into one accumulator that starts at zero.
//!   With `i` the integer sum of weight level × activation level over the group, `s` the sum of the activation
//!   levels, `a` the activation scale, and `as` the rounded product `a * s` ([`crate::activation::Group`]):
//!   - `Q8_0`, and the levels that the indices of `IQ4_NL` and `MXFP4` stand for: `acc = fma(scale * a, i, acc)`
//!   - `Q4_0`: `acc = fma(scale * a, i - 8 s, acc)`; `Q5_0` the same with 16 for 8
//!   - `Q4_1`, `Q5_1`: `acc = fma(scale * a, i, acc)`, then `acc = fma(minimum, as, acc)`
//!   - `Q4_K`, `Q5_K`: `acc = fma((scale * group_scale) * a, i, acc)`, then
//!     `acc = fma(-(minimum_scale * group_minimum), as, acc)`
//!   - `IQ4_XS`: `acc = fma((scale * group_scale) * a, i, acc)`
//!   - `Q6_K`: `acc = fma(scale * a, g0 * (i0 - 32 s0) + g1 * (i1 - 32 s1), acc)`, where 0 and 1 are the halves of
//!     the group with their own group scales; `Q3_K` the same with 4 for 32
//!   - `Q2_K`: `acc = fma(scale * a, g0 * i0 + g1 * i1, acc)`, then
//!     `acc = fma(-(minimum_scale * a), m0 * s0 + m1 * s1, acc)`
//!
//!   These integers stay below 2^24 in magnitude, so their conversion to f32 is exact. So is a product of a block's
//!   scale, which has 11 bits, with a group's, which has at most 6.
//! - `F32`, `F16`, `BF16`: lane `l` of 16 accumulates `fma(weight, value, lane)` over the elements with index `l`
//!   modulo 16, the row padded with zeros to a multiple of 16; then the tree of [`super::sum_lanes`].
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

/// Arguments of a kernel for packed weights, see [`crate::pack`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedProduct<'a> {
    /// First byte of the tile with the first row.
    pub(crate) tiles: *const u8,
    /// Rows to compute, from the first of that tile.
    pub(crate) row_count: usize,
    /// The activations.
    pub(crate) columns: Columns<'a>,
    /// As in [`Product`].
    pub(crate) output: *mut f32,
    /// As in [`Product`].
    pub(crate) stride: usize,
}

/// A kernel for packed weights.
///
/// # Safety
/// The instruction set must be supported; `tiles` must be readable for the tiles that `row_count` rows of `columns.k`
/// elements are in; `columns` must be readable for quantized weights (`Columns::assert_readable`) and `k` be whole blocks
/// of the format; `output` must be writable as for [`Kernel`].
pub(crate) type PackedKernel = unsafe fn(PackedProduct<'_>);

/// A matrix product kernel.
///
/// # Safety
/// The instruction set must be supported; `weights` must be readable for `row_count` rows of `columns.k` elements,
/// `row_bytes` apart; `columns` must be readable for the format (`Columns::assert_readable`); `output` must be
/// writable for `row_count` elements at each of `columns.count` distances of `stride`, by nobody else meanwhile.
pub(crate) type Kernel = unsafe fn(Product<'_>);
