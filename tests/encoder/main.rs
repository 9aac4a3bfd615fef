//! Encoders: their vectors follow the published graphs, have length one, and are the same bytes however they are
//! computed.

#![forbid(unsafe_code)]

mod reference;

use std::path::Path;
use std::sync::Arc;

use andon_engine::embed::{EmbedError, Embedder, EmbedderError, EmbedderOptions, shortened};
use andon_engine::{Executor, ExecutorError, ExecutorOptions, LoadError, Model};
use andon_kernels::Isa;
use andon_tests::tiny_encoder::{Family, TinyEncoder};
use andon_tests::tiny_model::{TensorType, TinyModel};
use reference::Reference;

fn load(encoder: &TinyEncoder) -> Arc<Model> {
    Arc::new(try_load(&encoder.bytes()).expect("a sound model"))
}

fn try_load(bytes: &[u8]) -> Result<Model, LoadError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("writable");
    // The map outlives the file's name.
    Model::load(Path::new(&path))
}

fn embedder(model: &Arc<Model>, isa: Isa, threads: usize) -> Embedder {
    let options = EmbedderOptions {
        isa: Some(isa),
        threads: Some(threads),
        ..EmbedderOptions::default()
    };
    Embedder::new(Arc::clone(model), &options).expect("a valid embedder")
}

fn one(embedder: &mut Embedder, tokens: &[u32]) -> Vec<f32> {
    embedder.embed(&[tokens]).expect("valid inputs").remove(0)
}

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32)
        .map(|index| (index * 7919 + seed * 104_729 + 3) % 270)
        .collect()
}

fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|value| value.to_bits()).collect()
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

