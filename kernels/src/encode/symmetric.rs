//! Q4_0, Q5_0, Q8_0: 32 elements, one scale, no offset. What is lost is the plain sum of squares.

use super::put;
use super::search::{Levels, around, error, farthest, inverse, scale, stored};
use half::f16;

const N: usize = 32;
const EVEN: [f64; N] = [1.0; N];

/// Distances between starts of the search, in levels.
const STEP: f64 = 0.25;

fn steps(from: f64, to: f64) -> impl Iterator<Item = f64> {
    let count = ((to - from) / STEP) as u32;
    (0..=count).map(move |step| from + STEP * f64::from(step))
}

/// The stored scale that loses least, among those around the real solution and the one at which the value farthest
/// from zero is at `end`.
fn stored_scale(x: &[f64; N], levels: Levels, places: impl Iterator<Item = f64>, end: f64) -> f16 {
    let [nearest, below, above] = around(scale(x, &EVEN, levels, places));
    let plain = stored(farthest(x) / end);
    let mut best = (f64::INFINITY, plain);
    for candidate in [plain, nearest, below, above] {
        let lost = error(x, &EVEN, levels, candidate.to_f64(), 0.0);
        if lost < best.0 {
            best = (lost, candidate);
        }
    }
    best.1
}

/// Scale and levels from 0 for a format of `half` levels below and `half - 1` above zero.
fn offset_levels(x: &[f64; N], half: f64) -> (f16, [u8; N]) {
    let levels = Levels {
        low: -half,
        high: half - 1.0,
    };
    // The grid is longer on one side: either sign of the scale may be the better one.
    let places = steps(half - 2.5, half).chain(steps(half - 1.5, half + 1.0).map(|place| -place));
    let scale = stored_scale(x, levels, places, -half);
    let inverse = inverse(scale.to_f64());
    (scale, x.map(|x| (levels.nearest(x * inverse) + half) as u8))
}

pub(super) fn q4_0(x: &[f64; N], output: &mut [u8]) {
    let (scale, levels) = offset_levels(x, 8.0);
    output[..2].copy_from_slice(&scale.to_le_bytes());
    put::nibbles(&levels, &mut output[2..]);
}

pub(super) fn q5_0(x: &[f64; N], output: &mut [u8]) {
    let (scale, levels) = offset_levels(x, 16.0);
    output[..2].copy_from_slice(&scale.to_le_bytes());
    output[2..6].copy_from_slice(&put::fifth_bits(&levels));
    put::nibbles(&levels, &mut output[6..]);
}

/// Level -128 is left unused: other programs' kernels need not expect it.
pub(super) fn q8_0(x: &[f64; N], output: &mut [u8]) {
    let levels = Levels {
        low: -127.0,
        high: 127.0,
    };
    let scale = stored_scale(x, levels, steps(125.5, 128.5), 127.0);
    let inverse = inverse(scale.to_f64());
    output[..2].copy_from_slice(&scale.to_le_bytes());
    for (byte, x) in output[2..].iter_mut().zip(x) {
        *byte = (levels.nearest(x * inverse) as i8).cast_unsigned();
    }
}
