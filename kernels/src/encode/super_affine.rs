//! Q4_K, Q5_K: 256 elements in eight groups of 32. Groups have 6-bit scales and minimums in units of two f16 of the
//! block.
//!
//! What is lost weighs each element by the size of its group plus its own: large weights of a model matter more, small
//! ones still do. The groups are fitted with real numbers first; then the block's units, the groups' integers and the
//! levels are improved in turn.

use super::search::{Levels, error, inverse, scale_and_offset, stored};
use half::f16;

const N: usize = 256;
const GROUP: usize = 32;
const GROUPS: usize = N / GROUP;

/// Largest 6-bit integer of a group.
const TOP: f64 = 63.0;

/// Rounds of improving units and integers in turn.
const ROUNDS: usize = 3;

const INTEGERS: Levels = Levels {
    low: 0.0,
    high: TOP,
};

/// A fit of the whole block: its two units, and for each group its two integers.
#[derive(Clone, Copy)]
struct Fit {
    scale: f16,
    minimum: f16,
    groups: [(f64, f64); GROUPS],
    lost: f64,
}

type Values = [[f64; GROUP]; GROUPS];

fn weights(x: &Values) -> Values {
    x.map(|x| {
        let size = libm::sqrt(x.iter().map(|x| x * x).sum::<f64>() / GROUP as f64);
        x.map(|x| size + x.abs())
    })
}

/// The integers of every group that lose least under the given units, near the real solutions.
fn with_units(
    x: &Values,
    w: &Values,
    levels: Levels,
    real: &[(f64, f64); GROUPS],
    (scale, minimum): (f16, f16),
) -> Fit {
    let (scale_unit, minimum_unit) = (scale.to_f64(), minimum.to_f64());
    let (per_scale, per_minimum) = (inverse(scale_unit), inverse(minimum_unit));
    let mut fit = Fit {
        scale,
        minimum,
        groups: [(0.0, 0.0); GROUPS],
        lost: 0.0,
    };
    for (((x, w), real), chosen) in x.iter().zip(w).zip(real).zip(&mut fit.groups) {
        let near = |value: f64, unit: f64| {
            let integer = INTEGERS.nearest(value * unit);
            [integer, integer - 1.0, integer + 1.0]
        };
        let mut best = (f64::INFINITY, (0.0, 0.0));
        for group_scale in near(real.0, per_scale) {
            for group_minimum in near(-real.1, per_minimum) {
                if group_scale.clamp(0.0, TOP) != group_scale
                    || group_minimum.clamp(0.0, TOP) != group_minimum
                {
                    continue;
                }
                let (step, offset) = (scale_unit * group_scale, -minimum_unit * group_minimum);
                let lost = error(x, w, levels, step, offset);
                if lost < best.0 {
                    best = (lost, (group_scale, group_minimum));
                }
            }
        }
        fit.lost += best.0;
        *chosen = best.1;
    }
    fit
}

/// The units that lose least with the integers and levels of a fit.
fn units(x: &Values, w: &Values, levels: Levels, fit: &Fit) -> (f64, f64) {
    // x is about `scale * a - minimum * b`.
    let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for ((x, w), &(group_scale, b)) in x.iter().zip(w).zip(&fit.groups) {
        let inverse = inverse(fit.scale.to_f64() * group_scale);
        let offset = -fit.minimum.to_f64() * b;
        for (&x, &w) in x.iter().zip(w) {
            let a = group_scale * levels.nearest((x - offset) * inverse);
            aa += w * a * a;
            ab += w * a * b;
            bb += w * b * b;
            xa += w * x * a;
            xb += w * x * b;
        }
    }
    let determinant = aa * bb - ab * ab;
    if determinant > 1e-9 * aa * bb {
        (
            (xa * bb - xb * ab) / determinant,
            (xa * ab - xb * aa) / determinant,
        )
    } else {
        (xa * inverse(aa), fit.minimum.to_f64())
    }
}

