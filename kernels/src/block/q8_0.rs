//! Q8_0: 32 elements as signed 8-bit levels with one scale.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * level`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Q8_0 {
    /// f16 scale.
    pub scale: [u8; 2],
    /// Levels in element order.
    pub levels: [i8; 32],
}

impl Block for Q8_0 {
    const FORMAT: Format = Format::Q8_0;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        for (value, &level) in output.iter_mut().zip(&self.levels) {
            *value = scale * f32::from(level);
        }
    }

    checked_cast!();
}
