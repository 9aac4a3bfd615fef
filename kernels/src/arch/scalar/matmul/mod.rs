//! Matrix products, see [`crate::op::matmul`]: each format's as its statement reads, row by row.

use crate::Format;
use crate::activation::{GROUP, Group, Quantized};
use crate::block::{
    BF16, Block, F16, F32, IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K,
    Q8_0,
};
use crate::op::matmul::{Kernel, Product};

mod float;
mod k_quants;
mod legacy;
mod tables;

/// The kernel of a format.
pub(crate) const fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => product::<F32>,
        Format::F16 => product::<F16>,
        Format::BF16 => product::<BF16>,
        Format::Q4_0 => product::<Q4_0>,
        Format::Q4_1 => product::<Q4_1>,
        Format::Q5_0 => product::<Q5_0>,
        Format::Q5_1 => product::<Q5_1>,
        Format::Q8_0 => product::<Q8_0>,
        Format::Q2K => product::<Q2K>,
        Format::Q3K => product::<Q3K>,
        Format::Q4K => product::<Q4K>,
        Format::Q5K => product::<Q5K>,
        Format::Q6K => product::<Q6K>,
        Format::IQ4NL => product::<IQ4NL>,
        Format::IQ4XS => product::<IQ4XS>,
        Format::MXFP4 => product::<MXFP4>,
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
                        groups: &columns.quantized.groups[groups],
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
    /// Levels of group `group`, and what they have in common.
    fn group(&self, group: usize) -> (&[i8], &Group) {
        let q = &self.quantized;
        (&q.levels[group * GROUP..][..GROUP], &q.groups[group])
    }
}

/// Exact integer dot product of weight levels with activation levels.
pub(in super::super) fn integer_dot(weights: impl Iterator<Item = i32>, levels: &[i8]) -> i32 {
    weights
        .zip(levels)
        .map(|(weight, &level)| weight * i32::from(level))
        .sum()
}

/// The 4-bit halves of 16 bytes: low halves first.
fn nibbles(bytes: &[u8; 16]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}
