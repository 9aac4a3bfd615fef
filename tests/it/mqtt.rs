//! The MQTT front end: the real daemon, real brokers, real clients.
//!
//! The tiny model never ends its answer by itself, so the token limit decides how long one is.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{
    Broker, MESSAGE_TIMEOUT, OldBroker, Seen, Watcher, client, config, succeed,
};
use andon_tests::broker_embedded::EmbeddedBroker;
use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const V5: &str = "mqttv5";
const V311: &str = "mqttv311";
const TASK: &str = "[task.explain]\ninstructions = \"Explain fault {{ code }}.\"\ntokens-max = 4\n";

/// A daemon at a broker; returns once it takes requests.
fn daemon(port: u16, config: &str) -> Daemon {
    let status = Watcher::start(port, "andon/test/status", V311).unwrap();
    let daemon = Daemon::builder().config(config).start().unwrap();
    ready(&status);
    daemon
}

fn ready(status: &Watcher) -> Value {
    let seen = status
        .wait_for(|seen| {
            seen.json()
                .is_ok_and(|value| value["state"] == "online" && value["ready"] == true)
        })
        .unwrap();
    seen.json().unwrap()
}

/// One request with `mosquitto_rr`, which speaks MQTT 5; returns what the format says.
fn round_trip(port: u16, topic: &str, payload: &str, properties: &[&str], format: &str) -> String {
    let mut command = client("mosquitto_rr", port);
    command.args([
        "-V", "5", "-q", "1", "-W", "120", "-t", topic, "-m", payload,
    ]);
    command.args(["-e", "andon/test/response/plc1/rr", "-F", format]);
    for property in properties.chunks(2) {
        command.args(["-D", "publish"]).args(property);
    }
    let output = succeed(&mut command).unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

fn is(kind: &str) -> impl Fn(&Seen) -> bool {
    move |seen| seen.json().is_ok_and(|value| value["type"] == kind)
}

#[test]
fn mqtt_5_answers_on_the_response_topic_with_the_same_correlation_data() {
    let broker = Broker::start().unwrap();
    let _daemon = daemon(broker.port(), &(broker.config() + TASK));
    let payload = r#"{"id":"17","messages":[{"role":"user","content":"hello"}],"tokens_max":5}"#;
    let properties = [
        "correlation-data",
        "c0ffee",
        "content-type",
        "application/json",
    ];
    let answer = round_trip(
        broker.port(),
        "andon/test/request/plc1",
        payload,
        &properties,
        "%t|%D|%C|%p",
    );
    let parts: Vec<&str> = answer.splitn(4, '|').collect();
    assert_eq!(
        parts[..3],
        ["andon/test/response/plc1/rr", "c0ffee", "application/json"]
    );
    let value: Value = serde_json::from_str(parts[3]).unwrap();
    assert_eq!(value["type"], "answer");
    assert_eq!(value["id"], "17");
    assert_eq!(value["origin"], "local");
    assert_eq!(value["finish"], "length");
    assert_eq!(value["usage"]["completion_tokens"], 5);
    assert!(!value["answer"].as_str().unwrap().is_empty());

    // A task, with the id taken from the Correlation Data.
    let task = round_trip(
        broker.port(),
        "andon/test/request/plc1/explain",
        r#"{"input":{"code":"E42"}}"#,
        &["correlation-data", "abc"],
        "%p",
    );
    let value: Value = serde_json::from_str(&task).unwrap();
    assert_eq!(value["id"], "616263");
    assert_eq!(value["task"], "explain");
    assert_eq!(value["usage"]["completion_tokens"], 4);

    // The same, as bare text.
    let properties = ["content-type", "text/plain"];
    let text = round_trip(
        broker.port(),
        "andon/test/request/plc1",
        "What is E42?",
        &properties,
        "%C|%P|%p",
    );
    assert!(text.starts_with("text/plain|"), "{text}");
    assert!(text.contains("type:answer"), "{text}");
}

#[test]
fn mqtt_3_1_1_publishers_are_served_by_topic_and_payload_alone() {
    let broker = Broker::start().unwrap();
    let _daemon = daemon(broker.port(), &(broker.config() + TASK));
    let answers = broker.watch("andon/test/response/plc2/#", V311).unwrap();
    broker
        .publish(
            "andon/test/request/plc2/explain",
            r#"{"id":"9","input":{"code":"E7"},"tokens_max":3}"#,
        )
        .unwrap();
    let seen = answers.wait_for(is("answer")).unwrap();
    assert_eq!(seen.topic, "andon/test/response/plc2/9");
    let value = seen.json().unwrap();
    assert_eq!(value["usage"]["completion_tokens"], 3);

    // Asked for in the payload, chunks come in order before the whole answer.
    broker
        .publish(
            "andon/test/request/plc2",
            r#"{"id":10,"prompt":"a","tokens_max":6,"stream":true}"#,
        )
        .unwrap();
    let mut text = String::new();
    let mut sequence = 0;
    loop {
        let seen = answers.next(MESSAGE_TIMEOUT).unwrap();
        assert_eq!(seen.topic, "andon/test/response/plc2/10");
        let value = seen.json().unwrap();
        assert_eq!(value["sequence"], sequence);
        assert_eq!(value["attempt"], 1);
        if value["type"] == "answer" {
            assert_eq!(value["answer"], text);
            break;
        }
        text.push_str(value["text"].as_str().unwrap());
        sequence += 1;
    }
    assert!(sequence > 0);
}

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
fn what_is_wrong_is_answered_and_announced_and_nothing_ends() {
    let broker = Broker::start().unwrap();
    let mut daemon = daemon(broker.port(), &(broker.config() + TASK));
    let answers = broker.watch("andon/test/response/plc/#", V311).unwrap();
    let events = broker.watch("andon/test/event/#", V311).unwrap();
    let cases = [
        (
            "andon/test/request/plc",
            "not json",
            "invalid_request",
            Value::Null,
        ),
        (
            "andon/test/request/plc",
            r#"{"id":"a","nonsense":1}"#,
            "invalid_request",
            json!("nonsense"),
        ),
        (
            "andon/test/request/plc",
            r#"{"id":"b","prompt":"x","temperature":9}"#,
            "invalid_request",
            json!("temperature"),
        ),
        (
            "andon/test/request/plc",
            r#"{"id":"c","prompt":"x","model":"gpt"}"#,
            "unknown_model",
            json!("model"),
        ),
        (
            "andon/test/request/plc/none",
            r#"{"id":"d","input":{}}"#,
            "unknown_task",
            json!("task"),
        ),
        (
            "andon/test/request/plc/explain",
            r#"{"id":"e","input":{}}"#,
            "invalid_request",
            json!("input"),
        ),
        (
            "andon/test/request/plc/explain",
            r#"{"id":"f","input":{"code":"x","c":1}}"#,
            "invalid_request",
            json!("input"),
        ),
    ];
    for (topic, payload, code, field) in cases {
        broker.publish(topic, payload).unwrap();
        let value = answers.wait_for(is("error")).unwrap().json().unwrap();
        assert_eq!(value["error"]["code"], code, "{payload}: {value}");
        assert_eq!(value["error"]["field"], field, "{payload}: {value}");
        if let Some(id) = serde_json::from_str::<Value>(payload)
            .ok()
            .map(|sent| sent["id"].clone())
        {
            assert_eq!(value["id"], id);
        }
    }
    let event = events
        .wait_for(|seen| seen.topic == "andon/test/event/refused")
        .unwrap();
    assert_eq!(event.json().unwrap()["client"], "plc");

    // What is no request at all is only written down.
    broker.publish("andon/test/request/plc/a/b", "{}").unwrap();
    broker.publish("andon/test/cancel/plc", "").unwrap();
    let mut retained = broker.client("mosquitto_pub");
    retained.args([
        "-r",
        "-q",
        "1",
        "-t",
        "andon/test/request/plc",
        "-m",
        r#"{"id":"g","prompt":"x"}"#,
    ]);
    // Retained by the broker for later, this one is still new to whoever is there.
    succeed(&mut retained).unwrap();
    answers.wait_for(is("answer")).unwrap();
    daemon.restart().unwrap();
    broker
        .publish(
            "andon/test/request/plc",
            r#"{"id":"h","prompt":"x","tokens_max":1}"#,
        )
        .unwrap();
    let value = answers.wait_for(is("answer")).unwrap().json().unwrap();
    assert_eq!(value["id"], "h", "the retained message is no request");
    assert!(daemon.is_running());
}

#[test]
fn a_repeated_request_is_answered_from_memory_and_another_of_its_id_is_refused() {
    let broker = Broker::start().unwrap();
    let _daemon = daemon(broker.port(), &broker.config());
    let answers = broker.watch("andon/test/response/plc/#", V311).unwrap();
    let request = r#"{"id":"1","prompt":"a","tokens_max":8,"temperature":1.5}"#;
    // Twice at once, then once more: one decoding.
    broker.publish("andon/test/request/plc", request).unwrap();
    broker.publish("andon/test/request/plc", request).unwrap();
    let first = answers.wait_for(is("answer")).unwrap();
    broker.publish("andon/test/request/plc", request).unwrap();
    let again = answers.wait_for(is("answer")).unwrap();
    // Down to the microseconds of its timings.
    assert_eq!(first, again);
    broker
        .publish("andon/test/request/plc", r#"{"id":"1","prompt":"b"}"#)
        .unwrap();
    let refused = answers.wait_for(is("error")).unwrap().json().unwrap();
    assert_eq!(refused["error"]["code"], "duplicate_id");
}

#[test]
fn a_request_is_cancelled_by_its_own_client() {
    const TOKENS: usize = 30_000;
    let broker = Broker::start().unwrap();
    // A context long enough for an answer that takes a while on any machine.
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("long.gguf");
    let tiny = TinyModel {
        context_tokens_max: TOKENS + 1000,
        ..TinyModel::default()
    };
    tiny.write(&model).unwrap();
    let status = broker.watch("andon/test/status", V311).unwrap();
    let config = broker.config() + &format!("[model]\nkv-tokens-max = {}\n", TOKENS + 2000);
    let daemon = Daemon::builder()
        .model(&model)
        .config(&config)
        .start()
        .unwrap();
    ready(&status);
    let answers = broker.watch("andon/test/response/#", V311).unwrap();
    let payload = format!(r#"{{"id":"1","prompt":"a","tokens_max":{TOKENS},"stream":true}}"#);
    broker.publish("andon/test/request/plc", &payload).unwrap();
    answers.wait_for(is("chunk")).unwrap();
    broker.publish("andon/test/cancel/other", "1").unwrap();
    broker
        .publish("andon/test/cancel/plc", r#"{"id":"1"}"#)
        .unwrap();
    let seen = answers.wait_for(|seen| !is("chunk")(seen)).unwrap();
    let value = seen.json().unwrap();
    assert_eq!(value["finish"], "cancelled", "{value}\n{}", daemon.log());
}

#[test]
fn a_deadline_that_cannot_be_met_is_an_error_and_an_event() {
    let broker = Broker::start().unwrap();
    let _daemon = daemon(broker.port(), &broker.config());
    let events = broker.watch("andon/test/event/expired", V311).unwrap();
    let answers = broker.watch("andon/test/response/plc/#", V311).unwrap();
    broker
        .publish(
            "andon/test/request/plc",
            r#"{"id":"1","prompt":"a","tokens_max":400,"deadline_ms":1}"#,
        )
        .unwrap();
    let value = answers.wait_for(is("error")).unwrap().json().unwrap();
    assert_eq!(value["error"]["code"], "deadline_exceeded");
    assert_eq!(
        events.next(MESSAGE_TIMEOUT).unwrap().json().unwrap()["id"],
        "1"
    );
}

#[test]
fn an_answer_too_large_for_the_broker_becomes_a_short_error() {
    let broker = Broker::start_with("max_packet_size 900").unwrap();
    let _daemon = daemon(broker.port(), &broker.config());
    let payload = r#"{"id":"1","prompt":"a","tokens_max":500}"#;
    let answer = round_trip(broker.port(), "andon/test/request/plc1", payload, &[], "%p");
    let value: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(value["error"]["code"], "too_large", "{value}");
    let payload = r#"{"id":"2","prompt":"a","tokens_max":5}"#;
    let answer = round_trip(broker.port(), "andon/test/request/plc1", payload, &[], "%p");
    assert_eq!(
        serde_json::from_str::<Value>(&answer).unwrap()["type"],
        "answer"
    );
}

#[test]
fn the_status_says_how_the_gateway_is() {
    let broker = Broker::start().unwrap();
    let status = broker.watch("andon/test/status", V5).unwrap();
    let mut daemon = Daemon::builder()
        .config(&(broker.config() + TASK))
        .start()
        .unwrap();
    let value = ready(&status);
    assert_eq!(value["protocol"], "5");
    assert_eq!(value["tasks"], json!(["explain"]));
    assert!(value["model"]["name"].is_string());
    // Retained: who comes later sees it too.
    let later = broker.watch("andon/test/status", V5).unwrap();
    ready(&later);

    daemon.kill().unwrap();
    let lost = status
        .wait_for(|seen| seen.payload.contains("offline"))
        .unwrap();
    assert_eq!(lost.json().unwrap()["reason"], "lost");

    daemon.restart().unwrap();
    ready(&status);
    daemon.terminate().unwrap();
    let stopped = status
        .wait_for(|seen| seen.payload.contains("offline"))
        .unwrap();
    assert_eq!(stopped.json().unwrap()["reason"], "stopped");
    assert!(daemon.wait(MESSAGE_TIMEOUT).unwrap().success());
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
fn a_fleet_shares_its_requests() {
    let broker = Broker::start().unwrap();
    let fleet = |name: &str| {
        format!(
            "{}fleet-group = \"hall\"\n[gateway]\nname = \"{name}\"\n",
            broker.config()
        )
    };
    let status = broker.watch("andon/+/status", V5).unwrap();
    let daemons =
        ["one", "two"].map(|name| Daemon::builder().config(&fleet(name)).start().unwrap());
    for _ in &daemons {
        ready(&status);
    }
    let answers = broker
        .watch("andon/fleet/hall/response/plc/#", V311)
        .unwrap();
    for id in 0..6 {
        let payload = format!(r#"{{"id":"{id}","prompt":"a","tokens_max":2}}"#);
        broker
            .publish("andon/fleet/hall/request/plc", &payload)
            .unwrap();
    }
    let mut ids: Vec<String> = (0..6)
        .map(|_| {
            let value = answers.wait_for(is("answer")).unwrap().json().unwrap();
            value["id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5"]);
    assert!(
        answers.next(Duration::from_millis(300)).is_err(),
        "each is answered once"
    );
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

#[test]
fn postcard_requests_get_postcard_answers() {
    use andon_wire::{Ask, ClientFrame, HEADER_BYTES, Input, RequestId, ServerFrame};
    let broker = Broker::start().unwrap();
    let _daemon = daemon(broker.port(), &broker.config());
    let mut ask = Ask::new(RequestId::new("5").unwrap(), Input::Prompt("hello"));
    ask.tokens_max = Some(3);
    ask.stream = false;
    let mut buffer = [0; 1024];
    let payload = ClientFrame::Ask(ask).encode(&mut buffer).unwrap();

    // As hex: the answers are no text.
    let mut reader = client("mosquitto_sub", broker.port());
    reader.args([
        "-V",
        V5,
        "-q",
        "1",
        "-t",
        "andon/test/response/plc/5",
        "-C",
        "2",
        "-W",
        "120",
        "-F",
        "%x",
    ]);
    let reader = reader.stdout(Stdio::piped()).spawn().unwrap();
    while broker
        .log()
        .matches("andon/test/response/plc/5 (QoS 1)")
        .count()
        == 0
    {
        thread::sleep(Duration::from_millis(10));
    }
    let mut publish = client("mosquitto_pub", broker.port());
    publish.args(["-V", V5, "-q", "1", "-t", "andon/test/request/plc", "-s"]);
    publish.args(["-D", "publish", "content-type", "application/postcard"]);
    let mut publish = publish.stdin(Stdio::piped()).spawn().unwrap();
    publish
        .stdin
        .take()
        .unwrap()
        .write_all(&payload[HEADER_BYTES..])
        .unwrap();
    assert!(publish.wait().unwrap().success());

    let output = reader.wait_with_output().unwrap();
    let payloads: Vec<Vec<u8>> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            (0..line.len() / 2)
                .map(|index| u8::from_str_radix(&line[2 * index..2 * index + 2], 16).unwrap())
                .collect()
        })
        .collect();
    let frames: Vec<ServerFrame<'_>> = payloads
        .iter()
        .map(|payload| ServerFrame::decode(payload).unwrap())
        .collect();
    let [ServerFrame::Chunk(chunk), ServerFrame::Done(done)] = frames.as_slice() else {
        panic!("{frames:?}");
    };
    assert!(!chunk.text.is_empty());
    assert_eq!((done.chunks, done.usage.completion_tokens), (1, 3));
}

/// A certificate for `localhost` and its key, signed by an authority, all in `folder`; `false` without
/// openssl.
fn certificates(folder: &Path) -> bool {
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
    wait_for_log(&daemon, "connected to the broker");
    let output = succeed(ask.args(["-W", "120"])).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"answer\""));
}

fn wait_for_log(daemon: &Daemon, words: &str) {
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
