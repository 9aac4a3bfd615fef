//! IQ4_XS: 256 elements as 4-bit indices into a table of levels in eight groups of 32, with 6-bit scales offset by 32
//! per group.

use super::{Block, IQ4NL, checked_cast, f16_at};
use crate::Format;

/// `element = scale * group_scale * IQ4NL::TABLE[index]`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IQ4XS {
    /// f16 factor of the group scales.
    pub scale: [u8; 2],
    /// High two bits of the group scales: bits `2 j` and `2 j + 1` of the little-endian word are group `j`'s.
    pub high_scales: [u8; 2],
    /// Low four bits of the group scales: byte `i` holds group `2 i` in its low and group `2 i + 1` in its high half.
    pub low_scales: [u8; 4],
    /// Indices, 16 bytes a group: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub indices: [u8; 128],
}

impl Block for IQ4XS {
    const FORMAT: Format = Format::IQ4XS;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        let scales = self.scales();
        for (group, chunk) in output.chunks_exact_mut(32).enumerate() {
            let step = scale * f32::from(scales[group]);
            for (index, value) in chunk.iter_mut().enumerate() {
                *value = step * f32::from(self.level(group, index));
            }
        }
    }

    checked_cast!();
}

impl IQ4XS {
    /// Unpacks the group scales, each in -32..32.
    #[inline]
    #[must_use]
    pub fn scales(&self) -> [i8; 8] {
        let high = u16::from_le_bytes(self.high_scales);
        core::array::from_fn(|group| {
            let low = self.low_scales[group / 2] >> (group % 2 * 4) & 15;
            (low | ((high >> (2 * group)) as u8 & 3) << 4) as i8 - 32
        })
    }

    /// Level of element `index` (0..32) of group `group` (0..8).
    #[inline]
    #[must_use]
    pub fn level(&self, group: usize, index: usize) -> i8 {
        let pair = self.indices[group * 16 + index % 16];
        IQ4NL::TABLE[usize::from(pair >> (index / 16 * 4) & 15)]
    }
}
