//! F32: one little-endian float.

use super::{Block, checked_cast};
use crate::Format;

/// One element.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct F32 {
    /// Little-endian bits.
    pub bits: [u8; 4],
}

impl Block for F32 {
    const FORMAT: Format = Format::F32;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        output[0] = f32::from_le_bytes(self.bits);
    }

    checked_cast!();
}
