//! Q4_K: 256 elements as 4-bit levels in eight groups of 32, with 6-bit scales and minimums per group.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * group_scale * level - minimum_scale * group_minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q4K {
    /// f16 factor of the group scales.
    pub scale: [u8; 2],
    /// f16 factor of the group minimums.
    pub minimum_scale: [u8; 2],
    /// Eight 6-bit scales and eight 6-bit minimums, see [`Q4K::groups`].
    pub packed: [u8; 12],
    /// Levels: 32 bytes hold group `2 i` in their low and group `2 i + 1` in their high halves.
    pub levels: [u8; 128],
}

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let (scale, minimum_scale) = (f16_at(self.scale), f16_at(self.minimum_scale));
        let groups = self.groups();
        for (group, chunk) in output.chunks_exact_mut(32).enumerate() {
            let step = scale * f32::from(groups.scales[group]);
            let minimum = minimum_scale * f32::from(groups.minimums[group]);
            for (index, value) in chunk.iter_mut().enumerate() {
                *value = step * f32::from(self.level(group, index)) - minimum;
            }
        }
    }

    checked_cast!();
}

/// The unpacked scales and minimums of the eight groups of a [`Q4K`], each in 0..64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Group scales.
    pub scales: [u8; 8],
    /// Group minimums.
    pub minimums: [u8; 8],
}

impl Q4K {
    /// Unpacks scales and minimums. Bytes 0..4 hold the scales and bytes 4..8 the minimums of groups 0..4 in their
    /// low six bits; groups 4..8 have their low four bits in bytes 8..12 (scale in the low half, minimum in the high
    /// half) and their high two bits in the top of bytes 0..4 and 4..8.
    #[inline]
    #[must_use]
    pub fn groups(&self) -> Groups {
        let word = |at: usize| {
            let p = &self.packed;
            u32::from_le_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]])
        };
        let (scales, minimums, low) = (word(0), word(4), word(8));
        let join =
            |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
        Groups {
            scales: join(
                scales & 0x3f3f_3f3f,
                (low & 0x0f0f_0f0f) | (scales >> 2 & 0x3030_3030),
            ),
            minimums: join(
                minimums & 0x3f3f_3f3f,
                (low >> 4 & 0x0f0f_0f0f) | (minimums >> 2 & 0x3030_3030),
            ),
        }
    }

    /// Level of element `index` (0..32) of group `group` (0..8).
    #[inline]
    #[must_use]
    pub fn level(&self, group: usize, index: usize) -> u8 {
        let byte = self.levels[group / 2 * 32 + index];
        if group.is_multiple_of(2) {
            byte & 15
        } else {
            byte >> 4
        }
    }
}
