//! The battery that the kernels of every runnable table pass: against the scalar kernels to the bit, and the scalar
//! kernels against f64 within a bound derived from the data.

use crate::activation::{Columns, GROUP, Group, Quantized, QuantizedMut};
use crate::block::decode_row;
use crate::op::rope::Pairing;
use crate::op::softmax::BLOCK;
use crate::{Format, Isa, Table, Tile, pack};
use std::vec;
use std::vec::Vec;

mod attention;
mod limits;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// How the weights and activations of a case are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Draw {
    /// Any bits, but finite scales.
    Random,
    /// Every level at its largest magnitude.
    Extreme,
    /// Scales down to subnormal and up to the largest f16.
    WideScales,
}

const DRAWS: [Draw; 3] = [Draw::Random, Draw::Extreme, Draw::WideScales];

/// Byte offsets of the f16 fields of a block.
fn half_fields(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::BF16 | Format::MXFP4 => &[],
        Format::F16
        | Format::Q4_0
        | Format::Q5_0
        | Format::Q8_0
        | Format::IQ4NL
        | Format::IQ4XS => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
    }
}

fn weights(random: &mut Random, format: Format, elements: usize, draw: Draw) -> Vec<u8> {
    let bytes = format.bytes(elements).expect("whole blocks");
    if format == Format::F32 {
        return (0..elements)
            .flat_map(|_| random.unit().to_le_bytes())
            .collect();
    }
    if format == Format::BF16 {
        return (0..elements)
            .flat_map(|_| {
                let magnitude = match draw {
                    Draw::WideScales => f32::powi(10.0, random.below(48) as i32 - 40),
                    Draw::Random | Draw::Extreme => 1.0,
                };
                half::bf16::from_f32(magnitude * random.unit()).to_le_bytes()
            })
            .collect();
    }
    let mut output: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
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
        if format == Format::MXFP4 {
            block[0] = match draw {
                Draw::Random | Draw::Extreme => 120 + random.below(8) as u8,
                // From the subnormal ones to those whose sums stay finite.
                Draw::WideScales => random.below(200) as u8,
            };
        }
    }
    output
}

/// Owned activations.
struct Activations {
    k: usize,
    count: usize,
    values: Vec<f32>,
    levels: Vec<i8>,
    groups: Vec<Group>,
}

impl Activations {
    fn new(random: &mut Random, k: usize, count: usize, draw: Draw) -> Activations {
        let magnitude = |random: &mut Random| match draw {
            Draw::WideScales => f32::powi(10.0, random.below(12) as i32 - 6),
            _ => 1.0,
        };
        let mut values: Vec<f32> = Vec::new();
        for _ in 0..(k * count).div_ceil(GROUP) {
            let scale = magnitude(random);
            values.extend((0..GROUP).map(|_| match draw {
                Draw::Extreme => {
                    scale
                        * if random.next().is_multiple_of(8) {
                            -1.0
                        } else {
                            1.0
                        }
                }
                _ => scale * random.unit(),
            }));
        }
        values.truncate(k * count);
        let whole = values.len() / GROUP * GROUP;
        let (mut levels, mut groups) = (vec![0; whole], vec![Group::default(); whole / GROUP]);
        let mut output = QuantizedMut {
            levels: &mut levels,
            groups: &mut groups,
        };
        scalar().quantize(&values[..whole], &mut output);
        Activations {
            k,
            count,
            values,
            levels,
            groups,
        }
    }

    fn columns(&self) -> Columns<'_> {
        let quantized = Quantized {
            levels: &self.levels,
            groups: &self.groups,
        };
        Columns {
            k: self.k,
            count: self.count,
            values: &self.values,
            quantized,
        }
    }

    /// Element `index` of column `column` as the products of `format` see it.
    fn seen(&self, format: Format, column: usize, index: usize) -> f64 {
        let at = column * self.k + index;
        if format.is_quantized() {
            f64::from(self.levels[at]) * f64::from(self.groups[at / GROUP].scale)
        } else {
            f64::from(self.values[at])
        }
    }
}

fn scalar() -> Table {
    Table::new(Isa::Scalar).expect("always there")
}

fn product(
    table: &Table,
    format: Format,
    weights: &[u8],
    rows: usize,
    activations: &Activations,
) -> Vec<f32> {
    let mut output = vec![f32::NAN; rows * activations.count];
    let mut tile = Tile::whole(&mut output, rows, activations.count);
    table.matmul(format, weights, activations.columns(), &mut tile);
    output
}

