//! Attention over a page of cached positions.
//!
//! A page holds [`PAGE`] positions of one KV head. Keys are stored as tiles of 16 positions, `[tile][dim][16]`, so
//! that a score needs no sum across lanes; values are stored `[position][dim]`. Both are f16.
//!
//! - Scores: `score[p] = scale * s`, where `s = fma(q[d], k[p][d], s)` over ascending `d` from zero.
//! - Weighted sum: `output[d] = fma(weight[p], v[p][d], output[d])` over ascending positions.

/// Positions of a page.
pub const PAGE: usize = 64;

/// Positions of a key tile.
pub const TILE: usize = 16;

/// Index within a page of keys of dimension `dim` at `position`, for heads of `head_dim` dimensions.
#[inline(always)]
#[must_use]
pub const fn key_index(position: usize, dim: usize, head_dim: usize) -> usize {
    position / TILE * TILE * head_dim + dim * TILE + position % TILE
}

/// Attention with linear biases: takes `slope * |position - p|` from the score of each position `p`, counted from
/// `first`; the product and the difference are rounded.
pub fn add_linear_bias(scores: &mut [f32], slope: f32, position: usize, first: usize) {
    for (index, score) in scores.iter_mut().enumerate() {
        *score -= slope * position.abs_diff(first + index) as f32;
    }
}

/// Scores of a page's positions for one query head.
///
/// # Safety
/// The instruction set must be supported; `keys` must hold `scores.len()` positions rounded up to whole tiles.
pub(crate) type Scores = unsafe fn(query: &[f32], keys: &[u16], scale: f32, scores: &mut [f32]);

/// Adds the weighted values of a page's positions to the output of one head.
///
/// # Safety
/// The instruction set must be supported; `values` must hold `weights.len()` positions of `output.len()` dimensions.
pub(crate) type WeightedSum = unsafe fn(weights: &[f32], values: &[u16], output: &mut [f32]);
