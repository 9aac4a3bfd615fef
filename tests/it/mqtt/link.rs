//! The link to the broker: brokers of other makes and versions, that go away, come back, ask who it is, talk nonsense, hang.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, OldBroker, Watcher, client, config, succeed};
use andon_tests::broker_embedded::EmbeddedBroker;
use andon_tests::daemon::Daemon;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{V5, V311, daemon, is, ready, round_trip};

#[test]
fn brokers_that_speak_only_3_1_1_are_served() {
    let old = OldBroker::start().unwrap();
    let embedded = EmbeddedBroker::start().unwrap();
    for port in [old.port(), embedded.port_v311()] {
        let daemon = daemon(port, &config(port));
        let answers = Watcher::start(port, "andon/test/response/plc/#", V311).unwrap();
        let mut publish = client("mosquitto_pub", port);
        publish.args(["-V", V311, "-q", "1", "-t", "andon/test/request/plc"]);
        succeed(publish.args(["-m", r#"{"id":"1","prompt":"a","tokens_max":2}"#])).unwrap();
        let value = answers.wait_for(is("answer")).unwrap().json().unwrap();
        assert_eq!(value["id"], "1");
        assert!(daemon.log().contains("3.1.1"));
    }
}

#[test]
fn another_make_of_broker_serves_mqtt_5() {
    let broker = EmbeddedBroker::start().unwrap();
    let _daemon = daemon_at_embedded(broker);
    let answer = round_trip(
        broker.port(),
        "andon/test/request/plc1",
        r#"{"prompt":"a","tokens_max":2}"#,
        &["correlation-data", "42"],
        "%D|%p",
    );
    let (correlation, payload) = answer.split_once('|').unwrap();
    assert_eq!(correlation, "42");
    let value: Value = serde_json::from_str(payload).unwrap();
    assert_eq!(value["type"], "answer");
}

fn daemon_at_embedded(broker: EmbeddedBroker) -> Daemon {
    let status = Watcher::start(broker.port(), "andon/test/status", V5).unwrap();
    let daemon = Daemon::builder().config(&broker.config()).start().unwrap();
    ready(&status);
    daemon
}

#[test]
fn a_broker_that_comes_back_without_sessions_is_used_again() {
    let mut broker = Broker::start().unwrap();
    let _daemon = daemon(broker.port(), &broker.config());
    for round in 0..2 {
        broker.stop().unwrap();
        thread::sleep(Duration::from_millis(300));
        broker.start_again().unwrap();
        let status = broker.watch("andon/test/status", V5).unwrap();
        ready(&status);
        let answer = round_trip(
            broker.port(),
            "andon/test/request/plc1",
            &format!(r#"{{"id":"{round}","prompt":"a","tokens_max":2}}"#),
            &[],
            "%p",
        );
        let value: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(value["id"], round.to_string());
        assert_eq!(value["type"], "answer");
    }
}

#[test]
fn answers_that_are_ready_while_the_broker_is_away_are_delivered_later() {
    const REQUESTS: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    // A broker that keeps its sessions, so that no answer can go by its reader.
    let lines = format!(
        "persistence true\npersistence_location {}/",
        folder.path().display()
    );
    let mut broker = Broker::start_with(&lines).unwrap();
    let read = |port| {
        let session = ["-c", "-i", "reader"];
        Watcher::start_with(port, "andon/test/response/plc/#", V311, &session).unwrap()
    };
    let port = broker.port();
    let daemon = daemon(port, &broker.config());
    let before = read(port);
    for id in 0..REQUESTS {
        let payload = format!(r#"{{"id":"{id}","prompt":"a","tokens_max":400}}"#);
        broker.publish("andon/test/request/plc", &payload).unwrap();
    }
    let start = Instant::now();
    while broker
        .log()
        .matches("Received PUBACK from andon-test")
        .count()
        < REQUESTS
    {
        assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", daemon.log());
        thread::sleep(Duration::from_millis(5));
    }
    broker.terminate().unwrap();
    let mut ids = BTreeSet::new();
    // The broker is gone: what is left is on its way through the reader.
    while let Ok(seen) = before.next(Duration::from_secs(2)) {
        ids.insert(seen.topic);
    }
    drop(before);
    wait_for_log(&daemon, "not connected");
    broker.start_again().unwrap();
    let after = read(port);
    while ids.len() < REQUESTS {
        ids.insert(after.wait_for(is("answer")).unwrap().topic);
    }
}

#[test]
fn requests_wait_at_the_broker_for_a_gateway_that_is_away() {
    let broker = Broker::start().unwrap();
    let mut daemon = daemon(broker.port(), &broker.config());
    let answers = broker.watch("andon/test/response/plc/#", V311).unwrap();
    daemon.kill().unwrap();
    for id in 0..5 {
        let payload = format!(r#"{{"id":"{id}","prompt":"a","tokens_max":2}}"#);
        broker.publish("andon/test/request/plc", &payload).unwrap();
    }
    daemon.restart().unwrap();
    let mut ids: Vec<String> = (0..5)
        .map(|_| {
            let value = answers.wait_for(is("answer")).unwrap().json().unwrap();
            value["id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2", "3", "4"]);
}

#[test]
fn passwords_come_from_a_file_and_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let passwords = folder.path().join("passwords");
    fs::write(&passwords, "").unwrap();
    succeed(
        Command::new("mosquitto_passwd")
            .arg("-b")
            .arg(&passwords)
            .args(["andon", "right"]),
    )
    .unwrap();
    let broker = Broker::start_with(&format!(
        "allow_anonymous false\npassword_file {}",
        passwords.display()
    ))
    .unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "wrong\n").unwrap();
    let config = format!(
        "{}username = \"andon\"\npassword-file = \"{}\"\n",
        broker.config(),
        secret.display()
    );
    let daemon = Daemon::builder().config(&config).start().unwrap();
    wait_for_log(&daemon, "not connected");
    let start = Instant::now();
    fs::write(&secret, "right\n").unwrap();
    let mut ask = client("mosquitto_rr", broker.port());
    ask.args(["-u", "andon", "-P", "right", "-q", "1", "-W", "1"]);
    ask.args([
        "-t",
        "andon/test/request/plc1",
        "-e",
        "andon/test/response/plc1/rr",
    ]);
    ask.args(["-m", r#"{"id":"1","prompt":"a","tokens_max":1}"#]);
    // The same request until the daemon is there; it is one request however often it is sent.
    while succeed(&mut ask).is_err() {
        assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", daemon.log());
    }
    assert!(!daemon.log().contains("right"));
}

#[test]
fn a_broker_that_talks_nonsense_ends_nothing() {
    let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = door.local_addr().unwrap().port();
    let mut daemon = Daemon::builder().config(&config(port)).start().unwrap();
    let noise: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &[0x20, 0x02, 0x00],
        &[0x20, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x20, 0x03, 0x00, 0x00, 0x00, 0x30, 0xff, 0xff, 0xff, 0x7f],
        &[
            0x20, 0x03, 0x00, 0x00, 0x00, 0x40, 0x02, 0xff, 0xff, 0x62, 0x02, 0x00, 0x01,
        ],
        &[0xff; 64],
    ];
    for words in noise {
        let (mut guest, _) = door.accept().unwrap();
        drop(guest.write_all(words));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(daemon.is_running());
    assert_eq!(daemon.http().get("/healthz").unwrap().status, 200);
}

/// A certificate for `localhost` and its key, signed by an authority, all in `folder`; `false` without
/// openssl.
pub(crate) fn certificates(folder: &Path) -> bool {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(arguments.split(' '));
        succeed(&mut command)
    };
    if openssl("version").is_err() {
        eprintln!("skipped: openssl is not installed");
        return false;
    }
    fs::write(folder.join("names"), "subjectAltName=DNS:localhost").unwrap();
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for (name, subject) in [("ca", "authority"), ("other", "another")] {
        openssl(&format!(
            "{new} -x509 -days 2 -subj /CN={subject} -keyout {name}.key -out {name}.pem"
        ))
        .unwrap();
    }
    for name in ["broker", "gateway"] {
        openssl(&format!(
            "{new} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ))
        .unwrap();
        openssl(&format!(
            "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out {name}.pem"
        ))
        .unwrap();
    }
    true
}

#[test]
fn the_link_is_encrypted_and_both_ends_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    if !certificates(folder.path()) {
        return;
    }
    let broker = Broker::start_with(&format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        at("ca.pem"),
        at("broker.pem"),
        at("broker.key")
    ))
    .unwrap();
    let config = |host: &str, ca: &str| {
        let files = format!(
            "ca-file = \"{}\"\ncertificate-file = \"{}\"\nkey-file = \"{}\"\n",
            at(ca),
            at("gateway.pem"),
            at("gateway.key")
        );
        broker.config().replace("127.0.0.1", host) + "tls = true\n" + &files
    };
    let mut ask = client("mosquitto_rr", broker.port());
    ask.args([
        "-h",
        "localhost",
        "--cafile",
        &at("ca.pem"),
        "--cert",
        &at("gateway.pem"),
    ]);
    ask.args(["--key", &at("gateway.key"), "-q", "1", "-W", "1"]);
    ask.args([
        "-t",
        "andon/test/request/plc1",
        "-e",
        "andon/test/response/plc1/rr",
    ]);
    ask.args(["-m", r#"{"id":"1","prompt":"a","tokens_max":1}"#]);
    // The wrong name and the wrong authority.
    for (host, ca) in [("127.0.0.1", "ca.pem"), ("localhost", "other.pem")] {
        let daemon = Daemon::builder().config(&config(host, ca)).start().unwrap();
        wait_for_log(&daemon, "invalid peer certificate");
        assert!(succeed(&mut ask).is_err());
    }
    let daemon = Daemon::builder()
        .config(&config("localhost", "ca.pem"))
        .start()
        .unwrap();
    let start = Instant::now();
    // Until the daemon has subscribed, as above.
    let output = loop {
        match succeed(&mut ask) {
            Ok(output) => break output,
            Err(_) => assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", daemon.log()),
        }
    };
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"answer\""));
}

pub(super) fn wait_for_log(daemon: &Daemon, words: &str) {
    let start = Instant::now();
    while !daemon.log().contains(words) {
        assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_broker_that_hangs_is_given_up_and_used_again_when_it_moves() {
    let broker = Broker::start().unwrap();
    let daemon = daemon(broker.port(), &(broker.config() + "keep-alive-s = 5\n"));
    broker.signal(Signal::SIGSTOP).unwrap();
    wait_for_log(&daemon, "not connected");
    broker.signal(Signal::SIGCONT).unwrap();
    let payload = r#"{"id":"1","prompt":"a","tokens_max":1}"#;
    let answers = broker.watch("andon/test/response/plc/#", V311).unwrap();
    broker.publish("andon/test/request/plc", payload).unwrap();
    answers.wait_for(is("answer")).unwrap();
}

#[test]
fn a_message_too_large_is_refused_and_a_far_too_large_one_does_not_come_for_ever() {
    let old = OldBroker::start().unwrap();
    let daemon = daemon(old.port(), &(old.config() + "packet-bytes-max = 4096\n"));
    let broker = old.inside();
    let answers = broker.watch("andon/test/response/plc/#", V311).unwrap();
    let prompt = |bytes: usize| format!(r#"{{"id":"1","prompt":"{}"}}"#, "x".repeat(bytes));
    broker
        .publish("andon/test/request/plc", &prompt(8_000))
        .unwrap();
    let value = answers.wait_for(is("error")).unwrap().json().unwrap();
    assert_eq!(value["error"]["code"], "too_large");

    // Unread, it would come again with every connection of the same session.
    broker
        .publish("andon/test/request/plc", &prompt(80_000))
        .unwrap();
    wait_for_log(&daemon, "too large to read");
    let status = broker.watch("andon/test/status", V311).unwrap();
    ready(&status);
    let payload = r#"{"id":"2","prompt":"a","tokens_max":1}"#;
    let start = Instant::now();
    // The status may be an old one: ask until somebody is there.
    loop {
        assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", daemon.log());
        broker.publish("andon/test/request/plc", payload).unwrap();
        if answers.next(Duration::from_secs(1)).is_ok() {
            break;
        }
    }
}
