//! F16: one little-endian IEEE half float.

use super::{Block, checked_cast, f16_at};
use crate::Format;

/// One element.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct F16 {
    /// Little-endian bits.
    pub bits: [u8; 2],
}

impl Block for F16 {
    const FORMAT: Format = Format::F16;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        output[0] = f16_at(self.bits);
    }

    checked_cast!();
}
