//! Activations to 8 bits.

use super::exp::ROUND;
use crate::activation::{GROUP, QuantizedMut};

/// Quantizes whole groups of 32: `scale = max|x| / 127`, `level = x * (1 / scale)` rounded to nearest, ties to
/// even; two sums of 16 levels each.
///
/// A group whose largest magnitude is below 1e-30 becomes zero. A group with an infinity or a NaN gets levels of zero
/// and a NaN scale, so that the fault reaches the result instead of vanishing in an integer.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], output: &mut QuantizedMut<'_>) {
    let groups = x.len() / GROUP;
    assert!(x.len().is_multiple_of(GROUP) && output.levels.len() == x.len());
    assert!(output.scales.len() == groups && output.sums.len() == 2 * groups);
    let (values, _) = x.as_chunks::<GROUP>();
    let (levels, _) = output.levels.as_chunks_mut::<GROUP>();
    let (sums, _) = output.sums.as_chunks_mut::<2>();
    for (((values, levels), scale), sums) in values
        .iter()
        .zip(levels)
        .zip(output.scales.iter_mut())
        .zip(sums)
    {
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
        if exponent == 0x7f80_0000 || maximum < 1e-30 {
            *scale = if exponent == 0x7f80_0000 {
                f32::NAN
            } else {
                0.0
            };
            *levels = [0; GROUP];
            *sums = [0; 2];
            continue;
        }
        *scale = maximum / 127.0;
        let inverse = 1.0 / *scale;
        let mut integers = [0i32; GROUP];
        for (integer, &value) in integers.iter_mut().zip(values) {
            *integer =
                ((value * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        }
        for (half, sum) in sums.iter_mut().enumerate() {
            *sum = integers[half * 16..half * 16 + 16].iter().sum();
        }
        for (level, &integer) in levels.iter_mut().zip(&integers) {
            *level = integer as i8;
        }
    }
}
