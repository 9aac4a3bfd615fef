//! Q6_K: 256 elements in sixteen groups of 16. Groups have 8-bit scales in units of one f16 of the block.
//!
//! What is lost weighs each element by its square and [`SHARE`] of its group's mean square. The groups are fitted with
//! real numbers first; then the block's unit, the groups' integers and the levels are improved in turn.

use super::search::{Levels, error, farthest, inverse, scale, stored};
use half::f16;

const N: usize = 256;
const GROUP: usize = 16;
const GROUPS: usize = N / GROUP;

const LEVELS: Levels = Levels {
    low: -32.0,
    high: 31.0,
};
const INTEGERS: Levels = Levels {
    low: -128.0,
    high: 127.0,
};

/// Share of the mean square in a weight: by squares alone, small elements would be lost to large ones.
const SHARE: f64 = 0.5;

/// Rounds of improving unit and integers in turn.
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
struct Fit {
    unit: f16,
    groups: [f64; GROUPS],
    lost: f64,
}

type Values = [[f64; GROUP]; GROUPS];

/// The integers of every group that lose least under the given unit, near the real solutions.
fn with_unit(x: &Values, w: &Values, real: &[f64; GROUPS], unit: f16) -> Fit {
    let inverse = inverse(unit.to_f64());
    let mut fit = Fit {
        unit,
        groups: [0.0; GROUPS],
        lost: 0.0,
    };
    for (((x, w), real), chosen) in x.iter().zip(w).zip(real).zip(&mut fit.groups) {
        let integer = INTEGERS.nearest(real * inverse);
        let mut best = (f64::INFINITY, 0.0);
        for integer in [integer, integer - 1.0, integer + 1.0] {
            if integer.clamp(INTEGERS.low, INTEGERS.high) != integer {
                continue;
            }
            let lost = error(x, w, LEVELS, unit.to_f64() * integer, 0.0);
            if lost < best.0 {
                best = (lost, integer);
            }
        }
        fit.lost += best.0;
        *chosen = best.1;
    }
    fit
}

/// The unit that loses least with the integers and levels of a fit.
fn unit(x: &Values, w: &Values, fit: &Fit) -> f64 {
    let (mut aa, mut xa) = (0.0, 0.0);
    for ((x, w), &group) in x.iter().zip(w).zip(&fit.groups) {
        let inverse = inverse(fit.unit.to_f64() * group);
        for (&x, &w) in x.iter().zip(w) {
            let a = group * LEVELS.nearest(x * inverse);
            aa += w * a * a;
            xa += w * x * a;
        }
    }
    xa * inverse(aa)
}

fn fit(x: &Values) -> Fit {
    /// The integers of the largest group scale that searches start from.
    const STARTS: [f64; 3] = [-128.0, 127.0, 120.0];
    let w = x.map(|x| {
        let share = SHARE * x.iter().map(|x| x * x).sum::<f64>() / GROUP as f64;
        x.map(|x| x * x + share)
    });
    let places = || {
        let steps = |from: f64| (0..8).map(move |step| from + 0.4 * f64::from(step));
        steps(29.8).chain(steps(30.8).map(|place| -place))
    };
    let mut real = [0.0; GROUPS];
    for ((x, w), real) in x.iter().zip(&w).zip(&mut real) {
        *real = scale(x, w, LEVELS, places());
    }
    let largest = farthest(&real);
    let mut best: Option<Fit> = None;
    for start in STARTS {
        let mut asked = stored(largest / start);
        for _ in 0..ROUNDS {
            let found = with_unit(x, &w, &real, asked);
            let next = stored(unit(x, &w, &found));
            if best.is_none_or(|best| found.lost < best.lost) {
                best = Some(found);
            }
            if next == asked {
                break;
            }
            asked = next;
        }
    }
    best.unwrap_or_else(|| with_unit(x, &w, &real, f16::ZERO))
}

pub(super) fn q6_k(x: &[f64; N], output: &mut [u8]) {
    let mut values = [[0.0; GROUP]; GROUPS];
    for (group, x) in values.iter_mut().zip(x.chunks_exact(GROUP)) {
        group.copy_from_slice(x);
    }
    let fit = fit(&values);
    let level = |index: usize| {
        let inverse = inverse(fit.unit.to_f64() * fit.groups[index / GROUP]);
        (LEVELS.nearest(x[index] * inverse) + 32.0) as u8
    };
    // See `block::Q6K::level`.
    for (index, byte) in output[..128].iter_mut().enumerate() {
        let at = index / 64 * 128 + index % 64;
        *byte = level(at) & 15 | level(at + 64) << 4;
    }
    for (index, byte) in output[128..192].iter_mut().enumerate() {
        let at = index / 32 * 128 + index % 32;
        *byte = (0..4).fold(0, |bits, quarter| {
            bits | level(at + 32 * quarter) >> 4 << (2 * quarter)
        });
    }
    for (byte, integer) in output[192..208].iter_mut().zip(fit.groups) {
        *byte = (integer as i8).cast_unsigned();
    }
    output[208..].copy_from_slice(&fit.unit.to_le_bytes());
}
