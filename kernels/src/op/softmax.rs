//! Softmax numerators.

use super::{LANES, exp::exp, sum_lanes};

/// Replaces each `x` by `exp(x - max)` and returns the sum of those, added in 16 lanes (a tail shorter than 16 in
/// the first lanes). Dividing by the sum is left to the caller, who can do it on fewer elements.
#[inline(always)]
pub(crate) fn softmax_numerators(x: &mut [f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in &*chunks {
        for lane in 0..LANES {
            largest[lane] = if chunk[lane] > largest[lane] {
                chunk[lane]
            } else {
                largest[lane]
            };
        }
    }
    let mut maximum = f32::NEG_INFINITY;
    for &value in largest.iter().chain(&*tail) {
        maximum = if value > maximum { value } else { maximum };
    }
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - maximum);
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *value = exp(*value - maximum);
        *lane += *value;
    }
    sum_lanes(lanes)
}
