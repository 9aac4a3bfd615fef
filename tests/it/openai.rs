//! The official OpenAI client for Python, in `openai_client.py`, against the daemon.

use std::process::Command;

use andon_tests::daemon::{Builder, Daemon};
use andon_tests::programs;
use andon_tests::source::repository_root;

/// Runs the client's own test cases against a daemon; without the client the test says so and ends.
fn run(kind: &str, builder: Builder) {
    let Some(python) = programs::python() else {
        return;
    };
    let daemon = builder.start().unwrap();
    let output = Command::new(python)
        .arg(repository_root().join("tests/it/openai_client.py"))
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
        ran.is_some_and(|ran| ran > 20),
        "too few cases ran:\n{said}"
    );
}

#[test]
fn official_client_with_a_tiny_model() {
    run("tiny", Daemon::builder());
}

#[test]
fn official_client_with_a_real_model() {
    let Some(model) = programs::real_model() else {
        return;
    };
    run("real", Daemon::builder().model(&model));
}
