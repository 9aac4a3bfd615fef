//! Q5_1: 32 elements as 5-bit levels with a scale and a minimum.

use super::{Block, checked_cast, f16_at, five_bits};
use crate::Format;

/// `element = scale * level + minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q5_1 {
    /// f16 scale.
    pub scale: [u8; 2],
    /// f16 minimum.
    pub minimum: [u8; 2],
    /// The fifth bit of the levels: bit `i` of the little-endian word is element `i`'s.
    pub high: [u8; 4],
    /// Low four bits of the levels: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub low: [u8; 16],
}

impl Block for Q5_1 {
    const FORMAT: Format = Format::Q5_1;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let (scale, minimum) = (f16_at(self.scale), f16_at(self.minimum));
        for (index, value) in output.iter_mut().enumerate() {
            *value = scale * f32::from(self.level(index)) + minimum;
        }
    }

    checked_cast!();
}

impl Q5_1 {
    /// Level of element `index` (0..32), in 0..32.
    #[inline]
    #[must_use]
    pub fn level(&self, index: usize) -> u8 {
        five_bits(&self.low, self.high, index)
    }
}
