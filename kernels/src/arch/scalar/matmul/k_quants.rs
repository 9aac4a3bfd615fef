//! Blocks of 256 elements with scales of scales.

use super::{Column, Dot, integer_dot};
use crate::activation::Group;
use crate::block::{Groups, Q2K, Q3K, Q4K, Q5K, Q6K, f16_at};
use libm::fmaf;

impl Dot for Q2K {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            for group in 0..8 {
                let (levels, x) = column.group(index * 8 + group);
                let (mut scaled, mut minimum) = (0, 0);
                for half in 0..2 {
                    let at = group * 32 + half * 16;
                    let weights = (at..at + 16).map(|element| i32::from(block.level(element)));
                    let packed = i32::from(block.groups[group * 2 + half]);
                    scaled += (packed & 15) * integer_dot(weights, &levels[half * 16..]);
                    minimum += (packed >> 4) * x.half_sums()[half];
                }
                acc = fmaf(f16_at(block.scale) * x.scale, scaled as f32, acc);
                acc = fmaf(
                    -(f16_at(block.minimum_scale) * x.scale),
                    minimum as f32,
                    acc,
                );
            }
        }
        acc
    }
}

/// `g0 * (i0 - offset * s0) + g1 * (i1 - offset * s1)` of group `group` of a block, where 0 and 1 are the halves of
/// the group with their own group scales.
fn halves_dot(
    level: impl Fn(usize) -> u8,
    offset: i32,
    scales: &[i8; 16],
    group: usize,
    levels: &[i8],
    sums: [i32; 2],
) -> i32 {
    let half_dot = |half: usize| {
        let at = group * 32 + half * 16;
        let weights = (at..at + 16).map(|element| i32::from(level(element)));
        let i = integer_dot(weights, &levels[half * 16..]) - offset * sums[half];
        i32::from(scales[group * 2 + half]) * i
    };
    half_dot(0) + half_dot(1)
}

impl Dot for Q3K {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            let scales = block.scales();
            for group in 0..8 {
                let (levels, x) = column.group(index * 8 + group);
                let i = halves_dot(
                    |at| block.level(at),
                    4,
                    &scales,
                    group,
                    levels,
                    x.half_sums(),
                );
                acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
            }
        }
        acc
    }
}

impl Dot for Q6K {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            for group in 0..8 {
                let (levels, x) = column.group(index * 8 + group);
                let i = halves_dot(
                    |at| block.level(at),
                    32,
                    &block.scales,
                    group,
                    levels,
                    x.half_sums(),
                );
                acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
            }
        }
        acc
    }
}

/// Adds group `group` of a block with group minimums to `acc`.
fn with_minimum(
    acc: f32,
    level: impl Fn(usize) -> u8,
    [scale, minimum_scale]: [[u8; 2]; 2],
    groups: &Groups,
    group: usize,
    (levels, x): (&[i8], &Group),
) -> f32 {
    let i = integer_dot((0..32).map(|at| i32::from(level(at))), levels);
    let scale = f16_at(scale) * f32::from(groups.scales[group]);
    let minimum = f16_at(minimum_scale) * f32::from(groups.minimums[group]);
    let acc = fmaf(scale * x.scale, i as f32, acc);
    fmaf(-minimum, x.scaled_sum, acc)
}

impl Dot for Q4K {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            let (factors, groups) = ([block.scale, block.minimum_scale], block.groups());
            for group in 0..8 {
                let x = column.group(index * 8 + group);
                let level = |at| block.level(group, at);
                acc = with_minimum(acc, level, factors, &groups, group, x);
            }
        }
        acc
    }
}

impl Dot for Q5K {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            let (factors, groups) = ([block.scale, block.minimum_scale], block.groups());
            for group in 0..8 {
                let x = column.group(index * 8 + group);
                let level = |at| block.level(group, at);
                acc = with_minimum(acc, level, factors, &groups, group, x);
            }
        }
        acc
    }
}
