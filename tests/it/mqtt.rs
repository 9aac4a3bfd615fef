//! The MQTT front end: the real daemon, real brokers, real clients.
//!
//! The tiny model never ends its answer by itself, so the token limit decides how long one is.

pub(crate) mod link;
mod rotate;

use std::io::Write as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, Seen, Watcher, client, succeed};
use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
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
    let before = answers.wait_for(is("answer")).unwrap();
    daemon.restart().unwrap();
    broker
        .publish(
            "andon/test/request/plc",
            r#"{"id":"h","prompt":"x","tokens_max":1}"#,
        )
        .unwrap();
    // What the last daemon could not note as delivered comes again; the retained message is no request, and of another attempt.
    loop {
        let seen = answers.wait_for(is("answer")).unwrap();
        if seen.json().unwrap()["id"] == "h" {
            break;
        }
        assert_eq!(seen.payload, before.payload);
    }
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
