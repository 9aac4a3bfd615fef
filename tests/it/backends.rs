//! What computes, on a machine without an accelerator: it is told, and nothing is computed by something else in silence.

use std::process::Command;
use std::time::Duration;

use andon_tests::daemon::Daemon;
use andon_tests::programs;
use serde_json::Value;

use crate::ctl::{andonctl, bad, good};

/// The configuration is at fault.
const CONFIGURATION: i32 = 78;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Where it is nothing, the driver hides the cards that the machine may have.
const CARDS: &str = "CUDA_VISIBLE_DEVICES";

fn no_cards() -> Vec<String> {
    vec!["env".to_owned(), format!("{CARDS}=")]
}

/// What is said of each backend, by its name.
fn backends(daemon: &Daemon) -> Value {
    let said = good(&andonctl(daemon, &["backends", "--json"]));
    serde_json::from_str(&said).unwrap()
}

fn of<'a>(said: &'a Value, name: &str) -> &'a Value {
    let all = said["backends"].as_array().unwrap();
    let found = all.iter().find(|backend| backend["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {said}"))
}

#[test]
fn every_backend_is_told_of_with_the_reason_why_it_is_not_used() {
    let daemon = Daemon::builder().before(no_cards()).start().unwrap();
    let said = backends(&daemon);
    let cpu = of(&said, "cpu");
    assert_eq!(
        (&cpu["built"], &cpu["available"], &cpu["chosen"]),
        (&true.into(), &true.into(), &true.into())
    );
    assert!(
        !cpu["device"].as_str().unwrap().is_empty() && cpu["reason"] == "",
        "{cpu}"
    );
    for name in ["cuda", "openvino", "ggml"] {
        let other = of(&said, name);
        assert_eq!(
            (&other["available"], &other["chosen"]),
            (&false.into(), &false.into()),
            "{other}"
        );
        assert!(!other["reason"].as_str().unwrap().is_empty(), "{other}");
    }
    assert_eq!(of(&said, "openvino")["built"], false);
    let text = good(&andonctl(&daemon, &["backends"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("cpu       chosen "), "{text}");
    assert!(lines[1].starts_with("cuda      not "), "{text}");
    let metrics = daemon.http().get("/metrics").unwrap().text();
    assert!(
        metrics.contains("andon_backend_models{backend=\"cpu\"} 1"),
        "{metrics}"
    );
}

#[test]
fn the_processor_alone_looks_for_no_device() {
    let daemon = Daemon::builder()
        .config("[engine]\nbackend = 'cpu'\n")
        .start()
        .unwrap();
    let said = backends(&daemon);
    assert_eq!(of(&said, "cpu")["chosen"], true);
    let cuda = of(&said, "cuda");
    if cuda["built"] == true {
        assert!(
            cuda["reason"]
                .as_str()
                .unwrap()
                .contains("[engine] backend is \"cpu\""),
            "{cuda}"
        );
    }
}

#[test]
fn a_device_that_is_asked_for_and_missing_ends_the_start() {
    let mut daemon = Daemon::builder()
        .config("[engine]\nbackend = 'cuda'\n")
        .before(no_cards())
        .spawn()
        .unwrap();
    let status = daemon.wait(TIMEOUT).unwrap();
    let log = daemon.log();
    assert_eq!(status.code(), Some(CONFIGURATION), "{log}");
    let why = "engine.backend: cuda is asked for and cannot be used: ";
    assert!(log.contains(why), "{log}");
    let check = Command::new(programs::folder().unwrap().join("andond"))
        .arg("--config")
        .arg(daemon.folder().join("andond.toml"))
        .arg("check")
        .env(CARDS, "")
        .output()
        .unwrap();
    bad(
        &check,
        CONFIGURATION,
        "cuda is asked for and cannot be used: ",
    );
}

#[test]
fn a_backend_that_there_is_not_is_a_problem_of_the_configuration() {
    let mut daemon = Daemon::builder()
        .config("[engine]\nbackend = 'tpu'\n")
        .spawn()
        .unwrap();
    assert_eq!(daemon.wait(TIMEOUT).unwrap().code(), Some(CONFIGURATION));
    let log = daemon.log();
    assert!(
        log.contains("tpu") && log.contains("`auto`") && log.contains("`cuda`"),
        "{log}"
    );
}
