//! Attention of the query heads that share a KV head, over its cached positions.
//!
//! Positions are taken in chunks of [`CHUNK`], counted from position 0 of the sequence: where a chunk begins depends on
//! nothing but the position. A row is one query head of one token; it sees the positions of a range. Of each chunk it
//! sees something of, a row gets a partial result from the positions it sees there:
//!
//! 1. Scores. With f16 keys: `score[p] = scale * s`, where `s = fma(q[d], k[p][d], s)` over ascending `d` from zero.
//!    With 8-bit keys: the sum, rounded, of the scores of the query's two parts ([`super::quantize_heads`]), which are
//!    `scale * s` with `s = fma(a[g] * b[p][g], i, s)` over ascending groups `g` of [`GROUP`] dimensions from zero, with
//!    the scales `a` of the part and `b` of the key and the exact integer sum `i` of their levels' products. Then, where
//!    the layer has one, the soft cap ([`super::tanh`]), and the linear bias: less `slope * |position - p|`, product and
//!    difference rounded.
//! 2. `top`, the largest score; weights `w[p] = exp(score[p] - top)`; `sum`, the weights added in 16 lanes, lane
//!    `p % 16` in ascending `p` from zero, and [`super::sum_lanes`].
//! 3. Output: `o[d] = fma(w[p], v[p][d], o[d])` over ascending `p` from zero. With 8-bit values, `v` is the level, and
//!    `w[p]` times the position's scale, rounded, stands for `w[p]`.
//!
//! Partial results are merged in ascending order of chunks: with `t` the larger top, `a = exp(top - t)` and
//! `b = exp(top' - t)`, `sum = sum * a + sum' * b` and `o[d] = o[d] * a + o'[d] * b`, every product and sum rounded. The
//! result is `o[d] / sum`. So it is the same whichever thread computes a chunk, and whichever rows are computed together.
//!
//! Layouts. A page holds [`PAGE`] positions of one KV head. Keys are tiles of [`TILE`] positions, so that a score needs
//! no sum across lanes: in f16 `[tile][dim][16]`; in 8 bits `[tile][dim / 4][16][4]`, dimensions filled up with zeros to
//! a multiple of four, and scales `[tile][group][16]`. Values are `[position][dim]`, in 8 bits with one scale for each
//! position. Scales are f16.

use super::exp::exp;
use super::{LANES, sum_lanes};
use core::ops::Range;

/// Positions of a page.
pub const PAGE: usize = 64;

/// Positions of a key tile.
pub const TILE: usize = 16;

/// Positions of a chunk: with the scores of sixteen rows, half of a small L1; and partial results of long sequences
/// stay small.
pub const CHUNK: usize = 256;

/// Dimensions of an 8-bit key, or query, that share a scale. Keys have dimensions that are a hundred times as large as
/// others, where a scale of the whole head would leave nothing of the rest.
pub const GROUP: usize = 32;

/// Index within a page of f16 keys of dimension `dim` at `position`, for heads of `head_dim` dimensions.
#[inline(always)]
#[must_use]
pub const fn key_index(position: usize, dim: usize, head_dim: usize) -> usize {
    position / TILE * TILE * head_dim + dim * TILE + position % TILE
}

/// Levels that a position takes of 8-bit keys.
#[inline(always)]
#[must_use]
pub const fn key_levels(head_dim: usize) -> usize {
    head_dim.next_multiple_of(4)
}

/// Scales that a position takes of 8-bit keys.
#[inline(always)]
#[must_use]
pub const fn key_groups(head_dim: usize) -> usize {
    head_dim.div_ceil(GROUP)
}

/// Index within a page of 8-bit keys of the level of dimension `dim` at `position`.
#[inline(always)]
#[must_use]
pub const fn key_level_index(position: usize, dim: usize, head_dim: usize) -> usize {
    position / TILE * TILE * key_levels(head_dim)
        + dim / 4 * (4 * TILE)
        + position % TILE * 4
        + dim % 4
}

/// Index within a page of 8-bit keys of the scale of group `group` at `position`.
#[inline(always)]
#[must_use]
pub const fn key_scale_index(position: usize, group: usize, head_dim: usize) -> usize {
    position / TILE * TILE * key_groups(head_dim) + group * TILE + position % TILE
}

