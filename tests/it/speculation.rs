//! Guesses in the real daemon: they change no answer, and what became of them is told.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

use crate::ctl::{andonctl, good};
use crate::metrics::sum;

/// A tiny model with room for long answers, in a file of its own.
fn model(folder: &Path) -> PathBuf {
    written(folder, "model.gguf", 0)
}

/// One that says the same, and takes so much longer that what the other guesses for it pays on any machine.
fn slow_model(folder: &Path) -> PathBuf {
    written(folder, "slow.gguf", 30)
}

fn written(folder: &Path, name: &str, idle_layer_count: usize) -> PathBuf {
    let path = folder.join(name);
    let tiny = TinyModel {
        context_tokens_max: 2048,
        idle_layer_count,
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

/// Tokens of an answer that a draft guesses for.
const TOKENS: usize = 64;

/// Asks for the same answer until guesses came true: of a machine that is busy with other things, costs may be measured that
/// say for a while that none pays. Returns the usage of the answer that had some.
fn ask_until_accepted(daemon: &Daemon, expected: &str) -> Value {
    for _ in 0..500 {
        let (text, usage) = ask(daemon, TOKENS, None);
        assert_eq!(text, expected);
        if accepted_in(&usage) > 0 {
            return usage;
        }
    }
    panic!("no guess came true");
}

#[test]
fn a_draft_model_changes_no_answer_and_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let (model, draft) = (slow_model(folder.path()), model(folder.path()));
    let expected = ask(
        &daemon(&model, "[speculation]\nenabled = false\n"),
        TOKENS,
        None,
    );
    assert_eq!(accepted_in(&expected.1), 0);
    let config = format!(
        "[speculation]\nlookup = false\ndraft = '{}'\n",
        draft.display()
    );
    let with_draft = daemon(&model, &config);
    let usage = ask_until_accepted(&with_draft, &expected.0);
    let accepted = accepted_in(&usage);
    let details = &usage["completion_tokens_details"];
    assert_eq!(
        details["rejected_prediction_tokens"], 0,
        "the two say the same"
    );
    let counted = || {
        sum(
            &with_draft,
            "andon_accepted_tokens_total",
            "source=\"model\"",
        )
    };
    // Metrics are set behind the pass whose tokens an answer ends with.
    let began = Instant::now();
    while counted() != accepted as f64 {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", counted());
        std::thread::sleep(Duration::from_millis(10));
    }
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
        let status = good(&andonctl(&daemon, &["status"]));
        let line = status.lines().find(|line| line.contains("is not used: "));
        assert!(line.is_some_and(|line| line.contains(says)), "{status}");
    }
}

#[test]
fn a_kept_model_guesses_by_its_name_and_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let model = slow_model(folder.path());
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
    let expected = ask(&daemon, TOKENS, None);
    assert_eq!(accepted_in(&expected.1), 0, "it is not there yet");
    good(&andonctl(
        &daemon,
        &["model", "add", draft.to_str().unwrap()],
    ));
    daemon.restart().unwrap();
    ask_until_accepted(&daemon, &expected.0);
    let status = good(&andonctl(&daemon, &["status"]));
    assert!(status.contains("small guesses, "), "{status}");
    let status = good(&andonctl(&daemon, &["status", "--json"]));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["draft"]["used"], true, "{status}");
    let removed = andonctl(&daemon, &["model", "rm", "small"]);
    assert!(!removed.status.success());
    let why = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(why.contains("guesses for the served model"), "{why}");
}

#[test]
fn predictions_and_earlier_answers_come_true() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let config = "[task.explain]\ninstructions = \"Explain {{ code }}.\"\ntokens-max = 200\n";
    let daemon = daemon(&model, config);
    let (text, _) = ask(&daemon, 200, None);
    let (again, usage) = ask(&daemon, 200, Some(&text));
    assert_eq!(again, text);
    assert!(accepted_in(&usage) > 0, "{usage}");
    let task = ["ask", "--task", "explain", "--input", "{\"code\": \"E42\"}"];
    let explain = || good(&andonctl(&daemon, &task));
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

#[test]
fn earlier_answers_are_listed_and_erased() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let config = "[task.explain]\ninstructions = \"Explain {{ code }}.\"\ntokens-max = 8\n\
                  [task.triage]\ninstructions = \"Sort {{ code }}.\"\ntokens-max = 8\n";
    let daemon = daemon(&model, config);
    let ask = |task| {
        let ask = ["ask", "--task", task, "--input", "{\"code\": \"E42\"}"];
        good(&andonctl(&daemon, &ask))
    };
    let first = ask("explain");
    ask("triage");
    let list = || good(&andonctl(&daemon, &["corpus", "ls", "--json"]));
    let tasks = || -> Vec<String> {
        let lines = list();
        let values = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        values
            .map(|value: Value| value["task"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(tasks(), ["explain", "triage"]);
    let value: Value = serde_json::from_str(list().lines().next().unwrap()).unwrap();
    let client = value["client"].as_str().unwrap().to_owned();
    assert!(
        client.starts_with("uid-") && value["local"] == true,
        "{value}"
    );
    let erase = |arguments: &[&str]| {
        let command = [&["corpus", "erase"], arguments].concat();
        good(&andonctl(&daemon, &command))
    };
    assert_eq!(
        erase(&["--task", "explain", "--client", "plc1"]),
        "0 erased\n"
    );
    assert_eq!(
        erase(&["--task", "explain", "--client", &client]),
        "1 erased\n"
    );
    assert_eq!(tasks(), ["triage"]);
    assert!(good(&andonctl(&daemon, &["corpus", "ls"])).contains("(local)"));
    assert_eq!(ask("explain"), first);
    assert_eq!(erase(&["--all"]), "2 erased\n");
    assert!(tasks().is_empty());
    // What is not told apart is not erased in silence.
    let config = format!("{config}[speculation]\ncorpus = 'task'\n");
    let together = self::daemon(&model, &config);
    let ask = ["ask", "--task", "triage", "--input", "{\"code\": \"E42\"}"];
    good(&andonctl(&together, &ask));
    let output = andonctl(&together, &["corpus", "erase", "--client", &client]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"0 erased\n");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        why.contains("all clients to 1 task are kept together"),
        "{why}"
    );
    let task = ["corpus", "erase", "--task", "triage"];
    assert_eq!(good(&andonctl(&together, &task)), "1 erased\n");
    // What is to be erased has to be said.
    assert!(!andonctl(&daemon, &["corpus", "erase"]).status.success());
}
