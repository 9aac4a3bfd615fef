//! The whole daemon with the emulated card.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use andon_cuda_check::daemon::Daemon as Measured;
use andon_cuda_check::figures::Figures;
use andon_cuda_check::synthetic::Shape;
use andon_tests::daemon::{Builder, Daemon};
use andon_tests::programs;
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

use crate::card::{driver, environment};

/// The emulation takes its time.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The device failed, by the driver's number.
const ILLEGAL_ADDRESS: &str = "700";

/// A daemon with a model whose heads there are kernels for, on the card of `driver` with these variables.
fn with_card(driver: &Path, folder: &Path, backend: &str, variables: &[(&str, &str)]) -> Builder {
    let path = folder.join("model.gguf");
    TinyModel {
        embedding: 64,
        feed_forward: 64,
        head_count: 2,
        head_count_kv: 1,
        head_dim: Some(64),
        ..TinyModel::default()
    }
    .write(&path)
    .unwrap();
    let (name, value) = environment(driver);
    let mut words = vec![
        "env".to_owned(),
        format!("{name}={}", value.to_string_lossy()),
    ];
    words.extend(
        variables
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    // The emulated driver is nowhere that the sandbox knows; calls are confined as for a real one.
    let config = format!(
        "[engine]\nbackend = '{backend}'\nbatch-tokens-max = 64\nparallel-max = 2\n[model]\nkv-tokens-max = 512\n\
         [sandbox]\nlandlock = 'off'\n"
    );
    Daemon::builder().model(&path).config(&config).before(words)
}

fn ask(daemon: &Daemon, tokens: u32) -> String {
    let body = json!({ "prompt": "The machine", "max_tokens": tokens, "temperature": 0 });
    let answer = daemon
        .http()
        .post("/v1/completions", &body)
        .unwrap()
        .json()
        .unwrap();
    let text = answer["choices"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn ctl(daemon: &Daemon, arguments: &[&str]) -> Value {
    let output = Command::new(programs::folder().unwrap().join("andonctl"))
        .arg("--socket")
        .arg(daemon.wire_socket())
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is said of a backend.
fn backend(daemon: &Daemon, name: &str) -> Value {
    let said = ctl(daemon, &["backends", "--json"]);
    let all = said["backends"].as_array().unwrap();
    all.iter().find(|one| one["name"] == name).unwrap().clone()
}

#[test]
fn answers_are_those_of_the_processor() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let start = |backend| {
        with_card(&driver, folder.path(), backend, &[])
            .start()
            .unwrap()
    };
    let expected = ask(&start("cpu"), 24);
    let daemon = start("cuda");
    let cuda = backend(&daemon, "cuda");
    assert_eq!(
        (&cuda["available"], &cuda["chosen"]),
        (&true.into(), &true.into()),
        "{cuda}"
    );
    assert_eq!(backend(&daemon, "cpu")["chosen"], false);
    assert_eq!(ctl(&daemon, &["status", "--json"])["model"]["isa"], "cuda");
    assert_eq!(ask(&daemon, 24), expected);
    // The prompt's pages are remembered by now.
    assert_eq!(ask(&daemon, 24), expected);
    let metrics = daemon.http().get("/metrics").unwrap().text();
    assert!(
        metrics.contains("andon_backend_models{backend=\"cuda\"} 1"),
        "{metrics}"
    );
}

/// Waits until a card computes, or does not for good.
fn chosen(daemon: &Daemon) -> Value {
    let began = Instant::now();
    loop {
        let cuda = backend(daemon, "cuda");
        let reason = cuda["reason"].as_str().unwrap_or_default();
        if !reason.contains("on their way") && !reason.contains("next pass") {
            return cuda;
        }
        assert!(began.elapsed() < TIMEOUT, "{cuda}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_processor_serves_until_the_card_has_the_weights() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let plain = with_card(&driver, folder.path(), "cpu", &[])
        .start()
        .unwrap();
    let (expected, short) = (ask(&plain, 200), ask(&plain, 30));
    // Its file is written anew.
    drop(plain);
    let slow = [("ANDON_EMULATED_PACK_MS", "60")];
    let daemon = with_card(&driver, folder.path(), "auto", &slow)
        .start()
        .unwrap();
    let cuda = backend(&daemon, "cuda");
    let reason = cuda["reason"].as_str().unwrap();
    assert!(
        cuda["chosen"] == false && reason.contains("on their way"),
        "{cuda}"
    );
    assert_eq!(backend(&daemon, "cpu")["chosen"], true);
    let metrics = daemon.http().get("/metrics").unwrap().text();
    assert!(
        metrics.contains("andon_backend_models{backend=\"cpu\"} 1"),
        "{metrics}"
    );
    // One after the other: one of them is under way as the card takes over.
    while backend(&daemon, "cuda")["chosen"] == false {
        assert_eq!(ask(&daemon, 200), expected);
    }
    assert_eq!(ask(&daemon, 30), short);
    assert_eq!(ctl(&daemon, &["status", "--json"])["model"]["isa"], "cuda");
    let metrics = daemon.http().get("/metrics").unwrap().text();
    for sample in [
        "andon_backend_models{backend=\"cpu\"} 0",
        "andon_backend_models{backend=\"cuda\"} 1",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in {metrics}");
    }
    let log = daemon.log();
    assert!(log.contains("computes from now on"), "{log}");
}

#[test]
fn however_much_room_a_card_has_the_model_is_served() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let plain = with_card(&driver, folder.path(), "cpu", &[])
        .start()
        .unwrap();
    let expected = ask(&plain, 8);
    drop(plain);
    let mut seen = [false; 2];
    for kilobytes in [1, 400, 800, 1600, 3200, 6400, 12_800, 25_600] {
        let bytes = (kilobytes << 10).to_string();
        let daemon = with_card(
            &driver,
            folder.path(),
            "auto",
            &[("ANDON_EMULATED_MEMORY", &bytes)],
        )
        .start()
        .unwrap();
        let cuda = chosen(&daemon);
        let computes = cuda["chosen"] == true;
        seen[usize::from(computes)] = true;
        let reason = cuda["reason"].as_str().unwrap_or_default();
        assert!(computes || reason.contains("no room"), "{cuda}");
        assert_eq!(ask(&daemon, 8), expected, "{kilobytes}");
    }
    assert_eq!(seen, [true, true]);
    // What there seems to be room for may still be refused.
    let daemon = with_card(
        &driver,
        folder.path(),
        "auto",
        &[("ANDON_EMULATED_CRAMPED", "1")],
    )
    .start()
    .unwrap();
    let cuda = chosen(&daemon);
    let reason = cuda["reason"].as_str().unwrap();
    assert!(reason.contains("no room for"), "{cuda}");
    assert_eq!(ask(&daemon, 8), expected);
}

#[test]
fn a_model_that_is_being_uploaded_ends_at_once() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let slow = [("ANDON_EMULATED_PACK_MS", "2000")];
    let mut daemon = with_card(&driver, folder.path(), "auto", &slow)
        .start()
        .unwrap();
    let reason = backend(&daemon, "cuda")["reason"].to_string();
    assert!(reason.contains("on their way"), "{reason}");
    let began = Instant::now();
    daemon.terminate().unwrap();
    daemon.wait(TIMEOUT).unwrap();
    // All of it takes longer: there are more matrices.
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_card_without_room_is_passed_over_or_ends_the_start() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let small = [("ANDON_EMULATED_MEMORY", "100000")];
    let daemon = with_card(&driver, folder.path(), "auto", &small)
        .start()
        .unwrap();
    let cuda = backend(&daemon, "cuda");
    assert_eq!(
        (&cuda["available"], &cuda["chosen"]),
        (&true.into(), &false.into()),
        "{cuda}"
    );
    assert!(
        cuda["reason"].as_str().unwrap().contains("no room"),
        "{cuda}"
    );
    assert!(!ask(&daemon, 4).is_empty());
    let mut refused = with_card(&driver, folder.path(), "cuda", &small)
        .spawn()
        .unwrap();
    let status = refused.wait(TIMEOUT).unwrap();
    let log = refused.log();
    assert!(
        !status.success() && log.contains("the device has no room"),
        "{status}: {log}"
    );
}

#[test]
fn a_card_that_is_too_old_is_named() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let old = [("ANDON_EMULATED_CAPABILITY", "75")];
    let mut daemon = with_card(&driver, folder.path(), "cuda", &old)
        .spawn()
        .unwrap();
    assert_eq!(daemon.wait(TIMEOUT).unwrap().code(), Some(78));
    assert!(
        daemon.log().contains("compute capability 7.5"),
        "{}",
        daemon.log()
    );
}

/// Launches after which the card fails: more than trying the model takes, fewer than the answer.
const LAUNCHES: [(&str, &str); 2] = [
    ("ANDON_EMULATED_LAUNCHES", "1400"),
    ("ANDON_EMULATED_ERROR", ILLEGAL_ADDRESS),
];

#[test]
fn the_processor_goes_on_with_the_same_words_where_the_card_fails() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let plain = with_card(&driver, folder.path(), "cpu", &[])
        .start()
        .unwrap();
    let expected = ask(&plain, 100);
    let daemon = with_card(&driver, folder.path(), "cuda", &LAUNCHES)
        .start()
        .unwrap();
    assert_eq!(backend(&daemon, "cuda")["chosen"], true);
    assert_eq!(ask(&daemon, 100), expected);
    let cuda = backend(&daemon, "cuda");
    assert_eq!(cuda["chosen"], false, "{cuda}");
    assert_eq!(backend(&daemon, "cpu")["chosen"], true);
    let status = ctl(&daemon, &["status", "--json"]);
    let degraded = status["degraded"].as_array().unwrap();
    assert!(degraded.contains(&"backend_lost".into()), "{status}");
    let metrics = daemon.http().get("/metrics").unwrap().text();
    for sample in [
        "andon_backend_models{backend=\"cpu\"} 1",
        "andon_backend_models{backend=\"cuda\"} 0",
        "andon_backend_losses_total 1",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in {metrics}");
    }
    assert_eq!(ask(&daemon, 100), expected);
    assert!(
        daemon.log().contains("the device that computed failed"),
        "{}",
        daemon.log()
    );
}

#[test]
fn without_a_fallback_requests_fail_by_name() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let daemon = with_card(&driver, folder.path(), "cuda", &LAUNCHES)
        .config("[engine]\nbackend-fallback = false\n")
        .start()
        .unwrap();
    let body = json!({ "prompt": "The machine", "max_tokens": 100, "temperature": 0 });
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    assert!(reply.status >= 500, "{}", reply.status);
    let text = reply.text();
    assert!(text.contains("the device"), "{text}");
}

