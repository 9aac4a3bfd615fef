//! Q6_K: 256 elements as 6-bit levels offset by 32 in sixteen groups of 16, with 8-bit scales per group.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * group_scale * (level - 32)`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q6K {
    /// Low four bits of the levels, see [`Q6K::level`].
    pub low: [u8; 128],
    /// High two bits of the levels.
    pub high: [u8; 64],
    /// Group scales.
    pub scales: [i8; 16],
    /// f16 factor of the group scales.
    pub scale: [u8; 2],
}

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        for (index, value) in output.iter_mut().enumerate() {
            *value = scale
                * f32::from(self.scales[index / 16])
                * f32::from(self.level(index) as i8 - 32);
        }
    }

    checked_cast!();
}

impl Q6K {
    /// Level of element `index` (0..256), in 0..64. In each half of 128 elements, bytes `0..32` and `32..64` of `low`
    /// hold quarters 0 and 1 in their low and quarters 2 and 3 in their high halves; byte `i` of `high` holds two
    /// bits for element `i` of each quarter, quarter 0 lowest.
    #[inline]
    #[must_use]
    pub fn level(&self, index: usize) -> u8 {
        let (half, quarter, at) = (index / 128, index / 32 % 4, index % 32);
        let low = self.low[half * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
        let high = self.high[half * 32 + at] >> (quarter * 2) & 3;
        low | high << 4
    }
}
