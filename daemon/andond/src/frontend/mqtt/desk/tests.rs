use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::frontend::mqtt::message::Version;
use crate::frontend::mqtt::outbox::Gate;
use crate::worker::{Chunk, Finish, Timings, Usage};

fn small(requests_max: usize) -> Desk {
    let mut config = Config::default();
    config.gateway.name = Some("gw1".to_owned());
    config.mqtt.requests_max = requests_max;
    config.mqtt.fleet_group = Some("hall".to_owned());
    Desk::new(Arc::new(config), Arc::new(Telemetry::new())).unwrap()
}

fn message(topic: &str, payload: &str) -> Incoming {
    Incoming {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        retain: false,
        properties: Properties::default(),
        ack: None,
    }
}

fn ask(desk: &mut Desk, id: &str, prompt: &str) -> Verdict {
    let payload = format!(r#"{{"id":"{id}","prompt":"{prompt}"}}"#);
    desk.receive(&message("andon/gw1/request/plc", &payload), Instant::now())
}

fn accept(desk: &mut Desk, verdict: Verdict) -> Key {
    let Verdict::Submit(prepared) = verdict else {
        panic!("{verdict:?}");
    };
    let key = prepared.key.clone();
    desk.accepted(*prepared);
    key
}

fn finish(desk: &mut Desk, key: &Key, text: &str) {
    let now = Instant::now();
    let chunk = Chunk {
        text: text.to_owned(),
        ..Chunk::default()
    };
    desk.event(key, JobEvent::Chunk(chunk), now);
    let done = Done {
        finish: Finish::Stop,
        usage: Usage::default(),
        timings: Timings::default(),
    };
    desk.event(key, JobEvent::Done(done), now);
}

fn sent(desk: &mut Desk) -> Vec<(String, Value)> {
    let gate = Gate {
        version: Version::V5,
        packet_bytes_max: 65_536,
        window: 1000,
    };
    let mut sent = Vec::new();
    desk.outbox.pump(gate, Instant::now(), |message| {
        sent.push((
            message.topic.clone(),
            serde_json::from_slice(&message.payload).unwrap(),
        ));
        true
    });
    for packet_id in 1..=1000 {
        desk.outbox.sent(packet_id);
        desk.outbox.confirmed(packet_id);
    }
    sent
}

#[test]
fn a_request_is_submitted_and_answered_once() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    assert!(
        matches!(ask(&mut desk, "1", "hi"), Verdict::Done),
        "it runs already"
    );
    finish(&mut desk, &key, "hello");
    let answers = sent(&mut desk);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0, "andon/gw1/response/plc/1");
    assert_eq!(answers[0].1["answer"], "hello");
    assert!(
        matches!(ask(&mut desk, "1", "hi"), Verdict::Done),
        "it was answered already"
    );
    let again = sent(&mut desk);
    assert_eq!(again[0].1["answer"], "hello");
    assert_eq!(desk.unanswered(), 0);
}

#[test]
fn an_id_with_other_contents_never_gets_the_old_answer() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    sent(&mut desk);
    assert!(matches!(ask(&mut desk, "1", "other"), Verdict::Done));
    let refused = sent(&mut desk);
    assert_eq!(refused[0].1["error"]["code"], "duplicate_id");
    assert_eq!(refused[1].0, "andon/gw1/event/refused");
}

#[test]
fn correlation_data_may_repeat() {
    let mut desk = small(4);
    for text in ["a", "b"] {
        let mut incoming = message(
            "andon/gw1/request/plc",
            &format!(r#"{{"prompt":"{text}"}}"#),
        );
        incoming.properties.correlation = Some(Bytes::from_static(b"same"));
        let verdict = desk.receive(&incoming, Instant::now());
        let key = accept(&mut desk, verdict);
        finish(&mut desk, &key, text);
        assert_eq!(sent(&mut desk)[0].1["answer"], text);
    }
}

#[test]
fn an_answer_given_again_keeps_the_bound() {
    let mut desk = small(2);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    for _ in 0..9 {
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Done));
    }
    assert_eq!(desk.outbox.answers(), 2);
    let sent = sent(&mut desk);
    assert_eq!(sent[1].1["answer"], "hello");
    assert_eq!(sent[2].1["error"]["code"], "busy");
}