fn assert_same_bits(left: &[f32], right: &[f32], context: &dyn std::fmt::Display) {
    assert_eq!(left.len(), right.len(), "{context}");
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        assert_eq!(
            left.to_bits(),
            right.to_bits(),
            "{context}: element {index}: {left} and {right}"
        );
    }
}

/// Every format, with ragged row and column counts.
fn for_each_product(mut check: impl FnMut(&mut Random, Format, Draw, usize, usize, usize)) {
    for format in Format::ALL {
        for_each_product_of(format, |random, draw, k, rows, columns| {
            check(random, format, draw, k, rows, columns);
        });
    }
}

/// One format, with ragged row and column counts.
fn for_each_product_of(
    format: Format,
    mut check: impl FnMut(&mut Random, Draw, usize, usize, usize),
) {
    let mut random = Random(u64::from(format.ggml_id()));
    let block = format
        .block_elements()
        .max(if format.is_quantized() { GROUP } else { 1 });
    for draw in DRAWS {
        for (blocks, rows, columns) in [
            (1, 1, 1),
            (2, 7, 3),
            (3, 8, 4),
            (5, 15, 9),
            (18, 16, 2),
            (7, 17, 8),
            (4, 33, 13),
            (40, 24, 1),
            (9, 20, 16),
            (3, 18, 29),
        ] {
            check(&mut random, draw, blocks * block, rows, columns);
        }
    }
}

#[test]
fn products_have_the_scalar_bits_on_every_instruction_set() {
    for table in Table::runnable().filter(|table| table.isa() != Isa::Scalar) {
        for_each_product(|random, format, draw, k, rows, columns| {
            let matrix = weights(random, format, k * rows, draw);
            let activations = Activations::new(random, k, columns, draw);
            let expected = product(&scalar(), format, &matrix, rows, &activations);
            // Once more from an address that nothing aligned.
            let mut shifted = vec![0; 3];
            shifted.extend_from_slice(&matrix);
            for bytes in [&matrix[..], &shifted[3..]] {
                let actual = product(&table, format, bytes, rows, &activations);
                let context = std::format!(
                    "{} {} {draw:?} k {k} rows {rows}",
                    table.isa().name(),
                    format.name()
                );
                assert_same_bits(&actual, &expected, &context);
            }
        });
    }
}

fn packed_product(
    table: &Table,
    format: Format,
    packed: &[u8],
    rows: usize,
    activations: &Activations,
) -> Vec<f32> {
    let mut output = vec![f32::NAN; rows * activations.count];
    let mut tile = Tile::whole(&mut output, rows, activations.count);
    table.matmul_packed(format, packed, activations.columns(), &mut tile);
    output
}

/// Compares the packed products of every table with the scalar ones of the rows as files have them, if `format` has a
/// packed layout.
fn check_packed_product(
    random: &mut Random,
    format: Format,
    draw: Draw,
    [k, rows, columns]: [usize; 3],
) {
    let Some(bytes) = pack::bytes(format, rows, k) else {
        return;
    };
    let matrix = weights(random, format, k * rows, draw);
    let activations = Activations::new(random, k, columns, draw);
    let expected = product(&scalar(), format, &matrix, rows, &activations);
    let mut packed = vec![0xaa; bytes + 1];
    pack::pack(format, &matrix, rows, k, &mut packed[1..]);
    for table in Table::runnable() {
        let context = std::format!(
            "packed {} on {} {draw:?} k {k} rows {rows} columns {columns}",
            format.name(),
            table.isa().name()
        );
        let actual = packed_product(&table, format, &packed[1..], rows, &activations);
        assert_same_bits(&actual, &expected, &context);
        let unpacked = product(&table, format, &matrix, rows, &activations);
        assert_same_bits(&unpacked, &expected, &std::format!("un{context}"));
    }
}

#[test]
fn packed_products_have_the_bits_of_unpacked_ones() {
    for_each_product(|random, format, draw, k, rows, columns| {
        check_packed_product(random, format, draw, [k, rows, columns]);
    });
}

#[test]
fn packed_products_have_them_for_any_number_of_columns() {
    let mut random = Random(11);
    for format in Format::ALL {
        let block = format.block_elements().max(GROUP);
        // Blocks that are whole, cut short and followed by such; tiles likewise; and columns on both sides of every
        // number that kernels take together.
        for columns in (1..=9).chain([12, 15, 16, 17, 31, 33, 63, 64, 65, 71]) {
            for draw in DRAWS {
                let blocks = [1, 3, 8, 9, 18][random.below(5)];
                let rows = [1, 5, 8, 15, 16, 17, 33][random.below(7)];
                check_packed_product(&mut random, format, draw, [blocks * block, rows, columns]);
            }
        }
    }
}

