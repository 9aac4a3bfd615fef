//! What the journal has of the daemon: fields, `MESSAGE_ID`s and their explanations, and no text that was not asked for.

use std::path::PathBuf;

use andon_tests::daemon::Daemon;
use andon_tests::journald::Journald;
use andond::telemetry::Event;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::ctl::{andonctl, good};

fn catalog() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../systemd/andon.catalog")
}

fn ask(daemon: &Daemon, body: &Value) -> Value {
    let reply = daemon.http().post("/v1/completions", body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json().unwrap()
}

fn of_event(event: Event) -> String {
    format!("MESSAGE_ID={}", event.id())
}

#[test]
fn the_journal_has_the_fields_of_a_request_and_explains_events() {
    let Some(journald) = Journald::start(&catalog()) else {
        return;
    };
    let task = "[task.explain]\ninstructions = \"Explain {{ code }}.\"\n";
    let mut daemon = Daemon::builder()
        .before(journald.before())
        .config(task)
        .start()
        .unwrap();
    // Under the journal nothing goes to standard error.
    assert_eq!(daemon.log(), "");

    let ready = journald.entries(&[&of_event(Event::Ready)], 1);
    assert_eq!(ready[0]["MESSAGE"], "ready");
    assert_eq!(ready[0]["MODEL"], "tiny");
    assert_eq!(ready[0]["SYSLOG_IDENTIFIER"], "andond");
    assert_eq!(ready[0]["PRIORITY"], "6");
    let explained = journald.journalctl(&["-x", &of_event(Event::Ready)]);
    assert!(
        explained.contains("andond answers requests with tiny"),
        "{explained}"
    );
    assert!(
        explained.contains("Documentation: man:andond(8)"),
        "{explained}"
    );

    let secret = "the press in hall three";
    let answer = ask(
        &daemon,
        &json!({ "prompt": secret, "max_tokens": 5, "priority": "batch" }),
    );
    let id = answer["id"].as_str().unwrap();
    let entries = journald.entries(&[&format!("REQUEST_ID={id}")], 1);
    let answered = entries.last().unwrap();
    assert_eq!(answered["MESSAGE"], "answered");
    let uid = nix::unistd::getuid();
    for (field, value) in [
        ("CLIENT", format!("uid-{uid}")),
        ("ORIGIN", "http".to_owned()),
        ("MODEL", "tiny".to_owned()),
        ("ROUTE", "local".to_owned()),
        ("REQUEST_PRIORITY", "batch".to_owned()),
        ("PRIORITY", "6".to_owned()),
        (
            "PROMPT_TOKENS",
            answer["usage"]["prompt_tokens"].to_string(),
        ),
        (
            "COMPLETION_TOKENS",
            answer["usage"]["completion_tokens"].to_string(),
        ),
        ("TOKENS", answer["usage"]["total_tokens"].to_string()),
    ] {
        assert_eq!(answered[field], value, "{field} of {answered}");
    }
    for field in ["DURATION_US", "FIRST_TOKEN_US", "QUEUE_US", "CACHED_TOKENS"] {
        let value = answered[field].as_str().unwrap_or_default();
        assert!(value.parse::<u64>().is_ok(), "{field} of {answered}");
    }

    let input = json!({ "code": secret }).to_string();
    let asks = [
        "ask",
        "--task",
        "explain",
        "--input",
        &input,
        "--tokens-max",
        "3",
    ];
    good(&andonctl(&daemon, &asks));
    let of_task = journald.entries(&["TASK=explain"], 1);
    assert_eq!(of_task[0]["MESSAGE"], "answered");
    assert_eq!(of_task[0]["ORIGIN"], "wire");
    assert!(answered.get("TASK").is_none(), "{answered}");

    let reply = daemon
        .http()
        .post(
            "/v1/completions",
            &json!({ "prompt": secret, "model": "none" }),
        )
        .unwrap();
    assert_eq!(reply.status, 404);
    let refused = journald.entries(&["FAULT=model_not_found"], 1);
    assert_eq!(refused[0]["MESSAGE"], "a request is refused");

    daemon.terminate().unwrap();
    daemon.wait(andon_tests::daemon::READY_TIMEOUT).unwrap();
    assert_eq!(journald.entries(&[&of_event(Event::Stopped)], 1).len(), 1);
    // No text, in no field of any entry.
    let all = journald.journalctl(&["-o", "json", "--all"]);
    assert!(!all.contains(secret), "{all}");
    assert!(
        !all.contains("\"PROMPT\"") && !all.contains("\"ANSWER\""),
        "{all}"
    );
}

#[test]
fn text_is_in_the_journal_where_it_is_asked_for() {
    let Some(journald) = Journald::start(&catalog()) else {
        return;
    };
    let daemon = Daemon::builder()
        .before(journald.before())
        .config("[log]\ntext = true\n")
        .start()
        .unwrap();
    let prompt = "the press\nin hall three";
    let answer = ask(&daemon, &json!({ "prompt": prompt, "max_tokens": 8 }));
    let entries = journald.entries(&["MESSAGE=answered"], 1);
    assert_eq!(entries[0]["PROMPT"], prompt);
    // The tiny model's words may be bytes that are no text.
    let said = match &entries[0]["ANSWER"] {
        Value::String(text) => text.clone(),
        Value::Array(bytes) => {
            let byte = |byte: &Value| u8::try_from(byte.as_u64().unwrap_or_default()).unwrap();
            String::from_utf8(bytes.iter().map(byte).collect()).unwrap()
        }
        Value::Null => String::new(),
        other => panic!("{other}"),
    };
    assert_eq!(answer["choices"][0]["text"], said);
}

#[test]
fn a_flood_of_bad_requests_is_cut_short_and_counted() {
    let Some(journald) = Journald::start(&catalog()) else {
        return;
    };
    let mut daemon = Daemon::builder()
        .before(journald.before())
        .config("[log]\nevents-per-second-max = 2\n")
        .start()
        .unwrap();
    let sent = 200;
    let start = std::time::Instant::now();
    for _ in 0..sent {
        let body = json!({ "prompt": "x", "max_tokens": 0 });
        let reply = daemon.http().post("/v1/completions", &body).unwrap();
        assert_eq!(reply.status, 400);
    }
    let most = 20 + 2 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 1);
    daemon.terminate().unwrap();
    daemon.wait(andon_tests::daemon::READY_TIMEOUT).unwrap();
    let heard = journald.entries(&["MESSAGE=a request is refused"], 1).len();
    assert!((20..=most).contains(&heard), "{heard} of {sent}");
    let told = journald.entries(&[&of_event(Event::Suppressed)], 1);
    let count = |entry: &Value| entry["COUNT"].as_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(heard + told.iter().map(count).sum::<usize>(), sent);
    assert_eq!(told[0]["OF"], "a request is refused");
}

#[test]
fn journalctl_takes_the_catalog() {
    let root = tempdir().unwrap();
    let catalogs = root.path().join("usr/lib/systemd/catalog");
    std::fs::create_dir_all(&catalogs).unwrap();
    std::fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).unwrap();
    std::fs::copy(catalog(), catalogs.join("andon.catalog")).unwrap();
    let root = format!("--root={}", root.path().display());
    let journalctl = |argument: &str| {
        let mut command = std::process::Command::new("journalctl");
        match command.args([argument, &root, "--no-pager"]).output() {
            Ok(output) => Some(output),
            Err(error) => {
                eprintln!("skipped: journalctl: {error}");
                None
            }
        }
    };
    let Some(updated) = journalctl("--update-catalog") else {
        return;
    };
    let said = String::from_utf8_lossy(&updated.stderr);
    assert!(updated.status.success() && said.is_empty(), "{said}");
    let Some(listed) = journalctl("--list-catalog") else {
        return;
    };
    let listed = String::from_utf8_lossy(&listed.stdout);
    for event in Event::ALL {
        assert!(
            listed
                .lines()
                .any(|line| line.starts_with(event.id()) && line.contains("andond:")),
            "{event:?} is not in:\n{listed}"
        );
    }
}
