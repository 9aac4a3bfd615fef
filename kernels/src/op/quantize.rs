//! Activations to 8 bits.

use super::exp::ROUND;
use crate::activation::{GROUP, Group, QuantizedMut};

/// A group whose largest magnitude is below this becomes zero: the reciprocal of its scale could overflow.
pub(crate) const MAXIMUM_MIN: f32 = 1e-30;

/// Bits of the smallest magnitude that is infinite or a NaN.
pub(crate) const NOT_FINITE: u32 = 0x7f80_0000;

/// What a group of levels of zero has: a scale of NaN if its values were not finite, else of zero.
#[inline(always)]
pub(crate) fn without_levels(not_finite: bool) -> Group {
    let scale = if not_finite { f32::NAN } else { 0.0 };
    Group {
        scale,
        scaled_sum: scale,
        ..Group::default()
    }
}

/// What a group has whose levels have these sums, one for each half.
#[inline(always)]
pub(crate) fn with_levels(scale: f32, [low, high]: [i32; 2]) -> Group {
    Group {
        scale,
        scaled_sum: scale * (low + high) as f32,
        negated_sum: -(low + high),
        negated_half_sums: [-low as i16, -high as i16],
    }
}

/// Quantizes whole groups of 32: `scale = max|x| / 127`, `level = x * (1 / scale)` rounded to nearest, ties to
/// even; the sums that [`Group`] has of them.
///
/// A group whose largest magnitude is below 1e-30 becomes zero. A group with an infinity or a NaN gets levels of zero
/// and a NaN scale, so that the fault reaches the result instead of vanishing in an integer.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], output: &mut QuantizedMut<'_>) {
    let groups = x.len() / GROUP;
    assert!(x.len().is_multiple_of(GROUP) && output.levels.len() == x.len());
    assert!(output.groups.len() == groups);
    let (values, _) = x.as_chunks::<GROUP>();
    let (levels, _) = output.levels.as_chunks_mut::<GROUP>();
    for ((values, levels), group) in values.iter().zip(levels).zip(output.groups.iter_mut()) {
        let mut largest = [0.0f32; 16];
        let mut exponents = [0u32; 16];
        for half in [&values[..16], &values[16..]] {
            for lane in 0..16 {
                let magnitude = f32::from_bits(half[lane].to_bits() & 0x7fff_ffff);
                largest[lane] = if magnitude > largest[lane] {
                    magnitude
                } else {
                    largest[lane]
                };
                exponents[lane] = exponents[lane].max(half[lane].to_bits() & 0x7f80_0000);
            }
        }
        let mut maximum = 0.0f32;
        let mut exponent = 0;
        for lane in 0..16 {
            maximum = if largest[lane] > maximum {
                largest[lane]
            } else {
                maximum
            };
            exponent = exponent.max(exponents[lane]);
        }
        if exponent == NOT_FINITE || maximum < MAXIMUM_MIN {
            *levels = [0; GROUP];
            *group = without_levels(exponent == NOT_FINITE);
            continue;
        }
        let scale = maximum / 127.0;
        let inverse = 1.0 / scale;
        let mut integers = [0i32; GROUP];
        for (integer, &value) in integers.iter_mut().zip(values) {
            *integer =
                ((value * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        }
        let low: i32 = integers[..16].iter().sum();
        let high: i32 = integers[16..].iter().sum();
        *group = with_levels(scale, [low, high]);
        for (level, &integer) in levels.iter_mut().zip(&integers) {
            *level = integer as i8;
        }
    }
}