/// Keys of one KV head, from the start of a tile.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// In f16.
    F16(&'a [u16]),
    /// In 8 bits: levels and scales.
    Q8(&'a [i8], &'a [u16]),
}

/// Values of one KV head.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// In f16.
    F16(&'a [u16]),
    /// In 8 bits: levels and scales.
    Q8(&'a [i8], &'a [u16]),
}

/// Queries of the heads that share a KV head, of consecutive tokens. Row `r` is head `r % group` of token `r / group`.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Elements: head `h` of token `t` begins at `t * token_stride + h * head_dim`.
    pub values: &'a [f32],
    /// From one token to the next.
    pub token_stride: usize,
    /// Tokens.
    pub tokens: usize,
    /// Heads of a token.
    pub group: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

impl<'a> Queries<'a> {
    /// Number of rows.
    #[inline(always)]
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens * self.group
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [f32] {
        let start = row / self.group * self.token_stride + row % self.group * self.head_dim;
        &self.values[start..start + self.head_dim]
    }
}

/// Queries in 8 bits, by [`crate::Table::quantize_queries`]. Each has two rows here, one for each part.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedQueries<'a> {
    /// `[row][key_levels]`.
    pub levels: &'a [i8],
    /// `[row][key_groups]`.
    pub scales: &'a [f32],
    /// The levels' sums times -128, `[row][key_groups]`: what a product with unsigned levels, 128 too large, is off by.
    pub offsets: &'a [i32],
}

/// Scores of the rows of `queries` at the positions of the first `tiles` tiles of `keys`, into `scores[row * CHUNK ..]`:
/// all of step 1 up to the scale.
///
/// # Safety
/// The instruction set must be supported; `keys` must hold the tiles, `queries` the rows, and `scores` be as long as the
/// last row needs.
pub(crate) type Scores =
    unsafe fn(queries: Queries<'_>, keys: &[u16], tiles: usize, scale: f32, scores: &mut [f32]);

/// Keys in 8 bits, as many tiles as are to be scored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantizedKeys<'a> {
    pub(crate) levels: &'a [i8],
    pub(crate) scales: &'a [u16],
    pub(crate) tiles: usize,
    pub(crate) head_dim: usize,
}

/// [`Scores`] with 8-bit keys, of the first `rows` rows.
///
/// # Safety
/// See [`Scores`].
pub(crate) type QuantizedScores = unsafe fn(
    queries: QuantizedQueries<'_>,
    rows: usize,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: &mut [f32],
);

/// Adds the weighted values of `positions` positions to the outputs of rows, step 3: position `p` of row `r` weighs
/// `weights[r * CHUNK + p]`. `output` is `[row][head_dim]`, and says how many rows there are.
///
/// # Safety
/// The instruction set must be supported; `positions` must not exceed [`PAGE`]; `values` must hold the positions,
/// `output` whole rows, and `weights` be as long as the last row needs.
pub(crate) type WeightedSum = unsafe fn(
    weights: &[f32],
    values: &[u16],
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
);

/// Values in 8 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantizedValues<'a> {
    pub(crate) levels: &'a [i8],
    pub(crate) scales: &'a [u16],
}

/// [`WeightedSum`] with 8-bit values.
///
/// # Safety
/// See [`WeightedSum`].
pub(crate) type QuantizedWeightedSum = unsafe fn(
    weights: &[f32],
    values: QuantizedValues<'_>,
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
);

/// The kernels of one instruction set. Each does what its type or the named function says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    pub(crate) scores: Scores,
    pub(crate) quantized_scores: QuantizedScores,
    pub(crate) weighted_sum: WeightedSum,
    pub(crate) quantized_weighted_sum: QuantizedWeightedSum,
    /// [`weigh`]; the instruction set must be supported.
    pub(crate) weigh: unsafe fn(&mut [f32], usize, usize) -> [f32; 2],
    /// [`add_parts`]; the instruction set must be supported.
    pub(crate) add_parts: unsafe fn(&mut [f32], usize, Range<usize>),
    /// [`merge`]; the instruction set must be supported.
    pub(crate) merge: Merge,
    /// [`super::quantize_heads::quantize_head`]; the instruction set must be supported.
    pub(crate) quantize_head: unsafe fn(&[f32], &mut [i8]) -> u16,
    /// [`super::quantize_heads::quantize_key`]; the instruction set must be supported.
    pub(crate) quantize_key: unsafe fn(&[f32], &mut [i8], &mut [u16]),
    /// [`super::quantize_heads::quantize_query`]; the instruction set must be supported.
    pub(crate) quantize_query: QuantizeQuery,
}

