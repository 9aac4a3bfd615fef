//! The levels of a group of sixteen rows, in vectors of four elements of each row, see [`super`].

use super::{ROWS, STEPS};
use crate::activation::GROUP;

/// Bytes of a vector: four elements of every row.
const VECTOR: usize = 4 * ROWS;

/// The step and the place in a vector of each element of row `row`.
fn places(row: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..GROUP).map(move |element| (element / 4, row * 4 + element % 4))
}

/// Packs levels of `bits` bits. `output` must be zero.
pub(super) fn pack_levels(bits: usize, levels: &[[u8; GROUP]; ROWS], output: &mut [u8]) {
    for (row, levels) in levels.iter().enumerate() {
        for ((step, place), &level) in places(row).zip(levels) {
            if bits == 8 {
                output[step * VECTOR + place] = level;
                continue;
            }
            let (low, high) = (level & 15, level >> 4);
            output[step % 4 * VECTOR + place] |= low << (step / 4 * 4);
            match bits {
                5 => output[4 * VECTOR + place] |= high << step,
                6 => output[(4 + step / 4) * VECTOR + place] |= high << (2 * (step % 4)),
                _ => {}
            }
        }
    }
}

/// The levels of row `row` of a packed group with levels of `bits` bits.
pub(crate) fn unpack_levels(bits: usize, packed: &[u8], row: usize) -> [u8; GROUP] {
    let mut levels = [0; GROUP];
    for ((step, place), level) in places(row).zip(&mut levels) {
        if bits == 8 {
            *level = packed[step * VECTOR + place];
            continue;
        }
        let low = packed[step % 4 * VECTOR + place] >> (step / 4 * 4) & 15;
        let high = match bits {
            5 => packed[4 * VECTOR + place] >> step & 1,
            6 => packed[(4 + step / 4) * VECTOR + place] >> (2 * (step % 4)) & 3,
            _ => 0,
        };
        *level = low | high << 4;
    }
    levels
}

const _: () = assert!(STEPS * 4 == GROUP);
