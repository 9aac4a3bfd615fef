//! Q5_0: 32 elements as 5-bit levels offset by 16 with one scale.

use super::{Block, checked_cast, f16_at, five_bits};
use crate::Format;

/// `element = scale * (level - 16)`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q5_0 {
    /// f16 scale.
    pub scale: [u8; 2],
    /// The fifth bit of the levels: bit `i` of the little-endian word is element `i`'s.
    pub high: [u8; 4],
    /// Low four bits of the levels: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub low: [u8; 16],
}

impl Block for Q5_0 {
    const FORMAT: Format = Format::Q5_0;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        for (index, value) in output.iter_mut().enumerate() {
            *value = scale * f32::from(self.level(index) as i8 - 16);
        }
    }

    checked_cast!();
}

impl Q5_0 {
    /// Level of element `index` (0..32), in 0..32.
    #[inline]
    #[must_use]
    pub fn level(&self, index: usize) -> u8 {
        five_bits(&self.low, self.high, index)
    }
}
