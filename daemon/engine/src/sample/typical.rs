//! Locally typical sampling: C. Meister, T. Pimentel, G. Wiher, R. Cotterell, "Locally Typical Sampling", 2022.
//!
//! Kept are the tokens whose surprise `-ln p` is nearest to the distribution's entropy, as many as it takes to reach a
//! given probability. With weights `w = exp(x)` out of a total `W`, surprise and entropy are `ln W - x` and
//! `ln W - sum(w x) / W`, so their difference is that of `x` and its mean: no logarithm is needed. The mean is taken in
//! integers, so it does not depend on the order of adding.

use core::cmp::Ordering;

use super::select::{self, Candidate};

/// Units of `x` in fixed point. It is above -28 for every token that has a weight, see [`super::weight`].
const UNITS: f64 = (1_u64 << 32) as f64;

/// `(logit - max) / temperature` in fixed point.
fn exponent(logit: f32, max: f32, temperature: f32) -> i64 {
    (f64::from((logit - max) / temperature) * UNITS) as i64
}

/// Keeps the typical tokens of `candidates`, which have weights of `total` together; at least one is kept.
pub(super) fn keep(
    candidates: &mut Vec<Candidate>,
    max: f32,
    temperature: f32,
    typical_p: f32,
    total: u64,
) {
    let exponent = |candidate: &Candidate| exponent(candidate.logit, max, temperature);
    // Weights are at most 2^40 and exponents at most 28 x 2^32, so a sum over 2^32 tokens is below 2^109.
    let sum: i128 = candidates
        .iter()
        .map(|candidate| i128::from(candidate.weight) * i128::from(exponent(candidate)))
        .sum();
    let mean = i64::try_from(sum / i128::from(total.max(1))).unwrap_or(0);
    let by_deviation = |a: &Candidate, b: &Candidate| -> Ordering {
        let deviation = |candidate| i64::abs_diff(exponent(candidate), mean);
        deviation(a)
            .cmp(&deviation(b))
            .then(b.weight.cmp(&a.weight))
            .then(a.id.cmp(&b.id))
    };
    // As for top-p: off by less than one part in 2^52.
    let mass = ((f64::from(typical_p) * total as f64).ceil() as u64).clamp(1, total.max(1));
    if let Some((last, _)) = select::at_mass(candidates, mass, by_deviation) {
        candidates.retain(|candidate| by_deviation(candidate, &last) != Ordering::Greater);
    }
}
