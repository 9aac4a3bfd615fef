//! Scalar encoders: rows of f32 to blocks, for tools and tests. The offline opposite of [`crate::block`].
//!
//! Invariants: what an encoder writes decodes to finite values, and two runs on the same values write the same bytes
//! on every machine. An encoder searches its scales, so it takes far longer than a decoder.
//!
//! Values beyond what a scale can reach (65504 times the largest level) saturate there. A block format has no way to
//! store NaN or an infinity for one element: they are refused. The float formats convert them.

mod affine;
mod float;
mod put;
mod search;
mod super_affine;
mod super_symmetric;
mod symmetric;

use crate::Format;
use core::fmt;

/// Why a row cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The format can be read but not made here.
    NoEncoder {
        /// The format.
        format: Format,
    },
    /// The row is not whole blocks.
    PartialBlock {
        /// The format.
        format: Format,
        /// Elements of the row.
        elements: usize,
    },
    /// The output has not the length of the encoded row.
    OutputLength {
        /// Bytes of the encoded row.
        expected: usize,
        /// Bytes of the output.
        found: usize,
    },
    /// An element is NaN or infinite.
    NotFinite {
        /// Its index in the row.
        index: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::NoEncoder { format } => {
                write!(f, "{} is read but not written", format.name())
            }
            EncodeError::PartialBlock { format, elements } => write!(
                f,
                "{elements} elements are not whole blocks of {} ({} elements each)",
                format.name(),
                format.block_elements()
            ),
            EncodeError::OutputLength { expected, found } => {
                write!(f, "the row takes {expected} bytes, the output has {found}")
            }
            EncodeError::NotFinite { index } => {
                write!(f, "element {index} is NaN or infinite")
            }
        }
    }
}

impl core::error::Error for EncodeError {}

/// Encodes a row of `format`.
///
/// # Errors
/// [`EncodeError`]; `output` may have been written in part.
pub fn encode_row(format: Format, input: &[f32], output: &mut [u8]) -> Result<(), EncodeError> {
    let expected = format.bytes(input.len()).ok_or(EncodeError::PartialBlock {
        format,
        elements: input.len(),
    })?;
    if output.len() != expected {
        return Err(EncodeError::OutputLength {
            expected,
            found: output.len(),
        });
    }
    match format {
        Format::F32 => floats(input, output, float::f32),
        Format::F16 => floats(input, output, float::f16),
        Format::BF16 => floats(input, output, float::bf16),
        Format::Q4_0 => blocks(format, input, output, symmetric::q4_0),
        Format::Q4_1 => blocks(format, input, output, affine::q4_1),
        Format::Q5_0 => blocks(format, input, output, symmetric::q5_0),
        Format::Q5_1 => blocks(format, input, output, affine::q5_1),
        Format::Q8_0 => blocks(format, input, output, symmetric::q8_0),
        Format::Q4K => blocks(format, input, output, super_affine::q4_k),
        Format::Q5K => blocks(format, input, output, super_affine::q5_k),
        Format::Q6K => blocks(format, input, output, super_symmetric::q6_k),
        Format::Q2K | Format::Q3K | Format::IQ4NL | Format::IQ4XS | Format::MXFP4 => {
            Err(EncodeError::NoEncoder { format })
        }
    }
}

fn floats(input: &[f32], output: &mut [u8], encode: fn(f32, &mut [u8])) -> Result<(), EncodeError> {
    let bytes = output.len() / input.len().max(1);
    for (&value, bytes) in input.iter().zip(output.chunks_exact_mut(bytes.max(1))) {
        encode(value, bytes);
    }
    Ok(())
}

fn blocks<const N: usize>(
    format: Format,
    input: &[f32],
    output: &mut [u8],
    encode: fn(&[f64; N], &mut [u8]),
) -> Result<(), EncodeError> {
    if let Some(index) = input.iter().position(|value| !value.is_finite()) {
        return Err(EncodeError::NotFinite { index });
    }
    let (values, _) = input.as_chunks::<N>();
    for (values, bytes) in values
        .iter()
        .zip(output.chunks_exact_mut(format.block_bytes()))
    {
        encode(&values.map(f64::from), bytes);
    }
    Ok(())
}
