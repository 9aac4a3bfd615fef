//! Attention over a page, see [`crate::op::attention`].

use crate::op::attention::{
    self, CHUNK, GROUP, Kernels, QuantizedKeys, QuantizedQueries, QuantizedValues, Queries, TILE,
    key_groups, key_index, key_level_index, key_levels, key_scale_index,
};
use crate::op::quantize_heads;

/// The kernels.
pub(crate) const KERNELS: Kernels = Kernels {
    scores,
    quantized_scores,
    weighted_sum,
    quantized_weighted_sum,
    weigh: attention::weigh,
    add_parts: attention::add_parts,
    merge: attention::merge,
    quantize_head: quantize_heads::quantize_head,
    quantize_key: quantize_heads::quantize_key,
    quantize_query: quantize_heads::quantize_query,
};

fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// [`crate::op::attention::Scores`].
///
/// # Safety
/// None beyond that type's; out-of-range pages panic here.
pub(crate) unsafe fn scores(
    queries: Queries<'_>,
    keys: &[u16],
    tiles: usize,
    scale: f32,
    scores: &mut [f32],
) {
    for row in 0..queries.rows() {
        let query = queries.row(row);
        for position in 0..tiles * TILE {
            let mut sum = 0.0;
            for (dim, &q) in query.iter().enumerate() {
                let key = half(keys[key_index(position, dim, query.len())]);
                sum = libm::fmaf(q, key, sum);
            }
            scores[row * CHUNK + position] = scale * sum;
        }
    }
}

/// [`crate::op::attention::QuantizedScores`].
///
/// # Safety
/// None beyond that type's; out-of-range pages panic here.
pub(crate) unsafe fn quantized_scores(
    queries: QuantizedQueries<'_>,
    rows: usize,
    keys: QuantizedKeys<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    let head_dim = keys.head_dim;
    let (stride, groups) = (key_levels(head_dim), key_groups(head_dim));
    for row in 0..rows {
        let levels = &queries.levels[row * stride..][..head_dim];
        for position in 0..keys.tiles * TILE {
            let mut sum = 0.0;
            for (group, levels) in levels.chunks(GROUP).enumerate() {
                let mut integer = 0i32;
                for (index, &level) in levels.iter().enumerate() {
                    let dim = group * GROUP + index;
                    let key = keys.levels[key_level_index(position, dim, head_dim)];
                    integer += i32::from(level) * i32::from(key);
                }
                let key_scale = half(keys.scales[key_scale_index(position, group, head_dim)]);
                let factor = queries.scales[row * groups + group] * key_scale;
                sum = libm::fmaf(factor, integer as f32, sum);
            }
            scores[row * CHUNK + position] = scale * sum;
        }
    }
}

/// [`crate::op::attention::WeightedSum`].
///
/// # Safety
/// None beyond that type's; out-of-range pages panic here.
pub(crate) unsafe fn weighted_sum(
    weights: &[f32],
    values: &[u16],
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    for (row, output) in output.chunks_exact_mut(head_dim).enumerate() {
        let weights = &weights[row * CHUNK..][..positions];
        for (&weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
            for (output, &value) in output.iter_mut().zip(values) {
                *output = libm::fmaf(weight, half(value), *output);
            }
        }
    }
}

/// [`crate::op::attention::QuantizedWeightedSum`].
///
/// # Safety
/// None beyond that type's; out-of-range pages panic here.
pub(crate) unsafe fn quantized_weighted_sum(
    weights: &[f32],
    values: QuantizedValues<'_>,
    positions: usize,
    head_dim: usize,
    output: &mut [f32],
) {
    for (row, output) in output.chunks_exact_mut(head_dim).enumerate() {
        let weights = &weights[row * CHUNK..][..positions];
        for ((&weight, &scale), levels) in weights
            .iter()
            .zip(values.scales)
            .zip(values.levels.chunks_exact(head_dim))
        {
            let weight = weight * half(scale);
            for (output, &level) in output.iter_mut().zip(levels) {
                *output = libm::fmaf(weight, f32::from(level), *output);
            }
        }
    }
}
