//! Weights of any format drawn at random: for speed it only matters how many there are and that they are sound numbers.

use andon_kernels::Format;
use andon_kernels::block::decode_row;
use andon_kernels::encode::{EncodeError, encode_row};

/// Elements that are decoded to see how large values get.
const SAMPLE: usize = 4096;

/// A generator of random bits (Marsaglia's xorshift with a multiplication), the same on every machine.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Puts `items` into an order that is as likely as any other.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// One of the numbers below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Between minus one and one.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Fills `bytes` with blocks of `format` whose values have about this standard deviation and a mean near zero.
    ///
    /// # Errors
    /// If `bytes` are not whole blocks.
    pub(crate) fn weights(
        &mut self,
        format: Format,
        deviation: f32,
        bytes: &mut [u8],
    ) -> Result<(), EncodeError> {
        if !format.is_quantized() {
            let each = format.block_bytes();
            for element in bytes.chunks_exact_mut(each) {
                // A uniform draw deviates by its bound over the root of three.
                encode_row(format, &[self.value() * deviation * 3f32.sqrt()], element)?;
            }
            return Ok(());
        }
        self.fill(bytes);
        let mut sample = vec![0; SAMPLE / format.block_elements() * format.block_bytes()];
        self.fill(&mut sample);
        set_scales(format, 1.0, &mut sample)?;
        let mut values = vec![0.0; SAMPLE];
        decode_row(format, &sample, &mut values);
        let square: f32 = values.iter().map(|value| value * value).sum();
        let unit = (square / SAMPLE as f32).sqrt();
        set_scales(format, deviation / unit, bytes)
    }
}

/// The f16 fields of a block, and how large each is beside the first: minimums in the middle of the levels.
fn fields(format: Format) -> &'static [(usize, f32)] {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4NL | Format::IQ4XS => &[(0, 1.0)],
        Format::Q4_1 => &[(0, 1.0), (2, -7.5)],
        Format::Q5_1 => &[(0, 1.0), (2, -15.5)],
        Format::Q2K => &[(80, 1.0), (82, 1.5)],
        Format::Q3K => &[(108, 1.0)],
        Format::Q4K => &[(0, 1.0), (2, 7.5)],
        Format::Q5K => &[(0, 1.0), (2, 15.5)],
        Format::Q6K => &[(208, 1.0)],
        Format::MXFP4 | Format::F32 | Format::F16 | Format::BF16 => &[],
    }
}

fn set_scales(format: Format, scale: f32, bytes: &mut [u8]) -> Result<(), EncodeError> {
    let mut halves = Vec::new();
    for &(at, factor) in fields(format) {
        let mut half = [0; 2];
        encode_row(Format::F16, &[scale * factor], &mut half)?;
        halves.push((at, half));
    }
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &(at, half) in &halves {
            block[at..at + 2].copy_from_slice(&half);
        }
        if format == Format::MXFP4 {
            // An exponent with the bias of f32, of halved levels.
            block[0] = (128.0 + scale.log2().round()).clamp(1.0, 254.0) as u8;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Random;
    use andon_kernels::{Format, block::decode_row};

    #[test]
    fn values_are_as_large_as_asked_for() {
        for format in Format::ALL {
            let mut bytes = vec![0; format.bytes(1 << 14).expect("whole blocks")];
            let drawn = Random::new(1).weights(format, 0.02, &mut bytes);
            drawn.expect("whole blocks");
            let mut values = vec![0.0; 1 << 14];
            decode_row(format, &bytes, &mut values);
            let square: f32 = values.iter().map(|value| value * value).sum();
            let deviation = (square / values.len() as f32).sqrt();
            assert!(
                (0.012..0.03).contains(&deviation),
                "{format:?}: {deviation}"
            );
        }
    }
}
