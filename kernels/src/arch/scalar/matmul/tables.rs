//! Levels looked up in a table.

use super::{Column, Dot, integer_dot, nibbles};
use crate::block::{IQ4NL, IQ4XS, MXFP4, f16_at};
use libm::fmaf;

/// The table's levels of 16 bytes of indices: low halves first.
fn looked_up(table: [i8; 16], indices: &[u8; 16]) -> impl Iterator<Item = i32> {
    nibbles(indices).map(move |index| i32::from(table[usize::from(index)]))
}

impl Dot for IQ4NL {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let i = integer_dot(looked_up(IQ4NL::TABLE, &block.indices), levels);
            acc = fmaf(f16_at(block.scale) * x.scale, i as f32, acc);
        }
        acc
    }
}

impl Dot for IQ4XS {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            let scales = block.scales();
            for (group, scale) in scales.into_iter().enumerate() {
                let (levels, x) = column.group(index * 8 + group);
                let i = integer_dot((0..32).map(|at| i32::from(block.level(group, at))), levels);
                let scale = f16_at(block.scale) * f32::from(scale);
                acc = fmaf(scale * x.scale, i as f32, acc);
            }
        }
        acc
    }
}

impl Dot for MXFP4 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, x) = column.group(group);
            let i = integer_dot(looked_up(MXFP4::TABLE, &block.indices), levels);
            acc = fmaf(block.scale() * x.scale, i as f32, acc);
        }
        acc
    }
}
