//! Certificates, passwords and the broker itself are replaced while the daemon answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, Watcher, client, free_port, succeed};
use andon_tests::daemon::Daemon;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::link::{certificates, wait_for_log};
use super::{V5, daemon, is};
use crate::ctl::{andonctl, bad, good};
use crate::metrics::metric;

/// Files are looked at every 15 s.
const FILES_SEEN: Duration = Duration::from_secs(60);

/// How often the daemon has connected.
fn connects(daemon: &Daemon) -> u64 {
    metric(daemon, "andon_mqtt_connects_total")
}

/// Waits until it has done so that often.
fn wait_for_connects(daemon: &Daemon, count: u64, patience: Duration) {
    let start = Instant::now();
    while connects(daemon) < count {
        assert!(start.elapsed() < patience, "{}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Asks at `port`.
fn ask(port: u16, id: &str, tokens: u32) {
    let payload = format!(r#"{{"id":"{id}","prompt":"a","tokens_max":{tokens}}}"#);
    let mut publish = client("mosquitto_pub", port);
    publish.args(["-q", "1", "-t", "andon/test/request/plc", "-m", &payload]);
    succeed(&mut publish).unwrap();
}

/// Waits for the answer to a request.
fn answered(answers: &Watcher, id: &str) {
    let its = |value: &Value| value["type"] == "answer" && value["id"] == id;
    let seen = answers.wait_for(|seen| seen.json().is_ok_and(|value| its(&value)));
    seen.unwrap();
}

/// A key and a certificate of another name, signed by this authority of the folder.
fn issue(folder: &Path, authority: &str, name: &str) {
    for command in [
        format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ),
        format!(
            "x509 -req -days 2 -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -extfile names -out {name}.pem"
        ),
    ] {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(folder).args(command.split(' '));
        succeed(&mut openssl).unwrap();
    }
}

/// Puts a certificate and its key where the daemon looks for them, each by a rename.
fn put(folder: &Path, certificate: &str, key: &str) {
    for (from, to) in [(certificate, "use.pem"), (key, "use.key")] {
        fs::copy(folder.join(from), folder.join("new")).unwrap();
        fs::rename(folder.join("new"), folder.join(to)).unwrap();
    }
}

#[test]
fn certificates_are_replaced_without_losing_a_request_and_broken_ones_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let at = |name: &str| folder.join(name).display().to_string();
    if !certificates(folder) {
        return;
    }
    issue(folder, "ca", "gateway-2");
    issue(folder, "ca", "gateway-3");
    issue(folder, "other", "stranger");
    put(folder, "gateway.pem", "gateway.key");
    // Clients of the test have a door of their own.
    let door = free_port().unwrap();
    let broker = Broker::start_with(&format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true\n\
         listener {door} 127.0.0.1",
        at("ca.pem"),
        at("broker.pem"),
        at("broker.key")
    ))
    .unwrap();
    let config = broker.config().replace("127.0.0.1", "localhost")
        + &format!(
            "tls = true\nca-file = \"{}\"\ncertificate-file = \"{}\"\nkey-file = \"{}\"\n",
            at("ca.pem"),
            at("use.pem"),
            at("use.key")
        );
    let daemon = daemon(door, &config);
    let answers = Watcher::start(door, "andon/test/response/plc/#", V5).unwrap();
    assert!(broker.log().contains("u'gateway'"), "{}", broker.log());

    // Another certificate, while one request is answered and others come.
    let mut publish = client("mosquitto_pub", door);
    publish.args(["-q", "1", "-t", "andon/test/request/plc"]);
    publish.args([
        "-m",
        r#"{"id":"long","prompt":"a","tokens_max":300,"stream":true}"#,
    ]);
    succeed(&mut publish).unwrap();
    answers.wait_for(is("chunk")).unwrap();
    put(folder, "gateway-2.pem", "gateway-2.key");
    assert_eq!(good(&andonctl(&daemon, &["reload"])), "nothing differs\n");
    for id in ["a", "b", "c", "d"] {
        ask(door, id, 2);
    }
    let mut left = BTreeSet::from(["long", "a", "b", "c", "d"]);
    while !left.is_empty() {
        let seen = answers.wait_for(is("answer")).unwrap().json().unwrap();
        left.remove(seen["id"].as_str().unwrap());
    }
    wait_for_connects(&daemon, 2, MESSAGE_TIMEOUT);
    assert!(broker.log().contains("u'gateway-2'"), "{}", broker.log());
    ask(door, "after", 2);
    answered(&answers, "after");

    // One that is none, one without its key, and one that the broker does not take. The connection stays.
    fs::write(folder.join("use.pem"), "no certificate").unwrap();
    bad(&andonctl(&daemon, &["reload"]), 1, "mqtt.certificate-file");
    put(folder, "gateway-3.pem", "gateway-2.key");
    bad(&andonctl(&daemon, &["reload"]), 1, "mqtt.certificate-file");
    put(folder, "stranger.pem", "stranger.key");
    good(&andonctl(&daemon, &["reload"]));
    wait_for_log(&daemon, "is not used");
    ask(door, "still", 2);
    answered(&answers, "still");
    assert_eq!(connects(&daemon), 2);

    // It is seen without anybody saying so.
    put(folder, "gateway-3.pem", "gateway-3.key");
    wait_for_connects(&daemon, 3, FILES_SEEN);
    assert!(broker.log().contains("u'gateway-3'"), "{}", broker.log());
    ask(door, "seen", 2);
    answered(&answers, "seen");

    // Where the connection breaks while the files are of no use, the former ones serve.
    fs::remove_file(folder.join("use.key")).unwrap();
    let mut again = broker;
    again.start_again().unwrap();
    wait_for_connects(&daemon, 4, MESSAGE_TIMEOUT);
}

#[test]
fn a_password_is_replaced_and_one_that_the_broker_turns_away_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let passwords = folder.join("passwords");
    let set = |password: &str| {
        let mut command = Command::new("mosquitto_passwd");
        if !passwords.exists() {
            command.arg("-c");
        }
        command.arg("-b").arg(&passwords).args(["andon", password]);
        succeed(&mut command).unwrap();
    };
    let file = folder.join("password");
    set("pa55-one");
    fs::write(&file, "pa55-one\n").unwrap();
    let broker = Broker::start_with(&format!("password_file {}", passwords.display())).unwrap();
    let config = broker.config()
        + &format!(
            "username = \"andon\"\npassword-file = \"{}\"\n",
            file.display()
        );
    let daemon = daemon(broker.port(), &config);
    let answers = broker.watch("andon/test/response/plc/#", V5).unwrap();
    set("pa55-two");
    broker.signal(Signal::SIGHUP).unwrap();
    fs::write(&file, "pa55-two\n").unwrap();
    good(&andonctl(&daemon, &["reload"]));
    wait_for_connects(&daemon, 2, MESSAGE_TIMEOUT);
    ask(broker.port(), "1", 2);
    answered(&answers, "1");

    fs::write(&file, "pa55-three\n").unwrap();
    good(&andonctl(&daemon, &["reload"]));
    wait_for_connects(&daemon, 3, MESSAGE_TIMEOUT);
    wait_for_log(&daemon, "turned the new one away");
    ask(broker.port(), "2", 2);
    answered(&answers, "2");
    assert!(!daemon.log().contains("pa55"));
}

