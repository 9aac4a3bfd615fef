//! Weights of tokens: softmax in fixed point, over a row of logits.
//!
//! A token's weight is `2^((logit - largest) * scale)`, rounded to an integer out of [`ONE`]; with [`scale`] that is
//! `exp((logit - largest) / temperature)`. Sums of integers are exact, so they do not depend on the order of adding.
//! Tokens less probable than the best one by a factor of more than 2^41 weigh nothing.
//!
//! The exponent is split at the nearest integer; what is left goes into a polynomial within 2e-7 of the power, which is
//! exactly 1 at 0. Multiplications and additions are each rounded on their own.

use super::LANES;

/// Weight of the token with the largest logit.
pub const ONE: u64 = 1 << (2 * HALF_BITS);

/// Tokens whose weights [`crate::Table::sum_weights`] adds up in one sum.
pub const BLOCK: usize = 256;

/// A weight is added up in two halves, which fit the integers that are exact in an f32 with a sign.
const HALF_BITS: u32 = 20;

/// 1.5 x 2^23: adding it rounds to an integer, which then is the low bits of the sum less those of this.
const ROUND: f32 = 12_582_912.0;

/// Exponents below this weigh nothing anyway, and their powers are no subnormal numbers.
const LEAST: f32 = -100.0;

/// Smallest greatest relative error of `1 + f (c0 + f (c1 + ..))` to `2^f` for `|f| <= 1/2`.
#[expect(
    clippy::approx_constant,
    reason = "the first is fitted with the others; ln 2 itself would double the error"
)]
const POWER: [f32; 5] = [
    0.693_147,
    0.240_222_42,
    0.055_507_336,
    0.009_671_513,
    0.001_326_472_7,
];

/// What differences of logits are multiplied with to be exponents of two at a temperature; 0 for one that is negative or
/// not a number, at which all tokens weigh the same.
#[must_use]
pub fn scale(temperature: f32) -> f32 {
    // Finite, so that the largest logit itself has the exponent 0, and not negative, so that no exponent is positive.
    let scale = core::f32::consts::LOG2_E / temperature;
    if scale > 0.0 {
        scale.min(f32::MAX)
    } else {
        0.0
    }
}

/// The largest logit; `None` if there is none or any is not finite.
#[inline(always)]
pub(crate) fn largest_finite(logits: &[f32]) -> Option<f32> {
    let mut largest = [f32::NEG_INFINITY; LANES];
    // 0 x is zero for a finite x and not a number otherwise; a sum keeps that.
    let mut finite = [0.0_f32; LANES];
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            largest[lane] = if row[lane] > largest[lane] {
                row[lane]
            } else {
                largest[lane]
            };
            finite[lane] += row[lane] * 0.0;
        }
    }
    let mut result = f32::NEG_INFINITY;
    for &logit in largest.iter().chain(rest) {
        result = if logit > result { logit } else { result };
    }
    let finite = finite.iter().all(|&zero| zero == 0.0) && rest.iter().all(|x| x.is_finite());
    (finite && result > f32::NEG_INFINITY).then_some(result)
}

/// A token's weight before it is rounded, in units of 2^20 below [`ONE`].
#[inline(always)]
#[must_use]
pub fn weight(logit: f32, largest: f32, scale: f32) -> f32 {
    let exponent = (logit - largest) * scale;
    let exponent = if exponent > LEAST { exponent } else { LEAST };
    let shifted = exponent + ROUND;
    let fraction = exponent - (shifted - ROUND);
    let mut power = POWER[4];
    power = power * fraction + POWER[3];
    power = power * fraction + POWER[2];
    power = power * fraction + POWER[1];
    power = power * fraction + POWER[0];
    power = power * fraction + 1.0;
    // The integer sits in the low bits of `shifted`; the bits of `ROUND` below the exponent are moved out.
    let exponent = (shifted.to_bits() << 23).wrapping_add(HALF_BITS << 23);
    f32::from_bits(power.to_bits().wrapping_add(exponent))
}

/// The bits of both halves of a rounded weight, the upper first, each with those of [`ROUND`] added.
#[inline(always)]
fn halves(weight: f32) -> [u32; 2] {
    let upper = weight + ROUND;
    // Exact: the integer is the nearest. Its upper half rounds up at times; then the lower one is negative.
    let rest = weight - (upper - ROUND);
    let lower = rest * (1_u32 << HALF_BITS) as f32 + ROUND;
    [upper.to_bits(), lower.to_bits()]
}

/// The sum of `count` weights of which the halves were added up by [`halves`].
#[inline(always)]
fn join([upper, lower]: [u32; 2], count: usize) -> u64 {
    let bits = (count as u32).wrapping_mul(ROUND.to_bits());
    // Up to 2^8 halves below 2^21 in magnitude were added.
    let half = |sum: u32| i64::from(sum.wrapping_sub(bits) as i32);
    (half(upper) << HALF_BITS).wrapping_add(half(lower)) as u64
}

