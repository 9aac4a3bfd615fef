//! Decoders against values of the `gguf` package, and encoders against what ggml's lose.
//!
//! Cases come from `tests/oracle/formats.py`; some of every format are in the tree, and `ANDON_FORMAT_CASES` names
//! further files, separated as in `PATH`.

use andon_kernels::Format;
use andon_kernels::block::decode_row;
use andon_kernels::encode::{EncodeError, encode_row};
use std::collections::BTreeMap;

const IN_THE_TREE: &str = include_str!("formats/cases.txt");

/// What ggml loses on the data of [`data`], as root mean squares: plain, and weighted as its encoder of the format
/// weighs. From `ggml_quantize_chunk` of llama.cpp as in llama-cpp-python 0.3.36, by `formats.py errors`.
const GGML: &[(&str, Format, f64, f64)] = &[
    ("gaussian", Format::F16, 1.306770e-05, 1.306770e-05),
    ("gaussian", Format::BF16, 1.042752e-04, 1.042752e-04),
    ("gaussian", Format::Q8_0, 3.320347e-04, 3.320347e-04),
    ("gaussian", Format::Q4_0, 5.316220e-03, 5.316220e-03),
    ("gaussian", Format::Q4_1, 4.897429e-03, 4.897429e-03),
    ("gaussian", Format::Q5_0, 2.671289e-03, 2.671289e-03),
    ("gaussian", Format::Q5_1, 2.354791e-03, 2.354791e-03),
    ("gaussian", Format::Q4K, 4.433065e-03, 4.398022e-03),
    ("gaussian", Format::Q5K, 2.248152e-03, 2.237653e-03),
    ("gaussian", Format::Q6K, 1.094160e-03, 9.330000e-04),
    ("uniform", Format::F16, 5.368390e-05, 5.368390e-05),
    ("uniform", Format::BF16, 4.219410e-04, 4.219410e-04),
    ("uniform", Format::Q8_0, 1.084124e-03, 1.084124e-03),
    ("uniform", Format::Q4_0, 1.876790e-02, 1.876790e-02),
    ("uniform", Format::Q4_1, 1.767339e-02, 1.767339e-02),
    ("uniform", Format::Q5_0, 9.049410e-03, 9.049410e-03),
    ("uniform", Format::Q5_1, 8.427055e-03, 8.427055e-03),
    ("uniform", Format::Q4K, 1.581100e-02, 1.563473e-02),
    ("uniform", Format::Q5K, 8.000864e-03, 7.940922e-03),
    ("uniform", Format::Q6K, 3.830940e-03, 3.460990e-03),
    ("heavy tail", Format::F16, 7.862461e-04, 7.862461e-04),
    ("heavy tail", Format::BF16, 6.752285e-03, 6.752285e-03),
    ("heavy tail", Format::Q8_0, 3.215087e-02, 3.215087e-02),
    ("heavy tail", Format::Q4_0, 5.143985e-01, 5.143985e-01),
    ("heavy tail", Format::Q4_1, 4.085162e-01, 4.085162e-01),
    ("heavy tail", Format::Q5_0, 2.525034e-01, 2.525034e-01),
    ("heavy tail", Format::Q5_1, 1.961344e-01, 1.961344e-01),
    ("heavy tail", Format::Q4K, 3.812625e-01, 4.018279e-01),
    ("heavy tail", Format::Q5K, 1.918401e-01, 2.047546e-01),
    ("heavy tail", Format::Q6K, 9.996117e-02, 7.737783e-02),
    ("one sign", Format::F16, 3.962621e-04, 3.962621e-04),
    ("one sign", Format::BF16, 3.157497e-03, 3.157497e-03),
    ("one sign", Format::Q8_0, 7.491102e-03, 7.491102e-03),
    ("one sign", Format::Q4_0, 1.206833e-01, 1.206833e-01),
    ("one sign", Format::Q4_1, 4.370102e-02, 4.370102e-02),
    ("one sign", Format::Q5_0, 5.957948e-02, 5.957948e-02),
    ("one sign", Format::Q5_1, 2.103095e-02, 2.103095e-02),
    ("one sign", Format::Q4K, 4.071735e-02, 4.057778e-02),
    ("one sign", Format::Q5K, 2.123538e-02, 2.119152e-02),
    ("one sign", Format::Q6K, 2.454837e-02, 2.343061e-02),
    ("constant", Format::F16, 4.881620e-05, 4.881620e-05),
    ("constant", Format::BF16, 7.812381e-04, 7.812381e-04),
    ("constant", Format::Q8_0, 1.152158e-04, 1.152158e-04),
    ("constant", Format::Q4_0, 4.881620e-05, 4.881620e-05),
    ("constant", Format::Q4_1, 4.881620e-05, 4.881620e-05),
    ("constant", Format::Q5_0, 4.881620e-05, 4.881620e-05),
    ("constant", Format::Q5_1, 4.881620e-05, 4.881620e-05),
    ("constant", Format::Q4K, 1.069903e-04, 1.069903e-04),
    ("constant", Format::Q5K, 9.948015e-05, 9.948015e-05),
    ("constant", Format::Q6K, 4.881620e-05, 4.881620e-05),
    ("tiny", Format::F16, 1.717563e-08, 1.717563e-08),
    ("tiny", Format::BF16, 1.591113e-09, 1.591113e-09),
    ("tiny", Format::Q8_0, 9.609846e-07, 9.609846e-07),
    ("tiny", Format::Q4_0, 9.943526e-08, 9.943526e-08),
    ("tiny", Format::Q4_1, 1.646014e-07, 1.646014e-07),
    ("tiny", Format::Q5_0, 1.235817e-07, 1.235817e-07),
    ("tiny", Format::Q5_1, 2.800206e-07, 2.800206e-07),
    ("tiny", Format::Q4K, 2.981323e-06, 3.067692e-06),
    ("tiny", Format::Q5K, 2.991729e-06, 3.078182e-06),
    ("tiny", Format::Q6K, 9.609846e-07, 1.634924e-06),
    ("huge", Format::F16, 1.712809e+00, 1.712809e+00),
    ("huge", Format::BF16, 1.366756e+01, 1.366756e+01),
    ("huge", Format::Q8_0, 4.352046e+01, 4.352046e+01),
    ("huge", Format::Q4_0, 6.968076e+02, 6.968076e+02),
    ("huge", Format::Q4_1, 6.419159e+02, 6.419159e+02),
    ("huge", Format::Q5_0, 3.501312e+02, 3.501312e+02),
    ("huge", Format::Q5_1, 3.086472e+02, 3.086472e+02),
    ("huge", Format::Q4K, 5.810508e+02, 5.764575e+02),
    ("huge", Format::Q5K, 2.946698e+02, 2.932936e+02),
    ("huge", Format::Q6K, 1.433625e+02, 1.221585e+02),
    ("zeros", Format::F16, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::BF16, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q8_0, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q4_0, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q4_1, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q5_0, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q5_1, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q4K, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q5K, 0.000000e+00, 0.000000e+00),
    ("zeros", Format::Q6K, 0.000000e+00, 0.000000e+00),
    ("one outlier", Format::F16, 1.630376e-06, 1.630376e-06),
    ("one outlier", Format::BF16, 1.301748e-05, 1.301748e-05),
    ("one outlier", Format::Q8_0, 7.928840e-04, 7.928840e-04),
    ("one outlier", Format::Q4_0, 2.821854e-03, 2.821854e-03),
    ("one outlier", Format::Q4_1, 6.175103e-03, 6.175103e-03),
    ("one outlier", Format::Q5_0, 2.770521e-03, 2.770521e-03),
    ("one outlier", Format::Q5_1, 3.797905e-03, 3.797905e-03),
    ("one outlier", Format::Q4K, 2.869449e-03, 6.051061e-03),
    ("one outlier", Format::Q5K, 2.703187e-03, 5.736651e-03),
    ("one outlier", Format::Q6K, 1.820513e-03, 3.522233e-04),
];

