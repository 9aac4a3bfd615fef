//! BF16: the upper half of a little-endian IEEE single float.

use super::{Block, bf16_at, checked_cast};
use crate::Format;

/// One element.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BF16 {
    /// Little-endian bits.
    pub bits: [u8; 2],
}

impl Block for BF16 {
    const FORMAT: Format = Format::BF16;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        output[0] = bf16_at(self.bits);
    }

    checked_cast!();
}