/// A weight, rounded to an integer, ties to even.
#[inline(always)]
#[must_use]
pub fn round(weight: f32) -> u64 {
    join(halves(weight), 1)
}

/// Rounded weights of all tokens, added up in blocks of [`BLOCK`].
#[inline(always)]
pub(crate) fn sum_weights(logits: &[f32], largest: f32, scale: f32, sums: &mut [u64]) {
    assert_eq!(sums.len(), logits.len().div_ceil(BLOCK));
    for (block, sum) in logits.chunks(BLOCK).zip(sums) {
        let (mut upper, mut lower) = ([0_u32; LANES], [0_u32; LANES]);
        let (rows, rest) = block.as_chunks::<LANES>();
        for row in rows {
            for lane in 0..LANES {
                let [high, low] = halves(weight(row[lane], largest, scale));
                upper[lane] = upper[lane].wrapping_add(high);
                lower[lane] = lower[lane].wrapping_add(low);
            }
        }
        for (lane, &logit) in rest.iter().enumerate() {
            let [high, low] = halves(weight(logit, largest, scale));
            upper[lane] = upper[lane].wrapping_add(high);
            lower[lane] = lower[lane].wrapping_add(low);
        }
        let total = |lanes: [u32; LANES]| lanes.iter().fold(0, |sum: u32, &x| sum.wrapping_add(x));
        *sum = join([total(upper), total(lower)], block.len());
    }
}

/// Writes the [`weight`] of each token.
#[inline(always)]
pub(crate) fn weights(logits: &[f32], largest: f32, scale: f32, weights: &mut [f32]) {
    assert_eq!(weights.len(), logits.len());
    for (output, &logit) in weights.iter_mut().zip(logits) {
        *output = weight(logit, largest, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, ONE, largest_finite, round, scale, sum_weights, weight};
    use std::vec::Vec;

    #[test]
    fn weights_follow_the_exponential() {
        let unit = (1_u64 << 20) as f64;
        let mut worst = 0.0_f64;
        for step in 0..280_000_u32 {
            let x = step as f32 * -1e-4;
            // Beside the power's own error that of the exponent, which is rounded.
            let bound = 2e-7 + f64::from(x).abs() * 1.2e-7;
            let exact = f64::from(x).exp() * unit;
            let error = (f64::from(weight(x, 0.0, scale(1.0))) - exact).abs() / exact;
            worst = worst.max(error / bound);
        }
        assert!(worst < 1.0, "{worst}");
        assert_eq!(round(weight(3.0, 3.0, scale(0.7))), ONE);
        assert_eq!(
            round(weight(f32::MIN, f32::MAX, scale(f32::MIN_POSITIVE))),
            0
        );
        assert_eq!(round(weight(f32::MAX, f32::MAX, scale(1e-45))), ONE);
        for temperature in [-1.0, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(round(weight(-3.0, 3.0, scale(temperature))), ONE);
        }
    }

    #[test]
    fn rounding_is_that_of_the_exact_value() {
        for step in 0..400_000_u32 {
            let weight = weight(step as f32 * -1e-4, 0.0, 1.0);
            let exact = f64::from(weight) * (1_u64 << 20) as f64;
            assert_eq!(round(weight), exact.round_ties_even() as u64, "{weight:e}");
        }
    }

    #[test]
    fn sums_are_those_of_the_rounded_weights() {
        for length in [0, 1, 15, 17, BLOCK, 3 * BLOCK + 37] {
            let logits: Vec<f32> = (0..length)
                .map(|index| (index * 37 % 101) as f32 * -0.2)
                .collect();
            let mut sums = std::vec![0; length.div_ceil(BLOCK)];
            sum_weights(&logits, 0.0, 1.3, &mut sums);
            for (block, &sum) in logits.chunks(BLOCK).zip(&sums) {
                let expected = block.iter().map(|&logit| round(weight(logit, 0.0, 1.3)));
                assert_eq!(sum, expected.sum::<u64>(), "{length}");
            }
        }
        // All of them as heavy as they get.
        let mut sums = [0];
        sum_weights(&[1.0; BLOCK], 1.0, 1.0, &mut sums);
        assert_eq!(sums, [BLOCK as u64 * ONE]);
    }

    #[test]
    fn non_finite_logits_are_seen_wherever_they_are() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for length in [1, 15, 16, 17, 40] {
                for at in 0..length {
                    let mut logits = std::vec![1.0; length];
                    assert_eq!(largest_finite(&logits), Some(1.0));
                    logits[at] = bad;
                    assert_eq!(largest_finite(&logits), None);
                }
            }
        }
        assert_eq!(largest_finite(&[]), None);
        assert_eq!(largest_finite(&[f32::MIN, f32::MAX]), Some(f32::MAX));
    }
}
