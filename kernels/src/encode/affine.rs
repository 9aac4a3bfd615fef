//! Q4_1, Q5_1: 32 elements, a scale and a minimum. What is lost is the plain sum of squares.

use super::put;
use super::search::{Levels, around, error, extent, inverse, scale_and_offset, stored};
use half::f16;

const N: usize = 32;
const EVEN: [f64; N] = [1.0; N];

fn fit(x: &[f64; N], high: f64) -> ([u8; 4], [u8; N]) {
    let levels = Levels { low: 0.0, high };
    let (least, most) = extent(x);
    // Level 0 at the least and the top level at the greatest value: what a search must not be worse than.
    let plain = (stored((most - least) / high), stored(least));
    let mut best = (f64::INFINITY, plain);
    let mut consider = |scale: f16, minimum: f16| {
        let lost = error(x, &EVEN, levels, scale.to_f64(), minimum.to_f64());
        if lost < best.0 {
            best = (lost, (scale, minimum));
        }
    };
    consider(plain.0, plain.1);
    let (scale, offset) = scale_and_offset(x, &EVEN, levels, f64::INFINITY);
    for minimum in around(offset) {
        for scale in around(scale) {
            consider(scale, minimum);
        }
        // Where f16 is coarser than the values differ, the scale has to reach them from another minimum.
        for scale in around((most - minimum.to_f64()) / high) {
            consider(scale, minimum);
        }
    }
    let (scale, minimum) = best.1;
    let inverse = inverse(scale.to_f64());
    let ([a, b], [c, d]) = (scale.to_le_bytes(), minimum.to_le_bytes());
    (
        [a, b, c, d],
        x.map(|x| levels.nearest((x - minimum.to_f64()) * inverse) as u8),
    )
}

pub(super) fn q4_1(x: &[f64; N], output: &mut [u8]) {
    let (scales, levels) = fit(x, 15.0);
    output[..4].copy_from_slice(&scales);
    put::nibbles(&levels, &mut output[4..]);
}

pub(super) fn q5_1(x: &[f64; N], output: &mut [u8]) {
    let (scales, levels) = fit(x, 31.0);
    output[..4].copy_from_slice(&scales);
    output[4..8].copy_from_slice(&put::fifth_bits(&levels));
    put::nibbles(&levels, &mut output[8..]);
}