#[test]
fn a_card_that_fails_while_the_model_is_tried_is_told_before_anybody_asks() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    // Fewer launches fail in the comparison, after which nobody means to use the card. A pass is more than a step of these.
    for launches in (100..1400).step_by(20) {
        let launches = launches.to_string();
        let variables = [("ANDON_EMULATED_LAUNCHES", launches.as_str()), LAUNCHES[1]];
        // One that is not up to it ends the start.
        let Ok(daemon) = with_card(&driver, folder.path(), "cuda", &variables).start() else {
            continue;
        };
        let cuda = backend(&daemon, "cuda");
        assert_eq!(cuda["chosen"], false, "{launches}: {cuda}");
        let status = ctl(&daemon, &["status", "--json"]);
        let degraded = status["degraded"].as_array().unwrap();
        if degraded.contains(&"backend_lost".into()) {
            let log = daemon.log();
            assert!(log.contains("the device that computed failed"), "{log}");
            let metrics = daemon.http().get("/metrics").unwrap().text();
            let sample = "andon_backend_models{backend=\"cuda\"} 0";
            assert!(metrics.contains(sample), "{metrics}");
            return;
        }
    }
    panic!("the comparison never ended");
}

#[test]
fn the_processor_serves_where_there_is_memory_for_it_and_not_for_copies() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let start = |budget: u64| {
        let integrated = [("ANDON_EMULATED_INTEGRATED", "1")];
        let config = format!("[memory]\nbudget-bytes = {budget}\n[model]\nkv-tokens-max = 65536\n");
        with_card(&driver, folder.path(), "auto", &integrated)
            .config(&config)
            .start()
    };
    let (mut refused, mut served) = (16 << 20, 1 << 28);
    assert!(start(refused).is_err(), "the cache alone takes more");
    let copied = start(served).unwrap();
    assert_eq!(backend(&copied, "cuda")["chosen"], true);
    let metrics = copied.http().get("/metrics").unwrap().text();
    // The file is there once, as copies of the card's; it is not in the daemon's memory beside these.
    let bytes = |part: &str| {
        let name = format!("andon_memory_max_bytes{{part=\"{part}\"}} ");
        let mut values = metrics.lines().filter_map(|line| line.strip_prefix(&name));
        let value = values.next().unwrap_or_else(|| panic!("{metrics}"));
        value.parse::<u64>().unwrap()
    };
    assert!(bytes("device") > bytes("kv_cache"));
    assert_eq!(bytes("weights"), 0);
    drop(copied);
    // The smallest budget that it is served with, nearer than the copies of the weights are large.
    while served - refused > 4 << 10 {
        let middle = u64::midpoint(refused, served);
        if start(middle).is_ok() {
            served = middle;
        } else {
            refused = middle;
        }
    }
    let daemon = start(served).unwrap();
    let cuda = backend(&daemon, "cuda");
    assert_eq!(cuda["chosen"], false, "{cuda}");
    let reason = cuda["reason"].as_str().unwrap();
    assert!(reason.contains("budget-bytes"), "{reason}");
    assert!(!ask(&daemon, 4).is_empty());
}

#[test]
fn what_clients_see_of_the_daemon_is_measured() {
    let Some(driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape::named("1b").unwrap().small();
    let model = shape.in_folder(folder.path()).unwrap();
    let andond = programs::folder().unwrap().join("andond");
    let figures = Figures::default();
    let measured = Measured {
        andond: &andond,
        model: &model,
        name: "small",
        environment: &[environment(&driver)],
        folder: &folder.path().join("daemon"),
        sizes: (12, 4),
        clients: 2,
        patience: TIMEOUT,
    };
    let said = measured.measure(&figures).unwrap();
    let figure = |name: &str| {
        let value = figures.get(&format!("daemon small: {name}"));
        value.unwrap_or_else(|| panic!("{name}: {said}"))
    };
    assert!(figure("served after") <= figure("on the card after"));
    for name in ["first token", "one client", "2 clients"] {
        assert!(figure(name) > 0.0, "{said}");
    }
}