#[test]
fn a_reload_moves_the_daemon_to_another_broker_and_serves_other_topics_there() {
    let (first, second) = (Broker::start().unwrap(), Broker::start().unwrap());
    // In its sandbox it could not reach another port than it was started with.
    let free = "[sandbox]\nlandlock = \"off\"\n";
    let daemon = daemon(first.port(), &(first.config() + free));
    let answers = second.watch("plant/plc/#", V5).unwrap();
    let status = second.watch("andon/test/status", V5).unwrap();
    daemon
        .configure(&(second.config() + "response-topics = [\"plant/<client>/#\"]\n"))
        .unwrap();
    let said: Value =
        serde_json::from_str(&good(&andonctl(&daemon, &["reload", "--json"]))).unwrap();
    assert_eq!(said["live"], json!(["mqtt.port", "mqtt.response-topics"]));
    assert_eq!(said["restart"], json!([]));
    super::ready(&status);
    let mut publish = client("mosquitto_pub", second.port());
    publish.args(["-V", V5, "-q", "1", "-t", "andon/test/request/plc"]);
    publish.args(["-D", "publish", "response-topic", "plant/plc/7"]);
    publish.args(["-m", r#"{"id":"7","prompt":"a","tokens_max":2}"#]);
    succeed(&mut publish).unwrap();
    let seen = answers.wait_for(is("answer")).unwrap();
    assert_eq!(seen.topic, "plant/plc/7");
    // It has said goodbye to the first, so that its last will is not published.
    let log = first.log();
    assert!(log.contains("Received DISCONNECT from andon-test"), "{log}");
}

#[test]
fn what_the_sandbox_hides_needs_a_restart() {
    let (first, second) = (Broker::start().unwrap(), Broker::start().unwrap());
    let daemon = daemon(first.port(), &first.config());
    let status: Value =
        serde_json::from_str(&good(&andonctl(&daemon, &["status", "--json"]))).unwrap();
    // Ports are given up since Linux 6.7.
    let level = status["sandbox"]["landlock"]["level"].as_u64().unwrap_or(0);
    let config = second.config() + "keep-alive-s = 60\n";
    daemon.configure(&config).unwrap();
    let said: Value =
        serde_json::from_str(&good(&andonctl(&daemon, &["reload", "--json"]))).unwrap();
    let (live, restart) = if level >= 4 {
        (json!(["mqtt.keep-alive-s"]), json!(["mqtt.port"]))
    } else {
        (json!(["mqtt.keep-alive-s", "mqtt.port"]), json!([]))
    };
    assert_eq!(
        (&said["live"], &said["restart"]),
        (&live, &restart),
        "{status}"
    );
    let broker = if level >= 4 { &first } else { &second };
    wait_for_connects(&daemon, 2, MESSAGE_TIMEOUT);
    let answers = broker.watch("andon/test/response/plc/#", V5).unwrap();
    ask(broker.port(), "1", 2);
    answered(&answers, "1");
}