const ENCODED: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// Sums of squares are added in another order here.
const ROUNDING: f64 = 1e-6;

fn named(name: &str) -> Format {
    *Format::ALL
        .iter()
        .find(|format| format.name() == name)
        .unwrap_or_else(|| panic!("no format {name}"))
}

fn bytes(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn floats(text: &str) -> Vec<f32> {
    (0..text.len() / 8)
        .map(|at| u32::from_str_radix(&text[8 * at..8 * at + 8], 16).expect("hexadecimal"))
        .map(f32::from_bits)
        .collect()
}

fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut encoded = vec![0; format.bytes(values.len()).expect("whole blocks")];
    encode_row(format, values, &mut encoded).expect("finite values");
    encoded
}

fn decode(format: Format, encoded: &[u8], count: usize) -> Vec<f32> {
    let mut decoded = vec![0.0; count];
    decode_row(format, encoded, &mut decoded);
    decoded
}

/// What encoding loses, as in [`GGML`].
fn losses(format: Format, values: &[f32]) -> (f64, f64) {
    let decoded = decode(format, &encode(format, values), values.len());
    let (mut plain, mut weighted, mut total) = (0.0, 0.0, 0.0);
    for (x, y) in values.chunks(32).zip(decoded.chunks(32)) {
        let size = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 32.0).sqrt();
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            let weight = match format {
                Format::Q4K | Format::Q5K => size + x.abs(),
                Format::Q6K => x * x,
                _ => 1.0,
            };
            plain += (x - y).powi(2);
            weighted += weight * (x - y).powi(2);
            total += weight;
        }
    }
    let share = if total > 0.0 { weighted / total } else { 0.0 };
    ((plain / values.len() as f64).sqrt(), share.sqrt())
}