/// Distance between two vectors of length one.
fn distance(actual: &[f32], expected: &[f64]) -> f64 {
    actual
        .iter()
        .zip(expected)
        .map(|(&actual, expected)| (f64::from(actual) - expected).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Shapes that K formats allow, too.
fn wide(family: Family, weights: TensorType) -> TinyEncoder {
    TinyEncoder {
        family,
        weights,
        layer_count: 2,
        embedding: 256,
        feed_forward: 256,
        head_count: 8,
        ..TinyEncoder::default()
    }
}

#[test]
fn vectors_follow_the_graph_in_double_precision() {
    for family in Family::ALL {
        for (weights, pooling, lengths, bound) in [
            (TensorType::F32, 1, &[1, 5, 77][..], 2e-3),
            (TensorType::F32, 2, &[40], 2e-3),
            (TensorType::F16, 3, &[40], 2e-3),
            // Activations of 8 bits.
            (TensorType::Q8_0, 1, &[33], 5e-2),
        ] {
            let encoder = TinyEncoder {
                family,
                weights,
                pooling: Some(pooling),
                fused: pooling == 2,
                ..TinyEncoder::default()
            };
            let bytes = encoder.bytes();
            let reference = Reference::new(&bytes);
            let mut embedder = embedder(&load(&encoder), Isa::best(), 2);
            for &length in lengths {
                let tokens = tokens(length, pooling);
                let hidden = reference.hidden(&tokens);
                let pooled = match pooling {
                    1 => (0..hidden[0].len())
                        .map(|dim| hidden.iter().map(|row| row[dim]).sum::<f64>())
                        .collect(),
                    2 => hidden[0].clone(),
                    _ => hidden[length - 1].clone(),
                };
                let actual = one(&mut embedder, &tokens);
                let distance = distance(&actual, &unit(&pooled));
                assert!(
                    distance < bound,
                    "{family:?} {weights:?} pooling {pooling}, {length} tokens: {distance}"
                );
                let norm: f64 = actual.iter().map(|&value| f64::from(value).powi(2)).sum();
                assert!((norm - 1.0).abs() < 1e-6, "length {norm}");
            }
        }
    }
}

#[test]
fn vectors_are_the_same_bytes_however_they_are_computed() {
    for family in Family::ALL {
        for weights in TensorType::ALL {
            // A format's products are the same in every family; the families differ in what is between them.
            let plain = [TensorType::F32, TensorType::Q4_1, TensorType::Q6K];
            if family != Family::Bert && !plain.contains(&weights) {
                continue;
            }
            let encoder = wide(family, weights);
            let model = load(&encoder);
            // Longer than a piece, and than a page of keys, where time allows.
            let thorough = weights == TensorType::F32;
            let long = tokens(if thorough { 300 } else { 70 }, 0);
            let (short, other) = (tokens(3, 1), tokens(61, 2));
            let mut best = embedder(&model, Isa::best(), 2);
            let expected = [&long, &short, &other].map(|tokens| bits(&one(&mut best, tokens)));
            let check = |embedder: &mut Embedder, context: &str| {
                let mixed = embedder
                    .embed(&[&short, &long, &short, &other])
                    .expect("valid inputs");
                for (vector, index) in mixed.iter().zip([1, 0, 1, 2]) {
                    let same = bits(vector) == expected[index];
                    assert!(same, "{family:?} {weights:?} {context}, input {index}");
                }
            };
            check(&mut best, "together");
            for threads in [1, 3] {
                check(&mut embedder(&model, Isa::best(), threads), "threads");
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                check(&mut embedder(&model, isa, 2), isa.name());
            }
        }
    }
}

#[test]
fn an_encoding_may_rest_while_another_runs() {
    for family in Family::ALL {
        let model = load(&TinyEncoder {
            family,
            ..TinyEncoder::default()
        });
        let mut embedder = embedder(&model, Isa::best(), 2);
        let (long, short) = (tokens(200, 0), tokens(9, 1));
        let expected = bits(&one(&mut embedder, &long));
        let mut resting = embedder.start(&[&long]).expect("a valid input");
        let mut layers = 1;
        while !embedder.step(&mut resting) {
            one(&mut embedder, &short);
            layers += 1;
        }
        assert_eq!(layers, model.info().layer_count);
        assert!(embedder.step(&mut resting), "nothing is left to do");
        let actual = embedder.vector(&resting, 0).expect("a vector");
        assert_eq!(bits(&actual), expected, "{family:?}");
    }
}

#[test]
fn inputs_that_cannot_be_encoded_are_refused_whole() {
    let model = load(&TinyEncoder::default());
    let mut embedder = embedder(&model, Isa::best(), 1);
    let context = embedder.context_tokens_max();
    assert_eq!(context, 320);
    assert!(embedder.embed(&[&tokens(context, 0)]).is_ok());
    let vocabulary = model.info().vocabulary_count;
    let id = vocabulary as u32;
    let fifty = tokens(300, 0);
    let cases: [(&[&[u32]], EmbedError); 5] = [
        (&[], EmbedError::Empty),
        (&[&[1], &[]], EmbedError::Empty),
        (
            &[&[1], &tokens(context + 1, 0)],
            EmbedError::InputTooLong {
                tokens: context + 1,
                max: context,
            },
        ),
        (&[&[1, id]], EmbedError::UnknownToken { id, vocabulary }),
        (
            &[&fifty, &fifty],
            EmbedError::TooManyTokens {
                tokens: 608,
                max: 512,
            },
        ),
    ];
    for (inputs, error) in cases {
        assert_eq!(embedder.embed(inputs), Err(error));
    }
    let options = EmbedderOptions {
        context_tokens_max: Some(8),
        ..EmbedderOptions::default()
    };
    let short = Embedder::new(model, &options).expect("a valid embedder");
    let error = short.start(&[&tokens(9, 0)]).expect_err("it is too long");
    assert_eq!(error, EmbedError::InputTooLong { tokens: 9, max: 8 });
}

#[test]
fn a_file_without_pooling_takes_the_mean_and_one_of_a_reranker_is_refused() {
    let with = |pooling| TinyEncoder {
        pooling,
        ..TinyEncoder::default()
    };
    let input = tokens(20, 0);
    let [mean, none, absent] = [Some(1), Some(0), None].map(|pooling| {
        bits(&one(
            &mut embedder(&load(&with(pooling)), Isa::best(), 1),
            &input,
        ))
    });
    assert_eq!((&none, &absent), (&mean, &mean));
    for (pooling, expected) in [(4, "reranker"), (9, "pooling_type is 9")] {
        let error = try_load(&with(Some(pooling)).bytes()).expect_err("it makes no embeddings");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_head_left_over_from_training_changes_nothing() {
    let with = |family, head, pooling| TinyEncoder {
        family,
        head,
        pooling,
        ..TinyEncoder::default()
    };
    let input = tokens(20, 0);
    for family in [Family::Bert, Family::ModernBert] {
        let [without, left_over] = [false, true].map(|head| {
            let model = load(&with(family, head, Some(2)));
            bits(&one(&mut embedder(&model, Isa::best(), 1), &input))
        });
        assert_eq!(without, left_over);
        // Where nothing says that the model makes embeddings, the head is what it is for.
        let error = try_load(&with(family, true, None).bytes()).expect_err("it classifies");
        assert!(error.to_string().contains("`cls.weight`"), "{error}");
    }
}

#[test]
fn encoders_generate_no_text_and_decoders_make_no_embeddings() {
    let encoder = load(&TinyEncoder::default());
    assert!(encoder.info().pooling.is_some());
    let error = Executor::new(encoder, &ExecutorOptions::default()).expect_err("an encoder");
    assert!(matches!(error, ExecutorError::Encoder { .. }), "{error}");
    let decoder = Arc::new(try_load(&TinyModel::default().bytes()).expect("a sound model"));
    assert_eq!(decoder.info().pooling, None);
    let error = Embedder::new(decoder, &EmbedderOptions::default()).expect_err("a decoder");
    assert!(matches!(error, EmbedderError::NoEncoder { .. }), "{error}");
}

#[test]
fn a_file_that_claims_an_absurd_context_is_no_harm() {
    // A rotation's context is a number only; nothing in the file is as long.
    let encoder = TinyEncoder {
        family: Family::Nomic,
        context_tokens_max: 1 << 24,
        ..TinyEncoder::default()
    };
    let model = load(&encoder);
    let options = |context_tokens_max| EmbedderOptions {
        threads: Some(1),
        context_tokens_max,
        ..EmbedderOptions::default()
    };
    match Embedder::new(Arc::clone(&model), &options(None)) {
        Ok(mut embedder) => drop(one(&mut embedder, &tokens(3, 0))),
        Err(error) => assert!(matches!(error, EmbedderError::Memory { .. }), "{error}"),
    }
    let mut small = Embedder::new(model, &options(Some(64))).expect("it is small");
    one(&mut small, &tokens(64, 0));
}

#[test]
fn damaged_weights_are_told_from_a_vector() {
    let mut bytes = TinyEncoder::default().bytes();
    // The last tensor is a bias of the residual stream.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let model = Arc::new(try_load(&bytes).expect("its shapes are sound"));
    let mut embedder = embedder(&model, Isa::best(), 1);
    let error = embedder.embed(&[&[1, 2]]).expect_err("it is damaged");
    assert_eq!(error, EmbedError::NotFinite { input: 0 });
}

#[test]
fn shorter_vectors_have_length_one_too() {
    let model = load(&TinyEncoder::default());
    let vector = one(&mut embedder(&model, Isa::best(), 1), &tokens(10, 0));
    let short = shortened(&vector, 12).expect("there are more");
    assert_eq!(short.len(), 12);
    let length: f64 = short.iter().map(|&value| f64::from(value).powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-6);
    assert!((short[0] / short[1] - vector[0] / vector[1]).abs() < 1e-4);
    assert_eq!(shortened(&vector, 97), None);
    assert_eq!(shortened(&vector, 0), None);
}
