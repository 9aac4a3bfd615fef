//! Q4_1: 32 elements as 4-bit levels with a scale and a minimum.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * level + minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q4_1 {
    /// f16 scale.
    pub scale: [u8; 2],
    /// f16 minimum.
    pub minimum: [u8; 2],
    /// Levels: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub levels: [u8; 16],
}

impl Block for Q4_1 {
    const FORMAT: Format = Format::Q4_1;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let (scale, minimum) = (f16_at(self.scale), f16_at(self.minimum));
        let (low, high) = output.split_at_mut(16);
        for (index, &pair) in self.levels.iter().enumerate() {
            low[index] = scale * f32::from(pair & 15) + minimum;
            high[index] = scale * f32::from(pair >> 4) + minimum;
        }
    }

    checked_cast!();
}