#[test]
fn a_column_does_not_depend_on_its_neighbours() {
    for table in Table::runnable() {
        for_each_product(|random, format, draw, k, rows, columns| {
            let matrix = weights(random, format, k * rows, draw);
            let activations = Activations::new(random, k, columns, draw);
            let together = product(&table, format, &matrix, rows, &activations);
            for column in 0..columns {
                if format.is_quantized() || draw == Draw::Random {
                    let groups = column * k / GROUP..(column + 1) * k / GROUP;
                    let alone = Activations {
                        k,
                        count: 1,
                        values: activations.values[column * k..(column + 1) * k].to_vec(),
                        levels: activations
                            .levels
                            .get(column * k..(column + 1) * k)
                            .unwrap_or(&[])
                            .to_vec(),
                        groups: activations.groups.get(groups).unwrap_or(&[]).to_vec(),
                    };
                    let context =
                        std::format!("{} {} column {column}", table.isa().name(), format.name());
                    let alone = product(&table, format, &matrix, rows, &alone);
                    assert_same_bits(
                        &together[column * rows..(column + 1) * rows],
                        &alone,
                        &context,
                    );
                }
            }
        });
    }
}

#[test]
fn scalar_products_follow_double_precision() {
    for_each_product(|random, format, draw, k, rows, columns| {
        let matrix = weights(random, format, k * rows, draw);
        let activations = Activations::new(random, k, columns, draw);
        let actual = product(&scalar(), format, &matrix, rows, &activations);
        let mut decoded = vec![0.0; k];
        for row in 0..rows {
            let bytes = format.bytes(k).expect("whole blocks");
            decode_row(
                format,
                &matrix[row * bytes..(row + 1) * bytes],
                &mut decoded,
            );
            for column in 0..columns {
                let terms = decoded.iter().enumerate().map(|(index, &weight)| {
                    let seen = activations.seen(format, column, index);
                    (f64::from(weight) * seen, seen.abs())
                });
                let (exact, size) = terms.clone().fold((0.0, 0.0), |(exact, size), (term, _)| {
                    (exact + term, size + term.abs())
                });
                // Formats with a minimum add two large parts that may cancel: bound by the parts.
                let parts = terms.map(|(_, seen)| seen).sum::<f64>()
                    * half_bound(format, &matrix[row * bytes..(row + 1) * bytes]);
                let bound = (size + parts) * 1e-5 + 1e-30;
                let error = (f64::from(actual[column * rows + row]) - exact).abs();
                assert!(
                    error <= bound,
                    "{} {draw:?} k {k}: error {error} above {bound}",
                    format.name()
                );
            }
        }
    });
}

/// A bound on the magnitude of the parts that make up a weight of a row: level times scale, and minimum.
fn half_bound(format: Format, row: &[u8]) -> f64 {
    let largest = row
        .chunks_exact(format.block_bytes())
        .flat_map(|block| {
            half_fields(format).iter().map(|&at| {
                half::f16::from_le_bytes([block[at], block[at + 1]])
                    .to_f64()
                    .abs()
            })
        })
        .fold(0.0, f64::max);
    let factor = match format {
        // Decoding and product see the same single part.
        Format::F32 | Format::F16 | Format::BF16 | Format::MXFP4 => 0.0,
        Format::Q4_0 | Format::Q4_1 => 16.0,
        Format::Q5_0 | Format::Q5_1 => 32.0,
        Format::Q8_0 | Format::IQ4NL => 128.0,
        Format::Q2K => 16.0 * 4.0,
        Format::Q3K => 32.0 * 4.0,
        Format::Q4K => 64.0 * 16.0,
        Format::Q5K => 64.0 * 32.0,
        Format::Q6K => 128.0 * 32.0,
        Format::IQ4XS => 32.0 * 128.0,
    };
    largest * factor
}

