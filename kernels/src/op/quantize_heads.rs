//! Keys, values and queries of attention to 8 bits.

use super::LANES;
use super::attention::{GROUP, key_groups, key_levels};
use super::exp::ROUND;

/// Quantizes elements that share a scale; returns the scale as f16.
///
/// The scale is `max|x| / 127` as the nearest f16 (ties to even), a level is `x * (1 / scale)` rounded to nearest, ties
/// to even, within ±127. A scale that is zero as f16 has levels of zero. Where an element is infinite or NaN, or the
/// scale is infinite as f16, levels are zero and the scale is NaN, so that the fault reaches the result.
#[inline(always)]
pub(crate) fn quantize_head(x: &[f32], levels: &mut [i8]) -> u16 {
    assert_eq!(x.len(), levels.len());
    let mut largest = [0.0f32; LANES];
    let mut exponents = [0u32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let bits = chunk[lane].to_bits();
            let magnitude = f32::from_bits(bits & 0x7fff_ffff);
            largest[lane] = if magnitude > largest[lane] {
                magnitude
            } else {
                largest[lane]
            };
            exponents[lane] = exponents[lane].max(bits & 0x7f80_0000);
        }
    }
    let mut maximum = 0.0f32;
    let mut exponent = 0;
    let magnitudes = tail
        .iter()
        .map(|value| f32::from_bits(value.to_bits() & 0x7fff_ffff));
    for magnitude in largest.into_iter().chain(magnitudes.clone()) {
        maximum = if magnitude > maximum {
            magnitude
        } else {
            maximum
        };
    }
    let tail_exponents = magnitudes.map(|magnitude| magnitude.to_bits() & 0x7f80_0000);
    for of_lane in exponents.into_iter().chain(tail_exponents) {
        exponent = exponent.max(of_lane);
    }
    let half = half::f16::from_f32(maximum / 127.0);
    let scale = half.to_f32();
    if exponent == 0x7f80_0000 || scale == f32::INFINITY {
        levels.fill(0);
        return 0x7e00;
    }
    if scale == 0.0 {
        levels.fill(0);
        return 0;
    }
    let inverse = 1.0 / scale;
    for (level, &value) in levels.iter_mut().zip(x) {
        let scaled = value * inverse;
        let scaled = if scaled > 127.0 { 127.0 } else { scaled };
        let scaled = if scaled < -127.0 { -127.0 } else { scaled };
        *level = ((scaled + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i8;
    }
    half.to_bits()
}

/// Quantizes a key of `x.len()` dimensions: levels, filled up with zeros to [`key_levels`], and the f16 scales of its
/// groups.
#[inline(always)]
pub(crate) fn quantize_key(x: &[f32], levels: &mut [i8], scales: &mut [u16]) {
    assert!(levels.len() == key_levels(x.len()) && scales.len() == key_groups(x.len()));
    let (head, rest) = levels.split_at_mut(x.len());
    rest.fill(0);
    for ((x, levels), scale) in x.chunks(GROUP).zip(head.chunks_mut(GROUP)).zip(scales) {
        *scale = quantize_head(x, levels);
    }
}

/// Quantizes a query in two parts, one after the other in `levels`, `scales` and `offsets`: as [`quantize_key`] does a
/// key, and then, the same way, what is left, `x` less level times scale (product and difference rounded). The f16 scales
/// are given as f32, with the groups' sums of levels times -128.
///
/// One part alone would add as much error to the scores as the keys do.
#[inline(always)]
pub(crate) fn quantize_query(
    x: &[f32],
    levels: &mut [i8],
    scales: &mut [f32],
    offsets: &mut [i32],
) {
    let (stride, groups) = (key_levels(x.len()), key_groups(x.len()));
    assert!(levels.len() == 2 * stride);
    assert!(scales.len() == 2 * groups && offsets.len() == scales.len());
    let (first, second) = levels.split_at_mut(stride);
    for levels in [&mut *first, &mut *second] {
        levels[x.len()..].fill(0);
    }
    for (group, x) in x.chunks(GROUP).enumerate() {
        let mut left = [0.0; GROUP];
        let left = &mut left[..x.len()];
        left.copy_from_slice(x);
        for (part, levels) in [&mut *first, &mut *second].into_iter().enumerate() {
            let levels = &mut levels[group * GROUP..][..x.len()];
            let scale = half::f16::from_bits(quantize_head(left, levels)).to_f32();
            scales[part * groups + group] = scale;
            offsets[part * groups + group] =
                -128 * levels.iter().map(|&level| i32::from(level)).sum::<i32>();
            for (left, &level) in left.iter_mut().zip(&*levels) {
                *left -= f32::from(level) * scale;
            }
        }
    }
}
