//! Q5_K: 256 elements as 5-bit levels in eight groups of 32, with 6-bit scales and minimums per group.

use super::{Block, Groups, checked_cast, f16_at};
use crate::Format;

/// `element = scale * group_scale * level - minimum_scale * group_minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q5K {
    /// f16 factor of the group scales.
    pub scale: [u8; 2],
    /// f16 factor of the group minimums.
    pub minimum_scale: [u8; 2],
    /// Eight 6-bit scales and eight 6-bit minimums, see [`Groups::unpack`].
    pub packed: [u8; 12],
    /// The fifth bit of the levels: bit `j` of byte `i` is that of element `i` of group `j`.
    pub high: [u8; 32],
    /// Low four bits of the levels: 32 bytes hold group `2 i` in their low and group `2 i + 1` in their high halves.
    pub low: [u8; 128],
}

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;

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

impl Q5K {
    /// Unpacks scales and minimums.
    #[inline]
    #[must_use]
    pub fn groups(&self) -> Groups {
        Groups::unpack(&self.packed)
    }

    /// Level of element `index` (0..32) of group `group` (0..8), in 0..32.
    #[inline]
    #[must_use]
    pub fn level(&self, group: usize, index: usize) -> u8 {
        let low = self.low[group / 2 * 32 + index] >> (group % 2 * 4) & 15;
        low | (self.high[index] >> group & 1) << 4
    }
}
