//! Q3_K: 256 elements as 3-bit levels offset by 4 in sixteen groups of 16, with 6-bit scales offset by 32 per group.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * group_scale * (level - 4)`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q3K {
    /// The third bit of the levels, see [`Q3K::level`].
    pub high: [u8; 32],
    /// Low two bits of the levels.
    pub low: [u8; 64],
    /// Sixteen 6-bit scales, see [`Q3K::scales`].
    pub packed: [u8; 12],
    /// f16 factor of the group scales.
    pub scale: [u8; 2],
}

impl Block for Q3K {
    const FORMAT: Format = Format::Q3K;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        let scales = self.scales();
        for (index, value) in output.iter_mut().enumerate() {
            *value = scale * f32::from(scales[index / 16]) * f32::from(self.level(index) as i8 - 4);
        }
    }

    checked_cast!();
}

impl Q3K {
    /// Unpacks the group scales, each in -32..32. Bytes 0..8 hold the low four bits of groups 0..8 in their low and of
    /// groups 8..16 in their high halves; byte `8 + i` holds the high two bits of groups `i`, `i + 4`, `i + 8` and
    /// `i + 12`, the first lowest.
    #[inline]
    #[must_use]
    pub fn scales(&self) -> [i8; 16] {
        let word = |at: usize| {
            let p = &self.packed;
            u32::from_le_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]])
        };
        let (first, second, high) = (word(0), word(4), word(8));
        let four = |low: u32, quarter: u32| {
            (low & 0x0f0f_0f0f | (high >> (2 * quarter) & 0x0303_0303) << 4).to_le_bytes()
        };
        let quarters = [
            four(first, 0),
            four(second, 1),
            four(first >> 4, 2),
            four(second >> 4, 3),
        ];
        core::array::from_fn(|group| quarters[group / 4][group % 4] as i8 - 32)
    }

    /// Level of element `index` (0..256), in 0..8. In each half of 128 elements, byte `i` of `low` holds two bits for
    /// element `i` of each quarter, quarter 0 lowest; bit `j` of byte `i` of `high` is element `32 j + i`'s.
    #[inline]
    #[must_use]
    pub fn level(&self, index: usize) -> u8 {
        let (half, quarter, at) = (index / 128, index / 32 % 4, index % 32);
        let low = self.low[half * 32 + at] >> (quarter * 2) & 3;
        low | (self.high[at] >> (index / 32) & 1) << 2
    }
}