fn no_worse(format: Format, values: &[f32], plain: f64, weighted: f64, context: &str) {
    let ours = losses(format, values);
    assert!(
        ours.0 <= plain * (1.0 + ROUNDING) && ours.1 <= weighted * (1.0 + ROUNDING),
        "{context}, {format:?}: loses {ours:?}, another encoder {:?}",
        (plain, weighted)
    );
}

/// Runs the cases and counts them by kind and format.
fn check(text: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match *words {
            ["decode", name, block, values] => {
                let (block, expected) = (bytes(block), floats(values));
                let found = decode(named(name), &block, expected.len());
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(
                        found.to_bits() == expected.to_bits()
                            || found.is_nan() && expected.is_nan(),
                        "{name}, element {index} of {block:02x?}: {found:e} for {expected:e}"
                    );
                }
                *counts.entry(format!("decode {name}")).or_default() += 1;
            }
            ["encode", name, values, plain, weighted] => {
                let number = |text: &str| text.parse::<f64>().expect("a number");
                let values = floats(values);
                let (plain, weighted) = (number(plain), number(weighted));
                no_worse(named(name), &values, plain, weighted, "rows of a model");
                *counts.entry(format!("encode {name}")).or_default() += 1;
            }
            _ => panic!("not a case: {line:.80}"),
        }
    }
    counts
}

#[test]
fn every_format_decodes_to_the_values_of_the_gguf_package() {
    let counts = check(IN_THE_TREE);
    for format in Format::ALL {
        assert!(
            counts.contains_key(&format!("decode {}", format.name())),
            "no case of {format:?}"
        );
    }
}

#[test]
fn given_cases_agree_with_the_gguf_package() {
    let Some(paths) = std::env::var_os("ANDON_FORMAT_CASES") else {
        println!("skipped: ANDON_FORMAT_CASES names no file of cases");
        return;
    };
    for path in std::env::split_paths(&paths) {
        let text = std::fs::read_to_string(&path).expect("a file of cases");
        println!("{}: {:?}", path.display(), check(&text));
    }
}

/// The same numbers as `Draw` in `tests/oracle/formats.py`.
struct Draw(u64);

impl Draw {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 40) as f64 / f64::from(1 << 24)
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

const COUNT: usize = 32 * 256;

