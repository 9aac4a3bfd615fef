//! Root mean square norm and layer norm.

use super::{LANES, sum_lanes};

/// `output[i] = (x[i] * s) * weight[i]` with `s = 1 / sqrt(mean(x²) + epsilon)`; the squares are summed in
/// 16 lanes (multiply, then add), a tail shorter than 16 in the first lanes.
#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == output.len());
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane] * chunk[lane];
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane += value * value;
    }
    let mean = sum_lanes(lanes) / x.len() as f32;
    let scale = 1.0 / libm::sqrtf(mean + epsilon);
    for ((output, &x), &weight) in output.iter_mut().zip(x).zip(weight) {
        *output = x * scale * weight;
    }
}

/// `output[i] = (x[i] - m) * s * weight[i] + bias[i]` (without `bias`, nothing is added), with `m` the mean of `x` and
/// `s = 1 / sqrt(mean((x - m)²) + epsilon)`.
///
/// Both means are sums in 16 lanes, a tail shorter than 16 in the first lanes; every difference, square, product and
/// sum is rounded.
#[inline(always)]
pub(crate) fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
    output: &mut [f32],
) {
    assert!(x.len() == weight.len() && x.len() == output.len());
    assert!(bias.is_none_or(|bias| bias.len() == x.len()));
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane += value;
    }
    let mean = sum_lanes(lanes) / x.len() as f32;
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            let centred = chunk[lane] - mean;
            lanes[lane] += centred * centred;
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        let centred = value - mean;
        *lane += centred * centred;
    }
    let variance = sum_lanes(lanes) / x.len() as f32;
    let scale = 1.0 / libm::sqrtf(variance + epsilon);
    for ((output, &x), &weight) in output.iter_mut().zip(x).zip(weight) {
        *output = (x - mean) * scale * weight;
    }
    if let Some(bias) = bias {
        for (output, &bias) in output.iter_mut().zip(bias) {
            *output += bias;
        }
    }
}
