//! Softmax in fixed point.
//!
//! A token's weight is `exp((logit - max) / temperature)` scaled to an integer out of [`ONE`]. Sums
//! of integers are exact, so cumulative probabilities do not depend on the order of adding: the
//! token found at a given one is the same however the search went. Tokens less probable than the
//! best one by a factor of 2^40 weigh nothing and are never drawn; a vocabulary of a million of
//! them would have held less than a millionth of the probability.

/// Weight of the most probable token.
pub(super) const ONE: u64 = 1 << 40;

const LANES: usize = 16;

/// Largest logit and whether all are finite. `None` for no logits or if any is not finite.
pub(super) fn max_finite(logits: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    // 0 x is zero for a finite x and not a number otherwise; a sum keeps that.
    let mut finite = [0.0_f32; LANES];
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            max[lane] = if row[lane] > max[lane] {
                row[lane]
            } else {
                max[lane]
            };
            finite[lane] += row[lane] * 0.0;
        }
    }
    let max =
        max.iter().chain(rest).fold(
            f32::NEG_INFINITY,
            |best, &logit| if logit > best { logit } else { best },
        );
    let finite =
        finite.iter().all(|&zero| zero == 0.0) && rest.iter().all(|logit| logit.is_finite());
    (finite && max > f32::NEG_INFINITY).then_some(max)
}

/// `e^x` for `x <= 0`, to within 2 ulp; below -87 the result of -87.
///
/// Plain multiplications and additions, each rounded on its own, so every machine gives the same
/// bits and the loops around it vectorise. Reduction by Cody and Waite; the polynomial is the one
/// of the Cephes library's `expf`.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 × 2^23: adding it rounds to an integer
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * core::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    // The integer sits in the low bits of `shifted`; moved to the exponent it is 2^n.
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000)) * p
}

/// Fixed-point weight of a probability relative to the best token's.
#[inline]
pub(super) fn quantize(weight: f32) -> u64 {
    // ONE is a power of two, so the product is exact; the conversion truncates.
    (weight * ONE as f32) as u64
}

/// Writes `exp((logit - max) / temperature)` of every logit to `weights`.
pub(super) fn fill(weights: &mut Vec<f32>, logits: &[f32], max: f32, temperature: f32) {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| of(logit, max, temperature)));
}

/// `exp((logit - max) / temperature)`.
#[inline]
pub(super) fn of(logit: f32, max: f32, temperature: f32) -> f32 {
    exp((logit - max) / temperature)
}

/// Sum over `weights` in fixed point.
pub(super) fn total(weights: &[f32]) -> u64 {
    weights.iter().map(|&weight| quantize(weight)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut worst = 0.0_f64;
        for step in 0..870_000_u32 {
            let x = step as f32 * -1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.0), exp(-1000.0));
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
        assert_eq!(quantize(exp(f32::NEG_INFINITY)), 0);
    }

    #[test]
    fn non_finite_logits_are_seen_wherever_they_are() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for length in [1, 15, 16, 17, 40] {
                for at in 0..length {
                    let mut logits = vec![1.0; length];
                    assert_eq!(max_finite(&logits), Some(1.0));
                    logits[at] = bad;
                    assert_eq!(max_finite(&logits), None);
                }
            }
        }
        assert_eq!(max_finite(&[]), None);
        assert_eq!(max_finite(&[f32::MIN, f32::MAX]), Some(f32::MAX));
    }

    #[test]
    fn weights_survive_extreme_spreads() {
        let mut weights = Vec::new();
        fill(
            &mut weights,
            &[f32::MAX, f32::MIN, f32::MAX],
            f32::MAX,
            f32::MIN_POSITIVE,
        );
        assert_eq!(total(&weights), 2 * ONE);
    }
}
