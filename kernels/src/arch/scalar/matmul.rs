//! Matrix products, see [`crate::op::matmul`].

use crate::Format;
use crate::activation::{GROUP, Quantized};
use crate::block::{Block, F16, F32, Q4_0, Q4_1, Q4K, Q6K, Q8_0, f16_at};
use crate::op::matmul::{Kernel, Product};
use crate::op::{LANES, sum_lanes};
use libm::fmaf;

/// The kernel of a format.
pub(crate) const fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => product::<F32>,
        Format::F16 => product::<F16>,
        Format::Q4_0 => product::<Q4_0>,
        Format::Q4_1 => product::<Q4_1>,
        Format::Q8_0 => product::<Q8_0>,
        Format::Q4K => product::<Q4K>,
        Format::Q6K => product::<Q6K>,
    }
}

/// A column, as its row kernels see it.
#[derive(Clone, Copy)]
struct Column<'a> {
    values: &'a [f32],
    quantized: Quantized<'a>,
}

trait Dot: Block {
    fn dot(row: &[Self], column: Column<'_>) -> f32;
}

/// [`Kernel`] of a block type.
///
/// # Safety
/// See [`Kernel`].
unsafe fn product<B: Dot>(product: Product<'_>) {
    let columns = product.columns;
    let k = columns.k;
    let row_length = B::FORMAT.bytes(k).expect("rows are whole blocks");
    for row in 0..product.row_count {
        // SAFETY: the caller owes `row_count` readable rows of `k` elements, `row_bytes` apart.
        let bytes = unsafe {
            core::slice::from_raw_parts(product.weights.add(row * product.row_bytes), row_length)
        };
        let blocks = B::cast(bytes).expect("rows are whole blocks");
        for column in 0..columns.count {
            let range = column * k..(column + 1) * k;
            let groups = range.start / GROUP..range.end / GROUP;
            let view = if B::FORMAT.is_quantized() {
                Column {
                    values: &[],
                    quantized: Quantized {
                        levels: &columns.quantized.levels[range],
                        scales: &columns.quantized.scales[groups.clone()],
                        sums: &columns.quantized.sums[2 * groups.start..2 * groups.end],
                    },
                }
            } else {
                Column {
                    values: &columns.values[range],
                    quantized: Quantized::default(),
                }
            };
            // SAFETY: the caller owes a writable output for every row and column.
            unsafe { *product.output.add(column * product.stride + row) = B::dot(blocks, view) };
        }
    }
}

impl Column<'_> {
    /// Levels, scale and half sums of group `group`.
    fn group(&self, group: usize) -> (&[i8], f32, [i32; 2]) {
        let q = &self.quantized;
        (
            &q.levels[group * GROUP..][..GROUP],
            q.scales[group],
            [q.sums[2 * group], q.sums[2 * group + 1]],
        )
    }
}

/// Exact integer dot product of weight levels with activation levels.
fn integer_dot(weights: impl Iterator<Item = i32>, levels: &[i8]) -> i32 {
    weights
        .zip(levels)
        .map(|(weight, &level)| weight * i32::from(level))
        .sum()
}

/// The levels of a 16-byte group of 4-bit levels: low halves first.
fn nibbles(bytes: &[u8; 16]) -> impl Iterator<Item = i32> {
    bytes
        .iter()
        .map(|byte| i32::from(byte & 15))
        .chain(bytes.iter().map(|byte| i32::from(byte >> 4)))
}

impl Dot for Q8_0 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, a, _) = column.group(group);
            let i = integer_dot(block.levels.iter().map(|&level| i32::from(level)), levels);
            acc = fmaf(f16_at(block.scale) * a, i as f32, acc);
        }
        acc
    }
}

impl Dot for Q4_0 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, a, [s0, s1]) = column.group(group);
            let i = integer_dot(nibbles(&block.levels), levels) - 8 * (s0 + s1);
            acc = fmaf(f16_at(block.scale) * a, i as f32, acc);
        }
        acc
    }
}

impl Dot for Q4_1 {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (group, block) in row.iter().enumerate() {
            let (levels, a, [s0, s1]) = column.group(group);
            let i = integer_dot(nibbles(&block.levels), levels);
            acc = fmaf(f16_at(block.scale) * a, i as f32, acc);
            acc = fmaf(f16_at(block.minimum) * a, (s0 + s1) as f32, acc);
        }
        acc
    }
}

impl Dot for Q4K {
    fn dot(row: &[Self], column: Column<'_>) -> f32 {
        let mut acc = 0.0;
        for (index, block) in row.iter().enumerate() {
            let groups = block.groups();
            for group in 0..8 {
                let (levels, a, [s0, s1]) = column.group(index * 8 + group);
                let i = integer_dot((0..32).map(|at| i32::from(block.level(group, at))), levels);
                let scaled = i32::from(groups.scales[group]) * i;
                let minimum = i32::from(groups.minimums[group]) * (s0 + s1);
                acc = fmaf(f16_at(block.scale) * a, scaled as f32, acc);
                acc = fmaf(-(f16_at(block.minimum_scale) * a), minimum as f32, acc);
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
                let (levels, a, sums) = column.group(index * 8 + group);
                let mut scaled = 0;
                for half in 0..2 {
                    let at = group * 32 + half * 16;
                    let weights = (at..at + 16).map(|element| i32::from(block.level(element)));
                    let i = integer_dot(weights, &levels[half * 16..]) - 32 * sums[half];
                    scaled += i32::from(block.scales[group * 2 + half]) * i;
                }
                acc = fmaf(f16_at(block.scale) * a, scaled as f32, acc);
            }
        }
        acc
    }
}

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
