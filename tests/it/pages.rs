//! What is kept of prompts on the disk: after a restart only what is new is computed, and nothing that is wrong with the disk
//! changes an answer.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

use crate::ctl::{andonctl, good};
use crate::metrics::metric;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A task whose instructions take several pages, each character being a token of the tiny model.
fn task() -> String {
    let instructions = "Say what the code means and what is to be done. ".repeat(8);
    format!(
        "[task.explain]\ninstructions = \"{instructions}{{{{ code }}}}\"\ntokens-max = 8\ntemperature = 0\n"
    )
}

fn daemon(folder: &Path, config: &str) -> Daemon {
    let path = folder.join("model.gguf");
    let tiny = TinyModel {
        context_tokens_max: 2048,
        ..TinyModel::default()
    };
    tiny.write(&path).unwrap();
    let config = format!("{}{config}", task());
    Daemon::builder()
        .model(&path)
        .config(&config)
        .start()
        .unwrap()
}

fn explain(daemon: &Daemon, code: &str) -> String {
    let input = format!("{{\"code\": \"{code}\"}}");
    good(&andonctl(
        daemon,
        &["ask", "--task", "explain", "--input", &input],
    ))
}

/// The answer, the tokens of the prompt that were not computed, and all of its tokens.
fn chat(daemon: &Daemon, text: &str) -> (String, u64, u64) {
    let body = json!({
        "messages": [{ "role": "user", "content": text }], "max_tokens": 8, "temperature": 0,
    });
    let reply = daemon.http().post("/v1/chat/completions", &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply: Value = reply.json().unwrap();
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    let usage = &reply["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    let prompt = usage["prompt_tokens"].as_u64();
    (text.to_owned(), cached.unwrap(), prompt.unwrap())
}

fn wait_for(daemon: &Daemon, name: &str, is_met: impl Fn(u64) -> bool) -> u64 {
    let began = Instant::now();
    loop {
        let value = metric::<u64>(daemon, name);
        if is_met(value) {
            return value;
        }
        assert!(began.elapsed() < TIMEOUT, "{name} is {value}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn pages_of(daemon: &Daemon) -> PathBuf {
    daemon.folder().join("cache/pages")
}

/// Asks twice, so that the beginning of the task is found again, and waits until that is on the disk; returns its pages.
fn keep(daemon: &Daemon) -> u64 {
    let before: u64 = metric(daemon, "andon_cached_tokens_total");
    explain(daemon, "E41");
    assert_eq!(metric::<u64>(daemon, "andon_cached_tokens_total"), before);
    explain(daemon, "E42");
    let pages = (metric::<u64>(daemon, "andon_cached_tokens_total") - before) / 64;
    assert!(pages > 1, "{pages}");
    wait_for(daemon, "andon_kv_kept_pages", |kept| kept == pages)
}

#[test]
fn after_a_restart_the_beginning_of_a_task_is_not_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = daemon(folder.path(), "");
    let pages = keep(&daemon);
    let expected = explain(&daemon, "E43");
    let mode = fs::metadata(pages_of(&daemon))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    // As a power cut would.
    daemon.restart().unwrap();
    wait_for(&daemon, "andon_kv_restored_pages_total", |read| {
        read == pages
    });
    assert_eq!(metric::<u64>(&daemon, "andon_cached_tokens_total"), 0);
    assert_eq!(explain(&daemon, "E43"), expected);
    assert_eq!(
        metric::<u64>(&daemon, "andon_cached_tokens_total"),
        pages * 64
    );
    // With everything damaged it is computed, and written anew.
    for file in fs::read_dir(pages_of(&daemon)).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    }
    daemon.restart().unwrap();
    wait_for(&daemon, "andon_kv_damaged_pages_total", |pages| pages > 0);
    assert_eq!(explain(&daemon, "E43"), expected);
    let log = daemon.log();
    assert!(log.contains("is removed and computed again"), "{log}");
}

#[test]
fn what_is_remembered_when_the_daemon_stops_is_there_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = daemon(folder.path(), "");
    let text = "The belt of line two stops. ".repeat(9);
    let (expected, cached, prompt) = chat(&daemon, &text);
    assert!(cached == 0 && prompt > 65, "{cached} of {prompt}");
    daemon.terminate().unwrap();
    assert!(daemon.wait(TIMEOUT).unwrap().success());
    daemon.restart().unwrap();
    let (again, cached, _) = chat(&daemon, &text);
    assert_eq!(again, expected);
    assert_eq!(cached, (prompt - 1) / 64 * 64);
}

#[test]
fn what_is_kept_is_shown_and_erased() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = daemon(folder.path(), "");
    let pages = keep(&daemon);
    let expected = explain(&daemon, "E43");
    let shown = good(&andonctl(&daemon, &["kv", "show", "--json"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["pages"], pages, "{shown}");
    assert!(shown["bytes"].as_u64().unwrap() > 0, "{shown}");
    let erased = good(&andonctl(&daemon, &["kv", "erase"]));
    assert_eq!(erased, format!("{pages} erased\n"));
    assert_eq!(
        good(&andonctl(&daemon, &["kv", "show"])),
        "0 pages, 0 bytes\n"
    );
    assert!(fs::read_dir(pages_of(&daemon)).unwrap().next().is_none());
    // In memory there is nothing either: it is as at the beginning.
    assert_eq!(keep(&daemon), pages);
    // Also by a daemon that keeps nothing.
    let path = daemon.folder().join("andond.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("[cache]", "[cache]\nkv-keep = false")).unwrap();
    daemon.restart().unwrap();
    assert_eq!(explain(&daemon, "E43"), expected);
    assert_eq!(metric::<u64>(&daemon, "andon_cached_tokens_total"), 0);
    assert_eq!(good(&andonctl(&daemon, &["kv", "erase"])), erased);
    assert!(fs::read_dir(pages_of(&daemon)).unwrap().next().is_none());
}

#[test]
fn a_disk_that_takes_nothing_costs_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let full = "[cache]\nfree-bytes-min = 1099511627776\n";
    let blocked = "[cache]\ndir = '/proc/andon'\n";
    let expected = explain(&daemon(folder.path(), "[cache]\nkv-keep = false\n"), "E41");
    for (config, says) in [
        (full, "is not written"),
        (blocked, "nothing is kept of prompts"),
    ] {
        let mut daemon = daemon(folder.path(), config);
        for _ in 0..2 {
            assert_eq!(explain(&daemon, "E41"), expected);
        }
        let began = Instant::now();
        while !daemon.log().contains(says) {
            assert!(began.elapsed() < TIMEOUT, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(explain(&daemon, "E41"), expected);
        assert_eq!(
            good(&andonctl(&daemon, &["kv", "show"])),
            "0 pages, 0 bytes\n"
        );
        daemon.terminate().unwrap();
        assert!(daemon.wait(TIMEOUT).unwrap().success());
        let count = daemon.log().matches(says).count();
        assert_eq!(count, 1, "{}", daemon.log());
    }
}
