//! Guesses in the real daemon: they change no answer, and what became of them is told.

use std::path::{Path, PathBuf};
use std::process::Command;

use andon_tests::daemon::Daemon;
use andon_tests::programs;
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

/// The tiny model with room for long answers, in a file of its own.
fn model(folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    let tiny = TinyModel {
        context_tokens_max: 2048,
        ..TinyModel::default()
    };
    tiny.write(&path).unwrap();
    path
}

fn daemon(model: &Path, speculation: &str) -> Daemon {
    Daemon::builder()
        .model(model)
        .config(speculation)
        .start()
        .unwrap()
}

/// Asks for an answer of so many tokens; returns its text and its usage.
fn ask(daemon: &Daemon, tokens: usize, prediction: Option<&str>) -> (String, Value) {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "hello" }], "max_tokens": tokens, "temperature": 0,
    });
    if let Some(text) = prediction {
        body["prediction"] = json!({ "type": "content", "content": text });
    }
    let reply = daemon.http().post("/v1/chat/completions", &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = reply.json().unwrap();
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    (text.to_owned(), reply["usage"].clone())
}

fn accepted_in(usage: &Value) -> u64 {
    let details = &usage["completion_tokens_details"];
    details["accepted_prediction_tokens"].as_u64().unwrap()
}

/// The sum of a metric's samples that have this label.
fn sum(daemon: &Daemon, name: &str, label: &str) -> f64 {
    let text = daemon.http().get("/metrics").unwrap().text();
    let samples = text.lines().filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let labels = sample.strip_prefix(name)?;
        let is_it = labels.is_empty() || labels.starts_with('{') && labels.contains(label);
        is_it.then(|| value.parse::<f64>().ok()).flatten()
    });
    samples.sum()
}

#[test]
fn a_draft_model_changes_no_answer_and_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let expected = ask(
        &daemon(&model, "[speculation]\nenabled = false\n"),
        600,
        None,
    );
    assert_eq!(accepted_in(&expected.1), 0);
    // It costs as much as the model, so it is only tried from time to time.
    let config = format!(
        "[speculation]\nlookup = false\ndraft = '{}'\n",
        model.display()
    );
    let with_draft = daemon(&model, &config);
    let (text, usage) = ask(&with_draft, 600, None);
    assert_eq!(text, expected.0);
    let accepted = accepted_in(&usage);
    assert!(accepted > 0, "{usage}");
    let details = &usage["completion_tokens_details"];
    assert_eq!(
        details["rejected_prediction_tokens"], 0,
        "a model foresees itself"
    );
    let source = "source=\"model\"";
    assert_eq!(
        sum(&with_draft, "andon_accepted_tokens_total", source),
        accepted as f64
    );
    assert_eq!(sum(&with_draft, "andon_draft", ""), 1.0);
    assert!(sum(&with_draft, "andon_draft_cost_ratios", "") > 0.0);
}

#[test]
fn what_is_wrong_with_a_draft_keeps_no_model_from_answering() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let large = "draft-bytes-max = 1048576\n";
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, "GGUF").unwrap();
    let expected = ask(&daemon(&model, ""), 8, None).0;
    for (draft, more, says) in [
        ("/nowhere/draft.gguf", "", "cannot open"),
        ("never-added", "", "no model never-added is kept here"),
        (broken.to_str().unwrap(), "", "is not a sound GGUF file"),
        (model.to_str().unwrap(), large, "bytes of memory"),
    ] {
        let config = format!("[speculation]\ndraft = '{draft}'\n{more}");
        let daemon = daemon(&model, &config);
        assert_eq!(ask(&daemon, 8, None).0, expected);
        let log = daemon.log();
        let warned = log
            .lines()
            .find(|line| line.contains("there are no guesses of the draft model"));
        assert!(
            warned.is_some_and(|line| line.contains(says)),
            "no {says:?} in\n{log}"
        );
        assert_eq!(sum(&daemon, "andon_draft", ""), 0.0);
    }
}

#[test]
fn a_kept_model_guesses_by_its_name_and_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let draft = folder.path().join("small.gguf");
    // It can say what is printable and nothing else, which is all that the model says.
    let tiny = TinyModel {
        context_tokens_max: 2048,
        draft_tokens: Some((3 + 32..3 + 127).chain(259..275).collect()),
        ..TinyModel::default()
    };
    tiny.write(&draft).unwrap();
    let config = "[speculation]\nlookup = false\ndraft = 'small'\n";
    let mut daemon = daemon(&model, config);
    let expected = ask(&daemon, 400, None);
    assert_eq!(accepted_in(&expected.1), 0, "it is not there yet");
    let model_command = |daemon: &Daemon, arguments: &[&str]| {
        let program = programs::folder().unwrap().join("andonctl");
        let mut command = Command::new(program);
        command.arg("--socket").arg(daemon.wire_socket());
        command.arg("model").args(arguments).output().unwrap()
    };
    let added = model_command(&daemon, &["add", draft.to_str().unwrap()]);
    assert!(added.status.success(), "{added:?}");
    daemon.restart().unwrap();
    let (text, usage) = ask(&daemon, 400, None);
    assert_eq!(text, expected.0);
    assert!(accepted_in(&usage) > 0, "{usage}");
    let removed = model_command(&daemon, &["rm", "small"]);
    assert!(!removed.status.success());
    let said = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(said.contains("guesses for the served model"), "{said}");
}

#[test]
fn predictions_and_earlier_answers_come_true() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let task = "[task.explain]\ninstructions = \"Explain {{ code }}.\"\ntokens-max = 200\n";
    let daemon = daemon(&model, task);
    let (text, _) = ask(&daemon, 200, None);
    let (again, usage) = ask(&daemon, 200, Some(&text));
    assert_eq!(again, text);
    assert!(accepted_in(&usage) > 0, "{usage}");
    let explain = || {
        let program = programs::folder().unwrap().join("andonctl");
        let input = ["--task", "explain", "--input", "{\"code\": \"E42\"}"];
        let mut command = Command::new(program);
        command.arg("--socket").arg(daemon.wire_socket());
        let output = command.arg("ask").args(input).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let first = explain();
    let before = sum(
        &daemon,
        "andon_task_accepted_tokens_total",
        "task=\"explain\"",
    );
    assert_eq!(explain(), first);
    let after = sum(
        &daemon,
        "andon_task_accepted_tokens_total",
        "task=\"explain\"",
    );
    assert!(after > before, "{before} and {after}");
    assert!(sum(&daemon, "andon_accepted_tokens_total", "source=\"corpus\"") > 0.0);
}
