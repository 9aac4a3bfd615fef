//! Products of packed weights, see [`crate::pack`] and [`crate::op::matmul`].

use super::matmul::integer_dot;
use crate::Format;
use crate::activation::{Columns, GROUP};
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, f16_at};
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::{BLOCK_GROUPS, GroupScales, Layout, Packed, ROWS, unpack_levels};
use libm::fmaf;

/// The kernel of a format; `None` if it has no packed layout.
pub(crate) const fn kernel(format: Format) -> Option<PackedKernel> {
    Some(match format {
        Format::Q4_0 => product::<Q4_0>,
        Format::Q4_1 => product::<Q4_1>,
        Format::Q5_0 => product::<Q5_0>,
        Format::Q5_1 => product::<Q5_1>,
        Format::Q8_0 => product::<Q8_0>,
        Format::Q4K => product::<Q4K>,
        Format::Q5K => product::<Q5K>,
        Format::Q6K => product::<Q6K>,
        _ => return None,
    })
}

/// [`PackedKernel`] of a format.
///
/// # Safety
/// See [`PackedKernel`].
unsafe fn product<F: Packed>(product: PackedProduct<'_>) {
    let columns = &product.columns;
    let tile_bytes = Layout::<F>::tile_bytes(columns.k);
    for row in 0..product.row_count {
        // SAFETY: the caller owes readable tiles that have every row.
        let tile = unsafe {
            core::slice::from_raw_parts(product.tiles.add(row / ROWS * tile_bytes), tile_bytes)
        };
        for column in 0..columns.count {
            // SAFETY: the caller owes a writable output for every row and column.
            unsafe {
                *product.output.add(column * product.stride + row) =
                    dot::<F>(tile, row % ROWS, columns, column);
            }
        }
    }
}

/// Product of row `row` of a tile with one column.
fn dot<F: Packed>(tile: &[u8], row: usize, columns: &Columns<'_>, column: usize) -> f32 {
    let groups = columns.k / GROUP;
    let mut acc = 0.0;
    let mut rest = tile;
    for first in (0..groups).step_by(BLOCK_GROUPS) {
        let count = BLOCK_GROUPS.min(groups - first);
        let (block, after) = rest.split_at(Layout::<F>::block_bytes(count));
        rest = after;
        let (head, levels) = block.split_at(Layout::<F>::head_bytes(count));
        for (group, levels) in levels.chunks_exact(Layout::<F>::LEVEL_BYTES).enumerate() {
            let at = column * groups + first + group;
            let (activations, x) = (
                &columns.quantized.levels[at * GROUP..][..GROUP],
                &columns.quantized.groups[at],
            );
            let half = |at: usize| f16_at([head[at], head[at + 1]]);
            let factors = Layout::<F>::factors_at(group) + 2 * row;
            let scale = half(factors);
            let own = Layout::<F>::group_scales_at(group) + row;
            let unpacked = unpack_levels(F::BITS, levels, row).map(i32::from);
            let offset = F::OFFSET as i32;
            if F::GROUP_SCALES == GroupScales::Two {
                let [s0, s1] = x.half_sums();
                let (low, high) = unpacked.split_at(16);
                let i0 = integer_dot(low.iter().copied(), &activations[..16]) - offset * s0;
                let i1 = integer_dot(high.iter().copied(), &activations[16..]) - offset * s1;
                let [g0, g1] = [own, own + ROWS].map(|at| i32::from(head[at] as i8));
                acc = fmaf(scale * x.scale, (g0 * i0 + g1 * i1) as f32, acc);
                continue;
            }
            let i = integer_dot(unpacked.into_iter(), activations) + offset * x.negated_sum;
            let own_scale = match F::GROUP_SCALES {
                GroupScales::None => 1.0,
                _ => f32::from(head[own]),
            };
            acc = fmaf(scale * own_scale * x.scale, i as f32, acc);
            if F::MINIMUM {
                let minimum = half(factors + 2 * ROWS);
                let minimum = match F::GROUP_SCALES {
                    GroupScales::None => minimum,
                    _ => -(minimum * f32::from(head[own + ROWS])),
                };
                acc = fmaf(minimum, x.scaled_sum, acc);
            }
        }
    }
    acc
}
