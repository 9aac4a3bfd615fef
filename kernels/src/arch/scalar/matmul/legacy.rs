//! Blocks of 32 elements with evenly spaced levels.

use super::{Column, Dot, integer_dot, nibbles};
use crate::block::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, f16_at};
use libm::fmaf;

impl Dot for Q8_0 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let i = integer_dot(block.levels.iter().map(|&level| i32::from(level)), levels);
            acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
        }
        acc
    }
}

impl Dot for Q4_0 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let i = integer_dot(nibbles(&block.levels).map(i32::from), levels) + 8 * x.negated_sum;
            acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
        }
        acc
    }
}

impl Dot for Q4_1 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let i = integer_dot(nibbles(&block.levels).map(i32::from), levels);
            acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
            acc = fmaf(f16_at(block.minimum), x.scaled_sum, acc);
        }
        acc
    }
}

impl Dot for Q5_0 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let weights = (0..32).map(|at| i32::from(block.level(at)));
            let i = integer_dot(weights, levels) + 16 * x.negated_sum;
            acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
        }
        acc
    }
}

impl Dot for Q5_1 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let i = integer_dot((0..32).map(|at| i32::from(block.level(at))), levels);
            acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
            acc = fmaf(f16_at(block.minimum), x.scaled_sum, acc);
        }
        acc
    }
}
