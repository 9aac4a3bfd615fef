//! Storage blocks: one file per format with its layout, its size, the checked view of bytes as blocks, and the
//! scalar decoder that defines its meaning.
//!
//! Invariant: a block type is `repr(C)`, has alignment 1 and no padding, and every bit pattern of it is valid, so
//! any bytes of the right length may be viewed as blocks.

mod bf16;
mod f16;
mod f32;
mod finite;
mod groups;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

pub use self::bf16::BF16;
pub use self::f16::F16;
pub use self::f32::F32;
pub use finite::first_not_finite;
pub use groups::Groups;
pub use iq4_nl::IQ4NL;
pub use iq4_xs::IQ4XS;
pub use mxfp4::MXFP4;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;

use crate::Format;

/// A storage block that decodes to [`Block::ELEMENTS`] values.
pub trait Block: Sized + Copy {
    /// The format this is a block of.
    const FORMAT: Format;
    /// Elements of a block.
    const ELEMENTS: usize = Self::FORMAT.block_elements();

    /// Decodes the block.
    ///
    /// # Panics
    /// If `output` has not [`Block::ELEMENTS`] elements.
    fn decode(&self, output: &mut [f32]);

    /// Views bytes as blocks; `None` unless they are a whole number of them.
    fn cast(bytes: &[u8]) -> Option<&[Self]>;
}

/// Implements [`Block::cast`] for a type that keeps the module's invariant.
macro_rules! checked_cast {
    () => {
        fn cast(bytes: &[u8]) -> Option<&[Self]> {
            const { assert!(size_of::<Self>() == Self::FORMAT.block_bytes() && align_of::<Self>() == 1) };
            if !bytes.len().is_multiple_of(size_of::<Self>()) {
                return None;
            }
            // SAFETY: alignment is 1, the length is a whole number of blocks, and every bit pattern is a valid block.
            Some(unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Self>()) })
        }
    };
}
use checked_cast;

/// Reads a little-endian f16.
#[inline]
pub(crate) fn f16_at(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// Reads a little-endian bf16.
#[inline]
pub(crate) fn bf16_at(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Level of element `index` of a block of 32 elements with 5-bit levels, whose fifth bits are in a word of their own.
#[inline]
fn five_bits(low: &[u8; 16], high: [u8; 4], index: usize) -> u8 {
    let four = low[index % 16] >> (index / 16 * 4) & 15;
    four | ((u32::from_le_bytes(high) >> index) as u8 & 1) << 4
}

/// Decodes a row of `format` into f32.
///
/// # Panics
/// If `bytes` is not exactly the row of `output.len()` elements.
pub fn decode_row(format: Format, bytes: &[u8], output: &mut [f32]) {
    fn decode<B: Block>(bytes: &[u8], output: &mut [f32]) {
        let blocks = B::cast(bytes).expect("rows are whole blocks");
        assert_eq!(
            blocks.len() * B::ELEMENTS,
            output.len(),
            "the row has the output's length"
        );
        for (block, chunk) in blocks.iter().zip(output.chunks_exact_mut(B::ELEMENTS)) {
            block.decode(chunk);
        }
    }
    match format {
        Format::F32 => decode::<F32>(bytes, output),
        Format::F16 => decode::<F16>(bytes, output),
        Format::BF16 => decode::<BF16>(bytes, output),
        Format::Q4_0 => decode::<Q4_0>(bytes, output),
        Format::Q4_1 => decode::<Q4_1>(bytes, output),
        Format::Q5_0 => decode::<Q5_0>(bytes, output),
        Format::Q5_1 => decode::<Q5_1>(bytes, output),
        Format::Q8_0 => decode::<Q8_0>(bytes, output),
        Format::Q2K => decode::<Q2K>(bytes, output),
        Format::Q3K => decode::<Q3K>(bytes, output),
        Format::Q4K => decode::<Q4K>(bytes, output),
        Format::Q5K => decode::<Q5K>(bytes, output),
        Format::Q6K => decode::<Q6K>(bytes, output),
        Format::IQ4NL => decode::<IQ4NL>(bytes, output),
        Format::IQ4XS => decode::<IQ4XS>(bytes, output),
        Format::MXFP4 => decode::<MXFP4>(bytes, output),
    }
}
