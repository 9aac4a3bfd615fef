//! Whether what a row stores is a number: scales, minimums and unquantized values that are infinite or not a number
//! make every result they take part in the same.

use core::mem::offset_of;

use super::{
    BF16, Block, F16, IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
};
use crate::Format;

/// Exponents of [`MXFP4`] from here on may give infinite elements, or are not a number (255).
const MXFP4_EXPONENT_DOUBTFUL: u8 = 253;

/// The offset of the first block in `bytes` that has a scale, a minimum or a value that is not finite.
#[must_use]
pub fn first_not_finite(format: Format, bytes: &[u8]) -> Option<usize> {
    let size = format.block_bytes();
    let f16s: &[usize] = match format {
        Format::F32 => {
            return find(bytes, size, |block| {
                block
                    .first_chunk()
                    .is_some_and(|&bits| !f32::from_le_bytes(bits).is_finite())
            });
        }
        Format::BF16 => {
            return find(bytes, size, |block| {
                let bits = block
                    .get(offset_of!(BF16, bits)..)
                    .and_then(<[u8]>::first_chunk);
                bits.is_some_and(|&bits| u16::from_le_bytes(bits) & 0x7f80 == 0x7f80)
            });
        }
        Format::MXFP4 => {
            return find(bytes, size, |block| {
                let Some([block]) = MXFP4::cast(block) else {
                    return false;
                };
                let mut values = [0.0; MXFP4::ELEMENTS];
                block.exponent == u8::MAX
                    || block.exponent >= MXFP4_EXPONENT_DOUBTFUL && {
                        block.decode(&mut values);
                        values.iter().any(|value| !value.is_finite())
                    }
            });
        }
        Format::F16 => &[offset_of!(F16, bits)],
        Format::Q4_0 => &[offset_of!(Q4_0, scale)],
        Format::Q4_1 => &[offset_of!(Q4_1, scale), offset_of!(Q4_1, minimum)],
        Format::Q5_0 => &[offset_of!(Q5_0, scale)],
        Format::Q5_1 => &[offset_of!(Q5_1, scale), offset_of!(Q5_1, minimum)],
        Format::Q8_0 => &[offset_of!(Q8_0, scale)],
        Format::Q2K => &[offset_of!(Q2K, scale), offset_of!(Q2K, minimum_scale)],
        Format::Q3K => &[offset_of!(Q3K, scale)],
        Format::Q4K => &[offset_of!(Q4K, scale), offset_of!(Q4K, minimum_scale)],
        Format::Q5K => &[offset_of!(Q5K, scale), offset_of!(Q5K, minimum_scale)],
        Format::Q6K => &[offset_of!(Q6K, scale)],
        Format::IQ4NL => &[offset_of!(IQ4NL, scale)],
        Format::IQ4XS => &[offset_of!(IQ4XS, scale)],
    };
    find(bytes, size, |block| {
        f16s.iter().any(|&at| {
            let bits = block.get(at..).and_then(<[u8]>::first_chunk);
            bits.is_some_and(|&bits| u16::from_le_bytes(bits) & 0x7c00 == 0x7c00)
        })
    })
}

fn find(bytes: &[u8], size: usize, broken: impl Fn(&[u8]) -> bool) -> Option<usize> {
    bytes
        .chunks_exact(size)
        .position(broken)
        .map(|index| index * size)
}

#[cfg(test)]
mod tests {
    use super::first_not_finite;
    use crate::Format;
    use crate::block::decode_row;

    /// A block with every 16-bit word set to a bit pattern is not finite exactly if its elements are not.
    #[test]
    fn agrees_with_what_is_decoded() {
        for format in Format::ALL {
            let size = format.block_bytes();
            let mut values = [0.0; 256];
            let values = &mut values[..format.block_elements()];
            for at in 0..size {
                for byte in [0x00, 0x7b, 0x7c, 0x7f, 0x80, 0xfc, 0xfd, 0xfe, 0xff] {
                    let mut bytes = [0x11_u8; 512];
                    let bytes = &mut bytes[..2 * size];
                    bytes[size + at] = byte;
                    decode_row(format, &bytes[size..], values);
                    let decoded = values.iter().any(|value| !value.is_finite());
                    let found = first_not_finite(format, bytes);
                    // A scale that nothing is multiplied with may hide; never the other way round.
                    assert!(found == Some(size) || !decoded, "{format:?} {at} {byte:#x}");
                    if found.is_some() && format.is_quantized() && format != Format::MXFP4 {
                        assert_eq!(found, Some(size));
                        assert!(decoded, "{format:?} {at} {byte:#x}");
                    }
                }
            }
        }
    }
}