#[test]
fn what_is_over_the_bound_is_refused_with_a_hint() {
    let mut desk = small(1);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Done));
    let refused = sent(&mut desk);
    assert_eq!(refused[0].1["error"]["code"], "busy");
    assert!(refused[0].1["error"]["retry_after_ms"].is_u64());
    finish(&mut desk, &key, "x");
    // An answer that the broker has not taken counts as well.
    assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Done));
    sent(&mut desk);
    assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Submit(_)));
}

#[test]
fn a_refusal_by_the_worker_is_told_and_may_be_tried_again() {
    let mut desk = small(4);
    let Verdict::Submit(prepared) = ask(&mut desk, "1", "hi") else {
        panic!("submitted");
    };
    desk.refused(&prepared, Fault::new(FaultCode::Unavailable, "stopping"));
    let refused = sent(&mut desk);
    assert_eq!(refused[0].1["error"]["code"], "unavailable");
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Submit(_)));
}

#[test]
fn chunks_are_sent_if_asked_for_and_the_answer_always() {
    let mut desk = small(4);
    let payload = r#"{"id":"1","prompt":"hi","stream":true}"#;
    let verdict = desk.receive(&message("andon/gw1/request/plc", payload), Instant::now());
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    let messages = sent(&mut desk);
    let kinds: Vec<&str> = messages
        .iter()
        .filter_map(|(_, value)| value["type"].as_str())
        .collect();
    assert_eq!(kinds, ["chunk", "answer"]);
    assert_eq!(messages[1].1["sequence"], 1);
    assert_eq!(messages[1].1["answer"], "hello");
}

#[test]
fn a_failure_is_told_and_a_passed_deadline_is_an_event_too() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    let fault = Fault::new(FaultCode::DeadlineExceeded, "too late");
    desk.event(&key, JobEvent::Failed(fault), Instant::now());
    let messages = sent(&mut desk);
    assert_eq!(messages[0].1["error"]["code"], "deadline_exceeded");
    assert_eq!(messages[1].0, "andon/gw1/event/expired");
    // It may be asked again: nothing was answered.
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Submit(_)));
}

#[test]
fn only_a_clients_own_running_request_is_cancelled() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    let now = Instant::now();
    let cancel = |desk: &mut Desk, topic: &str, id: &str| desk.receive(&message(topic, id), now);
    assert!(matches!(
        cancel(&mut desk, "andon/gw1/cancel/other", "1"),
        Verdict::Done
    ));
    assert!(matches!(
        cancel(&mut desk, "andon/gw1/cancel/plc", "2"),
        Verdict::Done
    ));
    assert!(matches!(
        cancel(&mut desk, "andon/gw1/cancel/plc", "a/b"),
        Verdict::Done
    ));
    assert!(
        matches!(cancel(&mut desk, "andon/gw1/cancel/plc", r#"{"id":"1"}"#), Verdict::Cancel(found) if found == key)
    );
}

#[test]
fn retained_and_foreign_messages_are_no_requests() {
    let mut desk = small(4);
    let mut retained = message("andon/gw1/request/plc", r#"{"prompt":"a"}"#);
    retained.retain = true;
    let now = Instant::now();
    assert!(matches!(desk.receive(&retained, now), Verdict::Done));
    for topic in [
        "",
        "x",
        "andon/gw1/request",
        "andon/gw1/request/a/b/c",
        "andon/gw1/status",
    ] {
        assert!(matches!(
            desk.receive(&message(topic, "{}"), now),
            Verdict::Done
        ));
    }
    assert!(sent(&mut desk).is_empty());
}

#[test]
fn a_fleets_request_is_answered_under_the_fleets_topics() {
    let mut desk = small(4);
    assert_eq!(desk.filters()[2], "$share/hall/andon/fleet/hall/request/#");
    let verdict = desk.receive(
        &message("andon/fleet/hall/request/plc", r#"{"id":"1","prompt":"a"}"#),
        Instant::now(),
    );
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "x");
    assert_eq!(sent(&mut desk)[0].0, "andon/fleet/hall/response/plc/1");
}
