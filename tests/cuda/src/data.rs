//! Weights and activations drawn by chance, and what the processor makes of them.

use andon_cuda::Format as DeviceFormat;
use andon_kernels::activation::{Columns, GROUP, Group, Quantized, QuantizedMut};
use andon_kernels::{Format, Isa, Table, Tile};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// How the numbers of a case are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Draw {
    /// Any bits, but finite scales.
    Random,
    /// Every level at its largest magnitude.
    Extreme,
    /// Scales down to subnormal and up to the largest f16.
    WideScales,
}

pub(crate) const DRAWS: [Draw; 3] = [Draw::Random, Draw::Extreme, Draw::WideScales];

/// The processor's name of a format.
pub(crate) fn host(format: DeviceFormat) -> Format {
    match format {
        DeviceFormat::F32 => Format::F32,
        DeviceFormat::F16 => Format::F16,
        DeviceFormat::BF16 => Format::BF16,
        DeviceFormat::Q4_0 => Format::Q4_0,
        DeviceFormat::Q4_1 => Format::Q4_1,
        DeviceFormat::Q5_0 => Format::Q5_0,
        DeviceFormat::Q5_1 => Format::Q5_1,
        DeviceFormat::Q8_0 => Format::Q8_0,
        DeviceFormat::Q3K => Format::Q3K,
        DeviceFormat::Q4K => Format::Q4K,
        DeviceFormat::Q5K => Format::Q5K,
        DeviceFormat::Q6K => Format::Q6K,
        DeviceFormat::IQ4NL => Format::IQ4NL,
        DeviceFormat::IQ4XS => Format::IQ4XS,
    }
}

/// Elements that rows are whole numbers of.
pub(crate) fn block_elements(format: DeviceFormat) -> usize {
    host(format).block_elements().next_multiple_of(GROUP)
}

/// Byte offsets of the f16 fields of a block; for F32 what makes the upper half of an element finite.
fn half_fields(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q3K => &[108],
        Format::F32 => &[2],
        Format::Q6K => &[208],
        _ => &[0],
    }
}

/// Rows of weights as files have them.
pub(crate) fn weights(random: &mut Random, format: Format, elements: usize, draw: Draw) -> Vec<u8> {
    let bytes = format.bytes(elements).expect("whole blocks");
    let mut output: Vec<u8> = Vec::with_capacity(bytes + 7);
    while output.len() < bytes {
        output.extend_from_slice(&random.next().to_le_bytes());
    }
    output.truncate(bytes);
    if draw == Draw::Extreme {
        output.fill([0x00, 0x80, 0xff][random.below(3)]);
    }
    for block in output.chunks_exact_mut(format.block_bytes()) {
        for &field in half_fields(format) {
            let value = match draw {
                Draw::Random | Draw::Extreme => half::f16::from_f32(random.unit()),
                // Any finite pattern: clearing one exponent bit keeps infinities and NaNs out.
                Draw::WideScales => half::f16::from_bits(random.next() as u16 & 0xfbff),
            };
            block[field..field + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    output
}

/// Many rows, of which a few million elements are drawn and the rest repeats them.
pub(crate) fn many_weights(random: &mut Random, format: Format, rows: usize, k: usize) -> Vec<u8> {
    const DRAWN: usize = 1 << 22;
    let row_bytes = format.bytes(k).expect("whole blocks");
    let some = rows.min(DRAWN.div_ceil(k) | 1);
    let mut output = weights(random, format, some * k, Draw::Random);
    output.reserve(rows * row_bytes);
    while output.len() < rows * row_bytes {
        let more = (rows * row_bytes - output.len()).min(some * row_bytes);
        output.extend_from_within(..more);
    }
    output
}

/// Columns of f32.
pub(crate) fn values(random: &mut Random, k: usize, count: usize, draw: Draw) -> Vec<f32> {
    let mut values = Vec::with_capacity(k * count);
    for _ in 0..k * count / GROUP {
        let scale = match draw {
            Draw::WideScales => f32::powi(10.0, random.below(12) as i32 - 6),
            _ => 1.0,
        };
        for _ in 0..GROUP {
            values.push(match draw {
                Draw::Extreme if random.next().is_multiple_of(8) => -scale,
                Draw::Extreme => scale,
                _ => scale * random.unit(),
            });
        }
    }
    values
}

/// Columns in 8 bits, as the processor has them.
pub(crate) struct Activations {
    pub(crate) k: usize,
    pub(crate) count: usize,
    pub(crate) levels: Vec<i8>,
    pub(crate) groups: Vec<Group>,
}

impl Activations {
    pub(crate) fn new(values: &[f32], k: usize) -> Activations {
        let mut levels = vec![0; values.len()];
        let mut groups = vec![Group::default(); values.len() / GROUP];
        let mut output = QuantizedMut {
            levels: &mut levels,
            groups: &mut groups,
        };
        scalar().quantize(values, &mut output);
        Activations {
            k,
            count: values.len() / k,
            levels,
            groups,
        }
    }

    /// The product with `rows` rows by the kernels of `table`.
    pub(crate) fn product(
        &self,
        table: &Table,
        format: Format,
        weights: &[u8],
        rows: usize,
    ) -> Vec<f32> {
        let columns = Columns {
            k: self.k,
            count: self.count,
            values: &[],
            quantized: Quantized {
                levels: &self.levels,
                groups: &self.groups,
            },
        };
        let mut output = vec![0.0; rows * self.count];
        let mut tile = Tile::whole(&mut output, rows, self.count);
        table.matmul(format, weights, columns, &mut tile);
        output
    }
}

/// The kernels that say what is right.
pub(crate) fn scalar() -> Table {
    Table::new(Isa::Scalar).expect("always there")
}

/// Those that give the same faster, for what is large.
pub(crate) fn fastest() -> Table {
    Table::new(Isa::best()).expect("the best is supported")
}
