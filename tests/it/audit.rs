//! The audit stream: a record of every answer, none of its text, and what a failing disk changes.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::Broker;
use andon_tests::daemon::Daemon;
use andon_tests::mount::Mount;
use andon_tests::tiny_model::TinyModel;
use andond::audit::Mac;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::ctl::{andonctl, good};
use crate::metrics::sum;

const TIMEOUT: Duration = Duration::from_secs(60);

fn config(dir: &Path, more: &str) -> String {
    format!(
        "[audit]\nenabled = true\ndir = \"{}\"\n{more}",
        dir.display()
    )
}

/// The records, once there are `count`.
fn records(dir: &Path, count: usize) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
            .collect();
        files.sort();
        let text: String = files
            .iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        if text.lines().count() >= count {
            let parse = |line: &str| serde_json::from_str(line).unwrap();
            return text.lines().map(parse).collect();
        }
        assert!(
            start.elapsed() < TIMEOUT,
            "{} of {count}",
            text.lines().count()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn ask(daemon: &Daemon, body: &Value) -> Value {
    let reply = daemon.http().post("/v1/completions", body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_answer_is_recorded_without_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("audit");
    let broker = Broker::start().unwrap();
    let task = "[task.explain]\ninstructions = \"Explain {{ code }}.\"\npriority = \"alarm\"\n";
    let mut daemon = Daemon::builder()
        .config(&(broker.config() + &config(&dir, "") + task))
        .start()
        .unwrap();
    let prompt = "the press in hall three";
    let answer = ask(
        &daemon,
        &json!({ "prompt": prompt, "max_tokens": 9, "temperature": 0.5, "seed": 7, "n": 2,
                 "priority": "batch" }),
    );
    // Refused ones are no answers.
    let none = json!({ "prompt": prompt, "model": "none" });
    assert_eq!(
        daemon.http().post("/v1/completions", &none).unwrap().status,
        404
    );
    let shape = json!({ "type": "object", "properties": { "a": { "type": "boolean" } },
                        "required": ["a"], "additionalProperties": false });
    let shaped = daemon
        .http()
        .post(
            "/v1/chat/completions",
            &json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": {
                     "type": "json_schema", "json_schema": { "name": "a", "schema": shape } } }),
        )
        .unwrap();
    assert_eq!(shaped.status, 200, "{}", shaped.text());
    let watcher = broker.watch("andon/test/response/#", "mqttv5").unwrap();
    broker
        .publish(
            "andon/test/request/plc1/explain",
            r#"{"id":"17","input":{"code":"E42"},"tokens_max":3}"#,
        )
        .unwrap();
    watcher
        .wait_for(|seen| seen.topic.ends_with("/17"))
        .unwrap();

    let all = records(&dir, 3);
    assert_eq!(all.len(), 3, "{all:?}");
    let first = &all[0];
    let uid = nix::unistd::getuid().as_raw();
    for (field, value) in [
        ("v", json!(1)),
        ("request_id", answer["id"].clone()),
        ("client", json!(format!("uid-{uid}"))),
        ("uid", json!(uid)),
        ("origin", json!("http")),
        ("priority", json!("batch")),
        ("attempt", json!(1)),
        ("model", json!("tiny")),
        ("route", json!("local")),
        ("seed", json!(7)),
        ("tokens_max", json!(9)),
        ("choices", json!(2)),
        ("prompt_tokens", answer["usage"]["prompt_tokens"].clone()),
        (
            "completion_tokens",
            answer["usage"]["completion_tokens"].clone(),
        ),
    ] {
        assert_eq!(first[field], value, "{field} of {first}");
    }
    assert_eq!(first["sampler"]["temperature"], 0.5);
    for field in ["queue_us", "first_token_us", "total_us"] {
        assert!(first[field].is_u64(), "{field} of {first}");
    }
    assert!(["stop", "length"].contains(&first["outcome"].as_str().unwrap()));
    assert_eq!(
        all[1]["schema_sha256"],
        sha256(shape.to_string().as_bytes())
    );
    // A model that is served by its path has no digests.
    assert!(first.get("weights_sha256").is_none());
    for (field, value) in [
        ("task", json!("explain")),
        ("client", json!("plc1")),
        ("origin", json!("mqtt")),
        ("priority", json!("alarm")),
        ("request_id", json!("17")),
    ] {
        assert_eq!(all[2][field], value, "{field} of {}", all[2]);
    }
    assert!(all[2].get("uid").is_none());

    // Who has the key can show what was said.
    let mac = Mac::new(&fs::read(dir.join("key")).unwrap());
    let of = |bytes: &[u8]| {
        let mut digest = mac.begin();
        digest.add(bytes);
        digest.hex()
    };
    let answers = answer["choices"].as_array().unwrap();
    let answers: Vec<String> = answers
        .iter()
        .map(|choice| of(choice["text"].as_str().unwrap().as_bytes()))
        .collect();
    assert_eq!(first["answer_hmac"], json!(answers));
    let tokens = daemon
        .http()
        .post(
            "/tokenize",
            &json!({ "content": prompt, "add_special": true, "parse_special": true }),
        )
        .unwrap()
        .json()
        .unwrap();
    let tokens = tokens["tokens"].as_array().unwrap();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|id| u32::try_from(id.as_u64().unwrap()).unwrap().to_le_bytes())
        .collect();
    assert_eq!(first["prompt_hmac"], of(&bytes));
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains(prompt) && !text.contains("E42"), "{text}");

    // A line that a power cut has torn goes, and the stream goes on.
    daemon.kill().unwrap();
    let file = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some())
        .unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{whole}{{\"v\":1,\"time\":\"20")).unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    ask(&daemon, &json!({ "prompt": "y", "max_tokens": 1 }));
    assert_eq!(records(&dir, 4).len(), 4);
    assert!((sum(&daemon, "andon_audit_records_total", "") - 1.0).abs() < 0.5);
}

