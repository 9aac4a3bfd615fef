//! Q2_K: 256 elements as 2-bit levels in sixteen groups of 16, with 4-bit scales and minimums per group.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * group_scale * level - minimum_scale * group_minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q2K {
    /// A byte per group: its scale in the low, its minimum in the high half.
    pub groups: [u8; 16],
    /// Levels, see [`Q2K::level`].
    pub levels: [u8; 64],
    /// f16 factor of the group scales.
    pub scale: [u8; 2],
    /// f16 factor of the group minimums.
    pub minimum_scale: [u8; 2],
}

impl Block for Q2K {
    const FORMAT: Format = Format::Q2K;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let (scale, minimum_scale) = (f16_at(self.scale), f16_at(self.minimum_scale));
        for (index, value) in output.iter_mut().enumerate() {
            let group = self.groups[index / 16];
            let step = scale * f32::from(group & 15);
            let minimum = minimum_scale * f32::from(group >> 4);
            *value = step * f32::from(self.level(index)) - minimum;
        }
    }

    checked_cast!();
}

impl Q2K {
    /// Level of element `index` (0..256), in 0..4. Each half of 128 elements has 32 bytes; byte `i` holds two bits for
    /// element `i` of each of its quarters, quarter 0 lowest.
    #[inline]
    #[must_use]
    pub fn level(&self, index: usize) -> u8 {
        let (half, quarter, at) = (index / 128, index / 32 % 4, index % 32);
        self.levels[half * 32 + at] >> (quarter * 2) & 3
    }
}