type Merge = unsafe fn(&mut [f32; 2], &mut [f32], [f32; 2], &[f32]);

type QuantizeQuery = unsafe fn(&[f32], &mut [i8], &mut [f32], &mut [i32]);

/// Makes the scores of rows at `positions` from those of their two parts, which are in rows twice as many.
#[inline(always)]
pub(crate) fn add_parts(scores: &mut [f32], rows: usize, positions: Range<usize>) {
    for row in 0..rows {
        let (before, parts) = scores.split_at_mut(2 * row * CHUNK);
        let (first, second) = parts.split_at_mut(CHUNK);
        let (first, second) = (&mut first[positions.clone()], &second[positions.clone()]);
        if row == 0 {
            for (score, part) in first.iter_mut().zip(second) {
                *score += part;
            }
        } else {
            // The row written is one whose parts have been read.
            let scores = &mut before[row * CHUNK..][positions.clone()];
            for ((score, first), second) in scores.iter_mut().zip(first).zip(second) {
                *score = *first + second;
            }
        }
    }
}

/// Attention with linear biases: takes `slope * |position - p|` from the score of each position `p`, counted from
/// `first`; the product and the difference are rounded.
pub fn add_linear_bias(scores: &mut [f32], slope: f32, position: usize, first: usize) {
    for (index, score) in scores.iter_mut().enumerate() {
        *score -= slope * position.abs_diff(first + index) as f32;
    }
}

/// Step 2: makes weights of the scores of positions `first..end`, counted from the start of the tiles that `scores`
/// holds; returns `[top, sum]`. The rest of the tiles gets any values.
#[inline(always)]
pub(crate) fn weigh(scores: &mut [f32], first: usize, end: usize) -> [f32; 2] {
    let end_of_tiles = end.next_multiple_of(TILE);
    assert!(first < end && end_of_tiles <= scores.len());
    // What is not seen weighs exactly zero, and adding zero changes no sum.
    let start = first / TILE * TILE;
    scores[start..first].fill(f32::NEG_INFINITY);
    scores[end..end_of_tiles].fill(f32::NEG_INFINITY);
    let (tiles, _) = scores[start..end_of_tiles].as_chunks_mut::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for tile in &*tiles {
        for lane in 0..LANES {
            largest[lane] = if tile[lane] > largest[lane] {
                tile[lane]
            } else {
                largest[lane]
            };
        }
    }
    let mut top = f32::NEG_INFINITY;
    for value in largest {
        top = if value > top { value } else { top };
    }
    let mut lanes = [0.0; LANES];
    for tile in tiles {
        for lane in 0..LANES {
            tile[lane] = exp(tile[lane] - top);
            lanes[lane] += tile[lane];
        }
    }
    [top, sum_lanes(lanes)]
}

/// Merges the partial result of a row's next chunk into that of those before it. A sum of zero says that nothing was
/// seen.
#[inline(always)]
pub(crate) fn merge(
    total: &mut [f32; 2],
    output: &mut [f32],
    partial: [f32; 2],
    partial_output: &[f32],
) {
    assert_eq!(output.len(), partial_output.len());
    let [top, sum] = *total;
    let [partial_top, partial_sum] = partial;
    if partial_sum == 0.0 {
        return;
    }
    if sum == 0.0 {
        *total = partial;
        output.copy_from_slice(partial_output);
        return;
    }
    let larger = if partial_top > top { partial_top } else { top };
    let (before, after) = (exp(top - larger), exp(partial_top - larger));
    *total = [larger, sum * before + partial_sum * after];
    for (output, &partial) in output.iter_mut().zip(partial_output) {
        *output = *output * before + partial * after;
    }
}