#[test]
fn elementwise_steps_have_the_scalar_bits_on_every_instruction_set() {
    let mut random = Random(3);
    for length in [32, 96, 576, 608] {
        let x: Vec<f32> = (0..length).map(|_| random.unit() * 20.0).collect();
        let weight: Vec<f32> = (0..length).map(|_| random.unit()).collect();
        let mut rotated_weight = weight.clone();
        rotated_weight.rotate_left(7);
        let rotations: Vec<[f32; 2]> = (0..length / 2)
            .map(|_| [random.unit(), random.unit()])
            .collect();
        let run = |table: &Table| {
            let mut results = Vec::new();
            let mut output = vec![0.0; length];
            table.rms_norm(&x, &weight, 1e-5, &mut output);
            results.push(output);
            for bias in [None, Some(&rotated_weight[..])] {
                let mut output = vec![0.0; length];
                table.layer_norm(&x, &weight, bias, 1e-12, &mut output);
                results.push(output);
            }
            for step in [Table::swiglu, Table::geglu_erf] {
                let mut gate = x.clone();
                step(table, &mut gate, &weight);
                results.push(gate);
            }
            let mut units = x.clone();
            table.gelu_erf(&mut units);
            results.push(units);
            let mut gate = x.clone();
            table.geglu_tanh(&mut gate, &weight);
            results.push(gate);
            let mut capped = x.clone();
            table.soft_cap(&mut capped, 15.0);
            results.push(capped);
            let largest = table.largest_finite(&x).expect("finite");
            let (mut weights, mut sums) = (vec![0.0; length], vec![0; length.div_ceil(BLOCK)]);
            table.weights(&x, largest, 0.9, &mut weights);
            table.sum_weights(&x, largest, 0.9, &mut sums);
            // Halves of the sums, so that each is exact.
            let halves = |&sum: &u64| [sum >> 24, sum & 0xff_ffff].map(|half| half as f32);
            results.extend([weights, sums.iter().flat_map(halves).collect()]);
            for pairing in [Pairing::Adjacent, Pairing::Halves] {
                let mut head = x.clone();
                table.rotate(&mut head, &rotations, pairing);
                results.push(head);
            }
            let (mut levels, mut groups) = (vec![0; length], vec![Group::default(); length / 32]);
            let mut output = QuantizedMut {
                levels: &mut levels,
                groups: &mut groups,
            };
            table.quantize(&x, &mut output);
            results.push(levels.iter().map(|&level| f32::from(level)).collect());
            for group in groups {
                let [low, high] = group.negated_half_sums.map(f32::from);
                let sum = group.negated_sum as f32;
                results.push(vec![group.scale, group.scaled_sum, sum, low, high]);
            }
            let mut halves = vec![0; length];
            table.to_half(&x, &mut halves);
            results.push(halves.iter().map(|&half| f32::from(half)).collect());
            results
        };
        let expected = run(&scalar());
        for table in Table::runnable() {
            for (index, (actual, expected)) in run(&table).iter().zip(&expected).enumerate() {
                assert_same_bits(
                    actual,
                    expected,
                    &std::format!("{} step {index}", table.isa().name()),
                );
            }
        }
    }
}

#[test]
fn layer_norm_follows_double_precision() {
    let mut random = Random(6);
    for length in [1, 15, 32, 384, 777] {
        // Far from zero, where a variance taken as the mean of squares less the square of the mean would fail.
        let x: Vec<f32> = (0..length).map(|_| 100.0 + random.unit()).collect();
        let weight: Vec<f32> = (0..length).map(|_| random.unit()).collect();
        let bias: Vec<f32> = (0..length).map(|_| random.unit()).collect();
        let mut actual = vec![0.0; length];
        scalar().layer_norm(&x, &weight, Some(&bias), 1e-5, &mut actual);
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let x = wide(&x);
        let mean = x.iter().sum::<f64>() / length as f64;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / length as f64;
        for index in 0..length {
            let normal = (x[index] - mean) / libm::sqrt(variance + 1e-5);
            let exact = normal * f64::from(weight[index]) + f64::from(bias[index]);
            let error = (f64::from(actual[index]) - exact).abs();
            // The mean's rounding, 100 * 2^-24 or so, is in every element.
            assert!(error < 1e-4, "element {index} of {length}: error {error}");
        }
    }
}

