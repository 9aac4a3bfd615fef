//! IQ4_NL: 32 elements as 4-bit indices into a table of levels, with one scale.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// `element = scale * TABLE[index]`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IQ4NL {
    /// f16 scale.
    pub scale: [u8; 2],
    /// Indices: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub indices: [u8; 16],
}

impl IQ4NL {
    /// The levels that the indices of this format and of [`super::IQ4XS`] stand for.
    pub const TABLE: [i8; 16] = [
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
    ];
}

impl Block for IQ4NL {
    const FORMAT: Format = Format::IQ4NL;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = f16_at(self.scale);
        let (low, high) = output.split_at_mut(16);
        for (index, &pair) in self.indices.iter().enumerate() {
            low[index] = scale * f32::from(Self::TABLE[usize::from(pair & 15)]);
            high[index] = scale * f32::from(Self::TABLE[usize::from(pair >> 4)]);
        }
    }

    checked_cast!();
}
