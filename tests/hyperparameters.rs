//! Files of one model say it in several ways: a key is missing where it has its usual value, zero where it does not
//! apply, a list of one value for each layer where another file has a number. All of them give the same bytes.

#![forbid(unsafe_code)]

use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_tests::tiny_model::Key::{Count, Counts, Factor, Flag, Flags, Missing, Text};
use andon_tests::tiny_model::{Architecture, Key, TensorType, TinyModel};
use std::path::Path;
use std::sync::Arc;

/// Positions: more than a window, and enough for rotations to differ.
const TOKENS: u32 = 48;

type Keys = &'static [(&'static str, Key)];

/// Bits of the logits of every position.
fn logits(path: &Path, model: &TinyModel) -> Vec<u32> {
    model.write(path).expect("writable");
    let model = Arc::new(Model::load(path).expect("a sound model"));
    let vocabulary = model.info().vocabulary_count as u32;
    let options = ExecutorOptions {
        threads: Some(1),
        batch_tokens_max: TOKENS as usize,
        kv_tokens_max: 64,
        ..ExecutorOptions::default()
    };
    let mut executor = Executor::new(model, &options).expect("a valid executor");
    let mut sequence = executor.sequence();
    let tokens: Vec<u32> = (0..TOKENS)
        .map(|index| (index * 7919 + 3) % vocabulary)
        .collect();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens: &tokens,
        logits: LogitsFor::All,
    };
    let logits = executor.forward(&mut [chunk]).expect("a valid batch");
    (0..logits.row_count())
        .flat_map(|row| logits.row(row))
        .map(|logit| logit.to_bits())
        .collect()
}

/// Checks that a model is the same with each of `others`.
fn check(title: &str, plain: Keys, others: &[Keys]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let architecture = Architecture::ALL
        .into_iter()
        .find(|architecture| architecture.title == title)
        .expect("an architecture of this title");
    let model = |keys: Keys| TinyModel {
        architecture,
        layer_count: architecture.layer_count,
        embedding: 64,
        feed_forward: 96,
        weights: TensorType::F16,
        keys: keys.to_vec(),
        ..TinyModel::default()
    };
    let expected = logits(&path, &model(plain));
    for keys in others {
        let actual = logits(&path, &model(keys));
        assert!(actual == expected, "{title}: {keys:?} against {plain:?}");
    }
}

#[test]
fn sizes_may_be_left_out_or_said_for_each_layer() {
    check(
        "qwen2",
        &[],
        &[
            &[
                ("attention.head_count", Counts(&[4, 4])),
                ("attention.head_count_kv", Counts(&[2, 2])),
                ("feed_forward_length", Counts(&[96, 96])),
            ],
            &[("rope.dimension_count", Missing)],
            &[
                ("attention.key_length", Count(16)),
                ("attention.value_length", Count(16)),
            ],
            &[
                ("expert_count", Count(0)),
                ("attention.causal", Flag(true)),
                ("attention.sliding_window", Count(0)),
                ("pooling_type", Count(0)),
            ],
        ],
    );
}

#[test]
fn rotations_have_usual_values() {
    check(
        "llama",
        &[],
        &[
            &[("rope.freq_base", Missing)],
            &[
                ("rope.scaling.type", Text("none")),
                ("rope.scaling.factor", Factor(4.0)),
            ],
            &[
                ("rope.scaling.factor", Factor(0.0)),
                ("rope.scaling.original_context_length", Count(0)),
            ],
            &[("rope.scaling.type", Text("yarn"))],
        ],
    );
    check(
        "llama, linear",
        &[],
        &[
            &[("rope.scaling.type", Missing)],
            &[
                ("rope.scaling.type", Missing),
                ("rope.scaling.factor", Missing),
                ("rope.scale_linear", Factor(4.0)),
            ],
        ],
    );
    check(
        "llama, YaRN",
        &[("rope.scaling.original_context_length", Count(512))],
        &[
            &[("rope.scaling.original_context_length", Missing)],
            &[
                ("rope.scaling.original_context_length", Missing),
                ("rope.scaling.yarn_beta_fast", Factor(32.0)),
                ("rope.scaling.yarn_beta_slow", Factor(1.0)),
                ("rope.scaling.attn_factor", Factor(1.0)),
            ],
        ],
    );
}

#[test]
fn windows_have_patterns() {
    check(
        "gemma3, every other layer",
        &[],
        &[
            &[("attention.sliding_window_pattern", Flags(&[true, false]))],
            &[("attention.sliding_window_pattern", Counts(&[1, 0]))],
            &[("rope.freq_base_swa", Factor(1e4))],
        ],
    );
    check(
        "gemma3",
        &[],
        &[
            &[("attention.sliding_window_pattern", Count(6))],
            &[(
                "attention.sliding_window_pattern",
                Flags(&[true, true, true, true, true, false]),
            )],
        ],
    );
    // Without a window every layer has the one rotation.
    check(
        "gemma3",
        &[("attention.sliding_window", Missing)],
        &[
            &[("attention.sliding_window", Count(0))],
            &[("attention.sliding_window_pattern", Count(1))],
        ],
    );
}

#[test]
fn factors_have_usual_values() {
    check(
        "gemma2",
        &[
            ("attn_logit_softcapping", Factor(50.0)),
            ("final_logit_softcapping", Factor(30.0)),
            ("attention.sliding_window", Count(4096)),
        ],
        &[&[
            ("attn_logit_softcapping", Missing),
            ("final_logit_softcapping", Missing),
            ("attention.sliding_window", Missing),
        ]],
    );
    check(
        "granite",
        &[
            ("residual_scale", Factor(1.0)),
            ("embedding_scale", Factor(1.0)),
            ("attention.scale", Factor(0.25)),
            ("rope.scaling.finetuned", Flag(true)),
        ],
        &[
            &[
                ("residual_scale", Missing),
                ("embedding_scale", Missing),
                ("attention.scale", Missing),
            ],
            // Zero is what files have where a factor does not apply.
            &[
                ("residual_scale", Factor(0.0)),
                ("embedding_scale", Factor(0.0)),
                ("attention.scale", Factor(0.0)),
            ],
        ],
    );
}
