//! The official OpenAI client for Python, in `openai_client.py`, against the daemon.

use std::process::Command;

use andon_tests::daemon::{Builder, Daemon};
use andon_tests::programs;
use andon_tests::source::repository_root;
use andon_tests::tiny_encoder::TinyEncoder;
use andon_tests::tiny_model::TinyModel;

/// A script, and how many cases it has at least.
const CLIENT: (&str, u32) = ("openai_client.py", 52);
const EMBEDDINGS: (&str, u32) = ("openai_embeddings.py", 9);

/// Runs the client's own test cases against a daemon; without the client the test says so and ends.
fn run(kind: &str, (script, cases): (&str, u32), builder: Builder) {
    let Some(python) = programs::python() else {
        return;
    };
    let daemon = builder.start().unwrap();
    let output = Command::new(python)
        .arg(repository_root().join("tests/it").join(script))
        .env("ANDON_SOCKET", daemon.http_socket())
        .env("ANDON_MODEL_KIND", kind)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let ran = said.lines().find_map(|line| {
        line.strip_prefix("Ran ")?
            .split(' ')
            .next()?
            .parse::<u32>()
            .ok()
    });
    assert!(
        ran.is_some_and(|ran| ran >= cases),
        "too few cases ran:\n{said}"
    );
}

#[test]
fn official_client_with_a_tiny_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    // A letter is a token here, and tools take some hundred to tell of.
    let model = TinyModel {
        context_tokens_max: 2048,
        ..TinyModel::default()
    };
    model.write(&path).unwrap();
    run("tiny", CLIENT, Daemon::builder().model(&path));
}

#[test]
fn official_client_with_a_real_model() {
    let Some(model) = programs::real_model() else {
        return;
    };
    run("real", CLIENT, Daemon::builder().model(&model));
}

#[test]
fn official_client_with_a_model_that_makes_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.gguf");
    TinyEncoder::default().write(&path).unwrap();
    run("encoder", EMBEDDINGS, Daemon::builder().model(&path));
}
