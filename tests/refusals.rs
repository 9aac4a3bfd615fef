//! Models that cannot be run are refused by the name of what they ask for, before anything is allocated for it.

#![forbid(unsafe_code)]

use andon_engine::{Executor, ExecutorError, ExecutorOptions, Model};
use andon_tests::tiny_model::{Architecture, Key, Scaling, TinyModel};
use std::path::Path;
use std::sync::Arc;

/// What is said of a file of these bytes.
fn refusal(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).expect("writable");
    let error = Model::load(path).expect_err("a refusal");
    error.to_string()
}

#[test]
fn hyperparameters_are_refused_by_their_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let plain = Architecture::LLAMA;
    let factors = |factors| Architecture { factors, ..plain };
    let counts = |counts| Architecture { counts, ..plain };
    for (architecture, says) in [
        (
            counts(&[("expert_count", 8)]),
            "a mixture of experts (`llama.expert_count` is 8) is not supported",
        ),
        (
            factors(&[("rope.freq_base", 0.5)]),
            "llama.rope.freq_base is 0.5",
        ),
        (
            factors(&[("rope.freq_base", f32::NAN)]),
            "llama.rope.freq_base",
        ),
        (
            factors(&[("rope.scaling.factor", -2.0)]),
            "llama.rope.scaling.factor is -2",
        ),
        (
            factors(&[("rope.scaling.attn_factor", 1e30)]),
            "llama.rope.scaling.attn_factor is 1",
        ),
        (
            Architecture {
                name: "granite",
                ..factors(&[("logit_scale", 1e-30)])
            },
            "granite.logit_scale is 0.0",
        ),
        (
            Architecture {
                name: "gemma9",
                ..plain
            },
            "architecture `gemma9` is not supported",
        ),
        (
            // The tensors are llama's.
            Architecture {
                name: "qwen3",
                ..plain
            },
            "tensor `blk.0.attn_q_norm.weight` is missing",
        ),
        (
            // Norms that llama does not have.
            Architecture {
                norms: &["attn_norm", "ffn_norm", "post_ffw_norm"],
                ..plain
            },
            "tensor `blk.0.post_ffw_norm.weight` is not part of architecture `llama`",
        ),
    ] {
        let model = TinyModel {
            architecture,
            ..TinyModel::default()
        };
        let actual = refusal(&path, &model.bytes());
        assert!(actual.contains(says), "{actual:?} does not say {says:?}");
    }
}

#[test]
fn what_no_graph_does_is_refused_by_its_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for (key, says) in [
        (
            ("attention.causal", Key::Flag(false)),
            "attention to later positions (`llama.attention.causal` is false) is not supported",
        ),
        (
            ("pooling_type", Key::Count(3)),
            "a decoder that makes embeddings (`llama.pooling_type` is 3) is not supported",
        ),
        (
            ("attention.head_count_kv", Key::Counts(&[2, 4])),
            "`llama.attention.head_count_kv` that differs from layer to layer is not supported",
        ),
        (
            ("block_count", Key::Count(0)),
            "llama.block_count is 0: between 1 and 1024",
        ),
        (
            ("block_count", Key::Count(1 << 20)),
            "llama.block_count is 1048576: between 1 and 1024",
        ),
        (
            ("feed_forward_length", Key::Counts(&[])),
            "llama.feed_forward_length is 0",
        ),
        (
            ("attention.value_length", Key::Count(16)),
            "llama.attention.value_length is 16: the key length 32",
        ),
    ] {
        let model = TinyModel {
            keys: vec![key],
            ..TinyModel::default()
        };
        let actual = refusal(&path, &model.bytes());
        assert!(actual.contains(says), "{actual:?} does not say {says:?}");
    }
}

#[test]
fn tokens_of_a_draft_are_refused_by_their_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("draft.gguf");
    for (tokens, says) in [
        (
            vec![5, 9],
            "is a draft with a trimmed vocabulary (2 tokens of 275)",
        ),
        (
            vec![5, 275],
            "andon.draft.token_ids[1] is 275: one of the 275 tokens",
        ),
        (
            vec![5, 5],
            "andon.draft.token_ids[1] is 5: more than 5 before it",
        ),
        (
            vec![5, 9, 4],
            "andon.draft.token_ids[2] is 4: more than 9 before it",
        ),
        (
            (0..276).collect(),
            "andon.draft.token_ids is a list of 276: between 1 and",
        ),
    ] {
        let model = TinyModel {
            draft_tokens: Some(tokens),
            ..TinyModel::default()
        };
        let actual = refusal(&path, &model.bytes());
        assert!(actual.contains(says), "{actual:?} does not say {says:?}");
    }
}

#[test]
fn an_unknown_scaling_is_refused_by_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let model = TinyModel {
        architecture: Architecture {
            scaling: Scaling::Linear { factor: 2.0 },
            ..Architecture::LLAMA
        },
        ..TinyModel::default()
    };
    let mut bytes = model.bytes();
    let at = bytes
        .windows(6)
        .position(|window| window == b"linear")
        .expect("the scaling's name");
    bytes[at..at + 6].copy_from_slice(b"unhear");
    let actual = refusal(&path, &bytes);
    assert!(actual.contains("unhear"), "{actual}");
}

#[test]
fn widths_that_a_small_file_has_no_use_for_are_not_allocated() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let model = TinyModel {
        layer_count: 1,
        embedding: 32,
        feed_forward: 1 << 14,
        ..TinyModel::default()
    };
    model.write(&path).expect("writable");
    let model = Arc::new(Model::load(&path).expect("a sound model"));
    let executor = |batch_tokens_max| {
        let options = ExecutorOptions {
            batch_tokens_max,
            ..ExecutorOptions::default()
        };
        Executor::new(Arc::clone(&model), &options)
    };
    assert!(matches!(
        executor(Executor::BATCH_TOKENS_MAX),
        Err(ExecutorError::Activations { .. })
    ));
    assert!(executor(64).is_ok());
}
