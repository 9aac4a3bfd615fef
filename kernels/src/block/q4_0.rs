//! Q4_0: 32 elements as 4-bit levels offset by 8 with one scale.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * (level - 8)`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q4_0 {
    /// f16 scale.
    pub scale: [u8; 2],
    /// Levels: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub levels: [u8; 16],
}

impl Block for Q4_0 {
    const FORMAT: Format = Format::Q4_0;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        let (low, high) = output.split_at_mut(16);
        for (index, &pair) in self.levels.iter().enumerate() {
            low[index] = scale * f32::from((pair & 15) as i8 - 8);
            high[index] = scale * f32::from((pair >> 4) as i8 - 8);
        }
    }

    checked_cast!();
}
