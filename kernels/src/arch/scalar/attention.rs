//! Attention over a page, see [`crate::op::attention`].

use crate::op::attention::key_index;

/// [`crate::op::attention::Scores`].
///
/// # Safety
/// None beyond that type's; out-of-range pages panic here.
pub(crate) unsafe fn scores(query: &[f32], keys: &[u16], scale: f32, scores: &mut [f32]) {
    for (position, score) in scores.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (dim, &q) in query.iter().enumerate() {
            let key = half::f16::from_bits(keys[key_index(position, dim, query.len())]).to_f32();
            sum = libm::fmaf(q, key, sum);
        }
        *score = scale * sum;
    }
}

/// [`crate::op::attention::WeightedSum`].
///
/// # Safety
/// None beyond that type's; out-of-range pages panic here.
pub(crate) unsafe fn weighted_sum(weights: &[f32], values: &[u16], output: &mut [f32]) {
    let dims = output.len();
    for (position, &weight) in weights.iter().enumerate() {
        for (output, &value) in output
            .iter_mut()
            .zip(&values[position * dims..(position + 1) * dims])
        {
            *output = libm::fmaf(weight, half::f16::from_bits(value).to_f32(), *output);
        }
    }
}
