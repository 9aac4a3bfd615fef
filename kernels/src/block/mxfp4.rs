//! MXFP4 (OCP Microscaling Formats 1.0): 32 elements as 4-bit floats with a shared power of two.

use super::{Block, checked_cast};
use crate::Format;

/// `element = scale * TABLE[index]`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MXFP4 {
    /// Biased exponent of the shared scale, see [`MXFP4::scale`].
    pub exponent: u8,
    /// Indices: byte `i` holds element `i` in its low and element `i + 16` in its high half.
    pub indices: [u8; 16],
}

impl MXFP4 {
    /// Twice the values of the 4-bit floats (a sign, two bits of exponent, one of mantissa), which makes them integers.
    pub const TABLE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

    /// Half the shared scale, to make up for [`MXFP4::TABLE`]: 2 to the power of `exponent - 128`. The specification
    /// calls the exponent of 255 not a number; here, as in GGUF's reference, it is the largest power.
    #[inline]
    #[must_use]
    pub fn scale(&self) -> f32 {
        f32::from_bits(if self.exponent < 2 {
            0x0020_0000 << self.exponent // subnormal
        } else {
            (u32::from(self.exponent) - 1) << 23
        })
    }
}

impl Block for MXFP4 {
    const FORMAT: Format = Format::MXFP4;

    fn decode(&self, output: &mut [f32]) {
        assert_eq!(output.len(), Self::ELEMENTS);
        let scale = self.scale();
        let (low, high) = output.split_at_mut(16);
        for (index, &pair) in self.indices.iter().enumerate() {
            low[index] = scale * f32::from(Self::TABLE[usize::from(pair & 15)]);
            high[index] = scale * f32::from(Self::TABLE[usize::from(pair >> 4)]);
        }
    }

    checked_cast!();
}