fn fit(x: &Values, levels: Levels) -> Fit {
    /// The largest integers in use that searches start from.
    const STARTS: [f64; 3] = [63.0, 61.0, 57.0];
    let w = weights(x);
    let mut real = [(0.0, 0.0); GROUPS];
    for ((x, w), real) in x.iter().zip(&w).zip(&mut real) {
        *real = scale_and_offset(x, w, levels, 0.0);
    }
    let largest = real
        .iter()
        .fold((0.0, 0.0), |(scale, minimum): (f64, f64), real| {
            (scale.max(real.0), minimum.max(-real.1))
        });
    let mut best: Option<Fit> = None;
    for start in STARTS {
        let mut asked = (stored(largest.0 / start), stored(largest.1 / start));
        for _ in 0..ROUNDS {
            let found = with_units(x, &w, levels, &real, asked);
            let (scale, minimum) = units(x, &w, levels, &found);
            if best.is_none_or(|best| found.lost < best.lost) {
                best = Some(found);
            }
            let next = (stored(scale.max(0.0)), stored(minimum.max(0.0)));
            if next == asked {
                break;
            }
            asked = next;
        }
    }
    best.unwrap_or_else(|| with_units(x, &w, levels, &real, (f16::ZERO, f16::ZERO)))
}

/// Writes units and integers to the block's head and returns the levels, which start at 0.
fn encode(x: &[f64; N], high: f64, head: &mut [u8]) -> [[u8; GROUP]; GROUPS] {
    let mut values = [[0.0; GROUP]; GROUPS];
    for (group, x) in values.iter_mut().zip(x.chunks_exact(GROUP)) {
        group.copy_from_slice(x);
    }
    let levels = Levels { low: 0.0, high };
    let fit = fit(&values, levels);
    head[..2].copy_from_slice(&fit.scale.to_le_bytes());
    head[2..4].copy_from_slice(&fit.minimum.to_le_bytes());
    let integers = fit
        .groups
        .map(|(scale, minimum)| (scale as u8, minimum as u8));
    for at in 0..4 {
        // See `block::Q4K::groups`.
        let ((scale, minimum), (later_scale, later_minimum)) = (integers[at], integers[at + 4]);
        head[4 + at] = scale | later_scale >> 4 << 6;
        head[8 + at] = minimum | later_minimum >> 4 << 6;
        head[12 + at] = later_scale & 15 | later_minimum << 4;
    }
    let mut result = [[0; GROUP]; GROUPS];
    for ((result, x), (scale, minimum)) in result.iter_mut().zip(&values).zip(fit.groups) {
        let inverse = inverse(fit.scale.to_f64() * scale);
        let offset = -fit.minimum.to_f64() * minimum;
        *result = x.map(|x| levels.nearest((x - offset) * inverse) as u8);
    }
    result
}

/// The low four bits of levels: 32 bytes hold an even group in their low and the next in their high halves.
fn put_pairs(levels: &[[u8; GROUP]; GROUPS], output: &mut [u8]) {
    for (pair, bytes) in levels.chunks_exact(2).zip(output.chunks_exact_mut(GROUP)) {
        for ((byte, low), high) in bytes.iter_mut().zip(pair[0]).zip(pair[1]) {
            *byte = low & 15 | high << 4;
        }
    }
}

pub(super) fn q4_k(x: &[f64; N], output: &mut [u8]) {
    let levels = encode(x, 15.0, &mut output[..16]);
    put_pairs(&levels, &mut output[16..]);
}

/// The fifth bits lie before the others: bit `g` of byte `i` is that of element `i` of group `g`.
pub(super) fn q5_k(x: &[f64; N], output: &mut [u8]) {
    let levels = encode(x, 31.0, &mut output[..16]);
    for (index, byte) in output[16..48].iter_mut().enumerate() {
        *byte = (0..GROUPS).fold(0, |bits, group| bits | levels[group][index] >> 4 << group);
    }
    put_pairs(&levels, &mut output[48..]);
}
