//! Start, stop, kill and restart, as the service manager sees them.

use std::fs;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use andon_tests::daemon::Daemon;
use andon_tests::programs;
use andon_tests::tiny_model::{TensorType, TinyModel};
use serde_json::{Value, json};

/// Exit status of a configuration that only a person can mend; the unit does not restart on it.
const CONFIGURATION: i32 = 78;

/// More than any stop in a debug build on a busy machine takes.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

fn complete(daemon: &Daemon, tokens: u32) -> Value {
    let body = json!({ "prompt": "The machine", "max_tokens": tokens, "temperature": 0 });
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json().unwrap()
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn terminate_ends_cleanly_and_removes_the_sockets() {
    let mut daemon = Daemon::builder().start().unwrap();
    complete(&daemon, 4);
    daemon.terminate().unwrap();
    let status = daemon.wait(STOP_TIMEOUT).unwrap();
    assert!(status.success(), "{status}");
    assert!(!daemon.http_socket().exists() && !daemon.wire_socket().exists());
}

#[test]
fn terminate_finishes_what_is_in_flight() {
    let mut daemon = Daemon::builder().start().unwrap();
    let expected = text(&complete(&daemon, 200));
    let body =
        json!({ "prompt": "The machine", "max_tokens": 200, "temperature": 0, "stream": true });
    let mut events = daemon.http().events("/v1/completions", &body).unwrap();
    let first = events.next().unwrap().unwrap();
    daemon.terminate().unwrap();
    let mut got = String::new();
    let mut done = false;
    for event in std::iter::once(first).chain(events.map(Result::unwrap)) {
        if event.data == "[DONE]" {
            done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(&event.data).unwrap();
        got.push_str(chunk["choices"][0]["text"].as_str().unwrap_or_default());
    }
    assert!(done, "the stream broke off after {got:?}");
    assert_eq!(got, expected);
    assert!(daemon.wait(STOP_TIMEOUT).unwrap().success());
}

#[test]
fn terminate_without_grace_says_so_to_the_client() {
    let mut daemon = Daemon::builder()
        .config("[gateway]\nshutdown-grace-ms = 0\n")
        .start()
        .unwrap();
    let body =
        json!({ "prompt": "The machine", "max_tokens": 480, "temperature": 0, "stream": true });
    let mut events = daemon.http().events("/v1/completions", &body).unwrap();
    events.next().unwrap().unwrap();
    daemon.terminate().unwrap();
    let rest: Vec<String> = events
        .map_while(Result::ok)
        .map(|event| event.data)
        .collect();
    let ended = rest
        .last()
        .is_some_and(|last| last == "[DONE]" || last.contains("\"error\""));
    assert!(ended, "the client was left without a word: {rest:?}");
    assert!(daemon.wait(STOP_TIMEOUT).unwrap().success());
}

#[test]
fn kill_and_restart_serves_again_the_same() {
    let mut daemon = Daemon::builder().start().unwrap();
    let expected = text(&complete(&daemon, 16));
    for _ in 0..2 {
        // In the middle of an answer; the stale sockets stay behind.
        let body = json!({ "prompt": "The machine", "max_tokens": 480, "stream": true });
        let mut events = daemon.http().events("/v1/completions", &body).unwrap();
        events.next().unwrap().unwrap();
        daemon.kill().unwrap();
        assert!(daemon.http_socket().exists());
        daemon.restart().unwrap();
        assert_eq!(text(&complete(&daemon, 16)), expected);
    }
}

#[test]
fn a_second_daemon_does_not_take_over_live_sockets() {
    let daemon = Daemon::builder().start().unwrap();
    let mut second = Command::new(programs::folder().unwrap().join("andond"))
        .arg("--config")
        .arg(daemon.folder().join("andond.toml"))
        .env_remove("NOTIFY_SOCKET")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut status = None;
    for _ in 0..600 {
        status = second.try_wait().unwrap();
        if status.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    drop(second.kill());
    second.wait().unwrap();
    assert!(status.is_some_and(|status| !status.success()), "{status:?}");
    complete(&daemon, 4);
}

#[test]
fn every_weight_type_is_served() {
    for weights in TensorType::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        // Wide enough for the largest block of any type.
        TinyModel {
            weights,
            embedding: 256,
            ..TinyModel::default()
        }
        .write(&path)
        .unwrap();
        let daemon = Daemon::builder().model(&path).start().unwrap();
        assert_eq!(
            complete(&daemon, 8)["usage"]["completion_tokens"],
            8,
            "{weights:?}"
        );
    }
}

#[test]
fn output_is_the_same_whatever_the_threads_and_instructions() {
    let run = |engine: &str| {
        text(&complete(
            &Daemon::builder().config(engine).start().unwrap(),
            64,
        ))
    };
    let expected = run("[engine]\nthreads = 1\nisa = 'scalar'\n");
    for engine in [
        "[engine]\n",
        "[engine]\nthreads = 2\n",
        "[engine]\nthreads = 3\nbatch-tokens-max = 8\nparallel-max = 4\n",
    ] {
        assert_eq!(run(engine), expected, "{engine}");
    }
}

/// Bytes of memory that no file is behind.
fn anonymous_bytes(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn private_memory_beside_weights_and_kv_is_bounded() {
    const MEGABYTE: u64 = 1_000_000;
    const KV_TOKENS: u64 = 2048;
    // SmolLM2-135M: 30 layers, keys and values of 3 heads of 64, two bytes each.
    const KV_BYTES: u64 = KV_TOKENS * 30 * 2 * 3 * 64 * 2;
    let Some(model) = programs::real_model() else {
        return;
    };
    let config = format!("[model]\nkv-tokens-max = {KV_TOKENS}\n");
    let daemon = Daemon::builder()
        .model(&model)
        .config(&config)
        .start()
        .unwrap();
    let ready = anonymous_bytes(daemon.pid());
    let prompt = "The machine stops when the guard is open. ".repeat(60);
    let body = json!({ "prompt": prompt, "max_tokens": 16, "temperature": 0 });
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                assert_eq!(
                    daemon.http().post("/v1/completions", &body).unwrap().status,
                    200
                );
            });
        }
    });
    let used = anonymous_bytes(daemon.pid());
    println!(
        "anonymous memory: {ready} bytes when ready, {used} after work, KV cache of {KV_BYTES}"
    );
    assert!(
        used <= 60 * MEGABYTE + KV_BYTES,
        "{used} bytes, {KV_BYTES} of them for the KV cache"
    );
}

