//! Sockets that the service manager listens on: served from the first client on, left alone at the end, and no others.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::{Daemon, READY_TIMEOUT, SOCKETS};
use serde_json::json;

use crate::ctl::{andonctl, good};

/// Exit status of a configuration that only a person can mend.
const CONFIGURATION: i32 = 78;

/// More than any stop in a debug build on a busy machine takes.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether the program is there that listens and becomes the daemon; a test without it says so and ends.
fn can_activate() -> bool {
    let found = Command::new("systemd-socket-activate")
        .arg("--version")
        .output();
    if found.is_err() {
        eprintln!("skipped: there is no systemd-socket-activate here (Debian: systemd)");
    }
    found.is_ok()
}

/// Waits until somebody listens on the HTTP socket.
fn listened_on(daemon: &mut Daemon) {
    let began = Instant::now();
    while !daemon.http_socket().exists() {
        assert!(began.elapsed() < READY_TIMEOUT, "{}", daemon.log());
        assert!(daemon.is_running(), "{}", daemon.log());
        thread::sleep(Duration::from_millis(5));
    }
}

fn complete(daemon: &Daemon) {
    let body = json!({ "prompt": "The machine", "max_tokens": 4, "temperature": 0 });
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn the_first_client_starts_it_and_both_sockets_are_served() {
    if !can_activate() {
        return;
    }
    let mut daemon = Daemon::builder().activated(&SOCKETS).spawn().unwrap();
    listened_on(&mut daemon);
    let asked = Instant::now();
    let reply = daemon.http().get("/healthz").unwrap();
    println!(
        "first byte {} ms after the connection that started the daemon",
        asked.elapsed().as_millis()
    );
    assert_eq!(reply.status, 200, "{}", reply.text());
    daemon.wait_ready().unwrap();
    complete(&daemon);
    good(&andonctl(&daemon, &["status"]));
    daemon.terminate().unwrap();
    assert!(daemon.wait(STOP_TIMEOUT).unwrap().success());
    // They are the manager's, which goes on listening.
    for name in SOCKETS {
        assert!(daemon.folder().join(name).exists(), "{name}");
    }
}

#[test]
fn what_was_not_passed_is_listened_on_all_the_same() {
    if !can_activate() {
        return;
    }
    let mut daemon = Daemon::builder().activated(&SOCKETS[..1]).spawn().unwrap();
    listened_on(&mut daemon);
    assert_eq!(daemon.http().get("/healthz").unwrap().status, 200);
    daemon.wait_ready().unwrap();
    good(&andonctl(&daemon, &["status"]));
    daemon.terminate().unwrap();
    assert!(daemon.wait(STOP_TIMEOUT).unwrap().success());
    assert!(daemon.http_socket().exists() && !daemon.wire_socket().exists());
}

#[test]
fn a_socket_that_the_configuration_does_not_name_is_the_operators_mistake() {
    if !can_activate() {
        return;
    }
    let refused = |names: &[&str], config: &str, why: &str| {
        let mut daemon = Daemon::builder()
            .activated(names)
            .config(config)
            .spawn()
            .unwrap();
        listened_on(&mut daemon);
        // Whoever comes is not answered.
        assert!(daemon.http().get("/healthz").is_err());
        let status = daemon.wait(STOP_TIMEOUT).unwrap();
        assert_eq!(status.code(), Some(CONFIGURATION), "{}", daemon.log());
        let said = daemon.log();
        assert!(said.contains(why), "no word of {why} in\n{said}");
    };
    refused(
        &[SOCKETS[0], SOCKETS[1], "other.sock"],
        "",
        "other.sock, which the configuration does not name",
    );
    refused(
        &SOCKETS,
        "[wire]\nenabled = false\n",
        "wire.sock, which the configuration does not name",
    );
}

#[test]
fn who_comes_while_it_is_away_is_served_by_the_next_start() {
    let mut daemon = Daemon::builder().held().start().unwrap();
    complete(&daemon);
    for _ in 0..2 {
        daemon.kill().unwrap();
        let client = daemon.http();
        let early = thread::spawn(move || client.get("/healthz").unwrap().status);
        // Nobody is there to answer, or to refuse it.
        thread::sleep(Duration::from_millis(100));
        assert!(!early.is_finished());
        daemon.relaunch(&[]).unwrap();
        daemon.wait_ready().unwrap();
        assert_eq!(early.join().unwrap(), 200);
        complete(&daemon);
    }
}