#[test]
fn a_record_names_the_weights_of_a_model_that_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("audit");
    let daemon = Daemon::builder()
        .kept("helper")
        .config(&config(&dir, ""))
        .start()
        .unwrap();
    let weights = TinyModel::default().bytes();
    fs::write(daemon.folder().join("helper.gguf"), &weights).unwrap();
    good(&andonctl(&daemon, &["model", "add", "helper.gguf"]));
    let start = Instant::now();
    while daemon.http().get("/readyz").unwrap().status != 200 {
        assert!(start.elapsed() < TIMEOUT, "it is never served");
        thread::sleep(Duration::from_millis(20));
    }
    ask(&daemon, &json!({ "prompt": "x", "max_tokens": 1 }));
    let all = records(&dir, 1);
    assert_eq!(all[0]["model"], "helper");
    assert_eq!(all[0]["weights_sha256"], json!([sha256(&weights)]));
}

#[test]
fn a_request_that_fails_is_recorded_with_its_fault() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("audit");
    let daemon = Daemon::builder().config(&config(&dir, "")).start().unwrap();
    let body = json!({ "prompt": "x ".repeat(4000), "max_tokens": 1 });
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    assert_eq!(reply.status, 400, "{}", reply.text());
    let all = records(&dir, 1);
    assert_eq!(all[0]["outcome"], "context_full", "{}", all[0]);
    assert!(all[0].get("answer_hmac").is_none());
}

#[test]
fn where_records_are_required_a_full_disk_refuses_requests_and_loses_none() {
    let Some(mount) = Mount::make("size=256k") else {
        eprintln!("skipped: nothing may be mounted here");
        return;
    };
    let dir = mount.path().join("audit");
    for required in [true, false] {
        let more = format!("required = {required}\n");
        let daemon = Daemon::builder()
            .config(&config(&dir, &more))
            .start()
            .unwrap();
        let body = json!({ "prompt": "x", "max_tokens": 1 });
        let mut answered = 1;
        ask(&daemon, &body);
        records(&dir, answered);
        let fill = mount.path().join("fill");
        assert!(fs::write(&fill, vec![0; 1 << 20]).is_err(), "it is full");
        let start = Instant::now();
        let failing = || sum(&daemon, "andon_audit_failing", "") > 0.5;
        // What is left of the last page takes a few.
        while !failing() {
            let reply = daemon.http().post("/v1/completions", &body).unwrap();
            // It may fail between the look and the request.
            let refused = required && reply.status == 503;
            assert!(refused || reply.status == 200, "{}", reply.text());
            answered += usize::from(!refused);
            assert!(start.elapsed() < TIMEOUT, "the disk is never full");
        }
        let reply = daemon.http().post("/v1/completions", &body).unwrap();
        if required {
            assert_eq!(reply.status, 503, "{}", reply.text());
            assert!(reply.text().contains("audit record"), "{}", reply.text());
        } else {
            assert_eq!(reply.status, 200, "{}", reply.text());
            answered += 1;
        }
        assert!(daemon.log().contains("audit records cannot be written"));
        fs::remove_file(&fill).unwrap();
        while failing() {
            assert!(start.elapsed() < TIMEOUT, "it never works again");
            thread::sleep(Duration::from_millis(20));
        }
        ask(&daemon, &body);
        answered += 1;
        assert_eq!(records(&dir, answered).len(), answered);
        assert!(sum(&daemon, "andon_audit_lost_total", "").abs() < 0.5);
        drop(daemon);
        fs::remove_dir_all(&dir).unwrap();
    }
}
