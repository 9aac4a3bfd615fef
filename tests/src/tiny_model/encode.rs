//! Tensors of every format: encoded where the kernels have an encoder, else blocks drawn at random whose values are
//! about as large as those given.

use andon_kernels::Format;
use andon_kernels::block::decode_row;
use andon_kernels::encode::{EncodeError, encode_row};
use half::f16;

use super::Draw;

/// `values` as rows of `columns` elements.
pub(super) fn rows(format: Format, columns: usize, values: &[f32]) -> Vec<u8> {
    let row_bytes = format.bytes(columns).expect("rows of whole blocks");
    let mut bytes = vec![0; values.len() / columns * row_bytes];
    for (values, bytes) in values
        .chunks_exact(columns)
        .zip(bytes.chunks_exact_mut(row_bytes))
    {
        match encode_row(format, values, bytes) {
            Err(EncodeError::NoEncoder { .. }) => random_row(format, values, bytes),
            encoded => encoded.expect("finite values in whole blocks"),
        }
    }
    bytes
}

/// Where the f16 scales of a block are that is drawn at random.
fn scales(format: Format) -> &'static [usize] {
    match format {
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::IQ4NL | Format::IQ4XS => &[0],
        _ => &[],
    }
}

fn random_row(format: Format, values: &[f32], bytes: &mut [u8]) {
    let seed = values.iter().fold(0, |seed, value| {
        u64::from(value.to_bits()) ^ u64::rotate_left(seed, 7)
    });
    let mut draw = Draw { state: seed };
    for (values, block) in values
        .chunks_exact(format.block_elements())
        .zip(bytes.chunks_exact_mut(format.block_bytes()))
    {
        for byte in &mut *block {
            *byte = (draw.uniform() * 256.0) as u8;
        }
        // At a scale of one first, to see how large the values get.
        let mut set_scale = |scale: f32| {
            for &at in scales(format) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
            if format == Format::MXFP4 {
                // An exponent with the bias of f32, of halved levels.
                block[0] = (128.0 + scale.log2().round()) as u8;
            }
            let mut decoded = vec![0.0; values.len()];
            decode_row(format, block, &mut decoded);
            size(&decoded)
        };
        let unit = set_scale(1.0);
        set_scale(size(values) / unit);
    }
}

/// Root mean square.
fn size(values: &[f32]) -> f32 {
    (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_decodes_to_values_as_large_as_those_given() {
        let values: Vec<f32> = (0..512_u16).map(|i| (f32::from(i) * 0.37).sin()).collect();
        for format in Format::ALL {
            let bytes = rows(format, 256, &values);
            let mut decoded = vec![0.0; values.len()];
            decode_row(format, &bytes, &mut decoded);
            let ratio = size(&decoded) / size(&values);
            assert!((0.6..1.6).contains(&ratio), "{format:?}: {ratio}");
        }
    }
}