#[test]
fn quantizing_keeps_within_half_a_step_and_marks_what_is_not_finite() {
    let mut random = Random(4);
    let mut x: Vec<f32> = (0..GROUP * 4).map(|_| random.unit()).collect();
    x[GROUP + 3] = f32::NAN;
    x[2 * GROUP + 5] = f32::NEG_INFINITY;
    x[3 * GROUP..].fill(1e-40);
    for table in Table::runnable() {
        let (mut levels, mut groups) = (vec![1; x.len()], vec![Group::default(); 4]);
        let mut output = QuantizedMut {
            levels: &mut levels,
            groups: &mut groups,
        };
        table.quantize(&x, &mut output);
        let step = groups[0].scale;
        for (index, &value) in x[..GROUP].iter().enumerate() {
            let error = (f32::from(levels[index]) * step - value).abs();
            assert!(error <= step * 0.5001, "error {error} of step {step}");
        }
        for group in &groups[1..3] {
            assert!(group.scale.is_nan() && group.scaled_sum.is_nan());
        }
        assert_eq!(groups[3], Group::default());
        assert!(levels[GROUP..].iter().all(|&level| level == 0));
        for (group, levels) in groups.iter().zip(levels.chunks(GROUP)) {
            let sum = |levels: &[i8]| levels.iter().map(|&level| i32::from(level)).sum::<i32>();
            assert_eq!(group.half_sums(), [sum(&levels[..16]), sum(&levels[16..])]);
            assert_eq!(group.negated_sum, -sum(levels));
            if group.scale > 0.0 {
                assert_eq!(group.scaled_sum, group.scale * sum(levels) as f32);
            }
        }
    }
}

/// FNV-1a over the bits of floats, every NaN counted as the same one.
fn fold_bits(hash: u64, values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| {
        let bits = if value.is_nan() {
            0x7fc0_0000
        } else {
            value.to_bits()
        };
        bits.to_le_bytes()
    });
    bytes.fold(hash, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// What the products of each format hash to, seen on x86-64 and, emulated, on aarch64. A change of what a product is
/// changes it.
const PRODUCTS: [(Format, u64); Format::ALL.len()] = [
    (Format::F32, 0x1e63_757a_a13c_5328),
    (Format::F16, 0x2679_ebfd_e779_3e22),
    (Format::BF16, 0x6194_367a_5d74_cde1),
    (Format::Q4_0, 0xc2ae_72c6_626b_d432),
    (Format::Q4_1, 0x8fca_aa75_5feb_d2e1),
    (Format::Q5_0, 0x5b0b_5e71_5297_6e05),
    (Format::Q5_1, 0xc08f_1bbe_f809_b44e),
    (Format::Q8_0, 0x3393_efa5_5c1f_9d49),
    (Format::Q2K, 0x3e0b_37d7_cf1d_eff8),
    (Format::Q3K, 0x0324_3c13_2155_6ffc),
    (Format::Q4K, 0x67aa_1a80_798e_d1db),
    (Format::Q5K, 0x0efd_6b56_3219_42df),
    (Format::Q6K, 0x04c5_8be7_1955_b4a1),
    (Format::IQ4NL, 0x3946_1020_a101_44fc),
    (Format::IQ4XS, 0x1772_bbb2_6fb0_f52d),
    (Format::MXFP4, 0xba6e_15fc_0067_c4e8),
];

#[test]
fn products_are_the_same_on_every_architecture() {
    for table in Table::runnable() {
        let hashes = Format::ALL.map(|format| {
            let mut hash = HASH_START;
            for_each_product_of(format, |random, draw, k, rows, columns| {
                let matrix = weights(random, format, k * rows, draw);
                let activations = Activations::new(random, k, columns, draw);
                let results = product(&table, format, &matrix, rows, &activations);
                hash = fold_bits(hash, &results);
            });
            (format, hash)
        });
        assert_eq!(hashes, PRODUCTS, "{}: {hashes:#018x?}", table.isa().name());
    }
}

#[test]
fn operations_are_the_same_on_every_architecture() {
    for table in Table::runnable() {
        let mut hash = HASH_START;
        let mut random = Random(5);
        let head_dim = 80;
        let query: Vec<f32> = (0..head_dim).map(|_| random.unit()).collect();
        let weight: Vec<f32> = (0..head_dim).map(|_| random.unit()).collect();
        let mut normed = vec![0.0; head_dim];
        table.rms_norm(&query, &weight, 1e-5, &mut normed);
        table.swiglu(&mut normed, &query);
        hash = fold_bits(hash, &normed);
        // Seen on x86-64 and, emulated, on aarch64. A change of what an operation is changes it.
        assert_eq!(
            hash,
            0x50f4_d3b3_f24c_f92d,
            "{}: {hash:#018x}",
            table.isa().name()
        );
    }
}

#[test]
fn the_instruction_set_that_the_run_is_about_is_there() {
    // Set where this runs on an emulated processor, so that a run without its kernels does not count as passed.
    if let Ok(name) = std::env::var("ANDON_TEST_ISA") {
        let isa = Isa::from_name(&name).expect("ANDON_TEST_ISA names an instruction set");
        assert!(isa.is_supported(), "{name} is not supported here");
    }
}