fn data(name: &str) -> Vec<f32> {
    let (mut normal, mut uniform, mut heavy) = (Draw(1), Draw(2), Draw(3));
    (0..COUNT)
        .map(|index| {
            let x = normal.normal();
            (match name {
                "gaussian" => x / 16.0,
                "uniform" => uniform.uniform() - 0.5,
                "heavy tail" => heavy.normal() / (heavy.uniform() + 0.0625),
                "one sign" => -1.0 - x.abs(),
                "constant" => 0.3,
                "tiny" => x / f64::from(1 << 20),
                "huge" => x * 8192.0,
                "zeros" => 0.0,
                "one outlier" if index % 256 == 77 => 1.0,
                "one outlier" => x / 128.0,
                _ => panic!("no data {name}"),
            }) as f32
        })
        .collect()
}

#[test]
fn encoders_lose_no_more_than_ggml() {
    assert!(GGML.len() >= 90);
    for &(name, format, plain, weighted) in GGML {
        no_worse(format, &data(name), plain, weighted, name);
    }
}

#[test]
fn decoded_values_are_encoded_almost_without_loss() {
    for format in ENCODED {
        let values = data("gaussian");
        let once = decode(format, &encode(format, &values), COUNT);
        let (plain, _) = losses(format, &once);
        let (first, _) = losses(format, &values);
        assert!(
            plain <= first / 4.0,
            "{format:?}: {plain:e} after {first:e}"
        );
    }
}

#[test]
fn every_format_has_an_encoder_or_says_that_it_has_none() {
    for format in Format::ALL {
        let mut output = vec![0; format.block_bytes()];
        let encoded = encode_row(format, &vec![0.5; format.block_elements()], &mut output);
        let expected = if ENCODED.contains(&format) {
            Ok(())
        } else {
            Err(EncodeError::NoEncoder { format })
        };
        assert_eq!(encoded, expected);
    }
}

#[test]
fn wrong_lengths_and_values_are_errors() {
    let format = Format::Q4K;
    assert_eq!(
        encode_row(format, &[0.0; 300], &mut [0; 144]),
        Err(EncodeError::PartialBlock {
            format,
            elements: 300
        })
    );
    assert_eq!(
        encode_row(format, &[0.0; 256], &mut [0; 145]),
        Err(EncodeError::OutputLength {
            expected: 144,
            found: 145
        })
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for format in ENCODED.into_iter().filter(|format| format.is_quantized()) {
            let mut values = vec![1.0; format.block_elements()];
            values[17] = bad;
            assert_eq!(
                encode_row(format, &values, &mut vec![0; format.block_bytes()]),
                Err(EncodeError::NotFinite { index: 17 })
            );
        }
        for format in [Format::F32, Format::F16, Format::BF16] {
            let found = decode(format, &encode(format, &[bad]), 1)[0];
            assert!(found == bad || found.is_nan() && bad.is_nan());
        }
    }
    assert_eq!(encode_row(Format::F16, &[], &mut []), Ok(()));
}

/// Whatever finite values go in, finite values come out, and where scales do not reach, the largest that they do.
#[test]
fn extreme_values_saturate() {
    let tiny = f32::from_bits(1);
    for format in ENCODED.into_iter().filter(|format| format.is_quantized()) {
        for values in [
            [f32::MAX, f32::MIN],
            [f32::MAX, 0.0],
            [f32::MIN, tiny],
            [f32::MAX, f32::MAX],
            [f32::MIN, f32::MIN],
            [tiny, -tiny],
            [-0.0, 0.0],
            [3e38, 1e-38],
        ] {
            let values = values.repeat(128);
            let decoded = decode(format, &encode(format, &values), 256);
            for (x, y) in values.iter().zip(decoded) {
                assert!(y.is_finite(), "{format:?}: {y} for {x}");
                if x.abs() > 1e38 && values[1].abs() < 1.0 {
                    assert!(y * x.signum() > 60_000.0, "{format:?}: {y} for {x}");
                }
                assert!(x.abs() > 1e-30 || y.abs() < 1e6, "{format:?}: {y} for {x}");
            }
        }
    }
}
