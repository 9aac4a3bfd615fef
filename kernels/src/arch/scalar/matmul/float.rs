//! Unquantized weights.

use super::{Column, Dot};
use crate::block::{BF16, F16, F32, bf16_at, f16_at};
use crate::op::{LANES, sum_lanes};
use libm::fmaf;

/// The dot product of unquantized weights, lane by lane.
fn lanes_dot(weights: impl Iterator<Item = f32>, values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (index, (weight, &value)) in weights.zip(values).enumerate() {
        lanes[index % LANES] = fmaf(weight, value, lanes[index % LANES]);
    }
    if !values.len().is_multiple_of(LANES) {
        for lane in &mut lanes[values.len() % LANES..] {
            *lane = fmaf(0.0, 0.0, *lane); // the padding: turns a negative zero positive
        }
    }
    sum_lanes(lanes)
}

impl Dot for F32 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        lanes_dot(
            row.iter().map(|block| f32::from_le_bytes(block.bits)),
            column.values,
        )
    }
}

impl Dot for F16 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        lanes_dot(row.iter().map(|block| f16_at(block.bits)), column.values)
    }
}

impl Dot for BF16 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        lanes_dot(row.iter().map(|block| bf16_at(block.bits)), column.values)
    }
}