fn andond(folder: &std::path::Path, config: &str, arguments: &[&str]) -> Output {
    let path = folder.join("andond.toml");
    fs::write(&path, config).unwrap();
    Command::new(programs::folder().unwrap().join("andond"))
        .args(arguments)
        .arg("--config")
        .arg(&path)
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap()
}

#[test]
fn every_mistake_in_the_configuration_is_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[model]\npath = 'x.gguf'\ncolour = 'red'\n[engine]\nthreads = 0\nisa = 5\n[nonsense]\na = 1\n";
    for arguments in [&["check"][..], &[]] {
        let output = andond(folder.path(), config, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(CONFIGURATION), "{said}");
        for key in ["model.colour", "engine.threads", "engine.isa", "nonsense"] {
            assert!(
                said.contains(key),
                "{arguments:?}: no word of {key} in\n{said}"
            );
        }
    }
}

#[test]
fn a_model_that_cannot_be_served_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let good = TinyModel::default().bytes();
    let cases: [(&str, Option<Vec<u8>>); 5] = [
        ("no file", None),
        ("empty", Some(Vec::new())),
        ("no GGUF", Some(b"#!/bin/sh\nexit 0\n".repeat(100))),
        ("cut short", Some(good[..good.len() / 2].to_vec())),
        (
            "a count out of bounds",
            Some([&good[..8], &u64::MAX.to_le_bytes(), &good[16..]].concat()),
        ),
    ];
    for (name, bytes) in cases {
        let model = folder.path().join("model.gguf");
        drop(fs::remove_file(&model));
        if let Some(bytes) = bytes {
            fs::write(&model, bytes).unwrap();
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "[model]\npath = '{}'\n[spool]\ndir = '{}'\n[http]\nsocket = '{}'\n[wire]\nsocket = '{}'\n",
            model.display(),
            at("spool"),
            at("http.sock"),
            at("wire.sock")
        );
        let output = andond(folder.path(), &config, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code().is_some_and(|code| code != 0),
            "{name}: {}\n{said}",
            output.status
        );
        assert!(said.contains("model.gguf"), "{name}: {said}");
    }
}
