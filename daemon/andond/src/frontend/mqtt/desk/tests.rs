mod waiting;

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::access::Rules;
use crate::config::spool::{Durable, SpoolConfig};
use crate::frontend::mqtt::message::Version;
use crate::frontend::mqtt::outbox::Gate;
use crate::worker::{Chunk, Done, Finish, JobEvent, Timings, Usage};

/// A desk with a spool in memory.
struct Bench {
    desk: Desk,
    notes: mpsc::UnboundedReceiver<Note>,
    access: Arc<Access>,
}

impl Deref for Bench {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }
}

impl Bench {
    /// The next word of the spool, which is sure to come, and what follows from it.
    fn hear(&mut self) -> Option<Box<Prepared>> {
        let note = self.notes.blocking_recv().expect("the spool's word");
        self.desk.note(note, Instant::now())
    }
}

fn config(requests_max: usize) -> Config {
    let mut config = Config::default();
    config.gateway.name = Some("gw1".to_owned());
    config.mqtt.requests_max = requests_max;
    config.mqtt.fleet_group = Some("hall".to_owned());
    config
}

fn on(spool: Spool, requests_max: usize) -> Bench {
    let (noted, notes) = mpsc::unbounded_channel();
    let config = Arc::new(config(requests_max));
    let access = Arc::new(Access::new(Rules::resolve(&config).unwrap()));
    let telemetry = Arc::new(Telemetry::new());
    let desk = Desk::new(config, Arc::clone(&access), telemetry, spool, noted).unwrap();
    Bench {
        desk,
        notes,
        access,
    }
}

fn small(requests_max: usize) -> Bench {
    let config = SpoolConfig {
        durable: Durable::Off,
        ..SpoolConfig::default()
    };
    let spool = Spool::open(&config, Arc::new(Telemetry::new())).unwrap();
    on(spool, requests_max)
}

const ACK: AckToken = AckToken {
    packet_id: 5,
    exactly_once: false,
};

fn message(topic: &str, payload: &str) -> Incoming {
    Incoming {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        retain: false,
        repeated: false,
        properties: Properties::default(),
        ack: Some(ACK),
    }
}

fn ask(desk: &mut Desk, id: &str, prompt: &str) -> Verdict {
    let payload = format!(r#"{{"id":"{id}","prompt":"{prompt}"}}"#);
    desk.receive(&message("andon/gw1/request/plc", &payload), Instant::now())
}

fn accept(bench: &mut Bench, verdict: Verdict) -> Key {
    let Verdict::Submit(prepared) = verdict else {
        panic!("{verdict:?}");
    };
    let key = prepared.key.clone();
    assert!(bench.accept(*prepared));
    assert!(bench.take_acks().is_empty(), "not safe yet");
    bench.hear();
    assert_eq!(bench.take_acks(), [ACK]);
    key
}

fn done() -> JobEvent {
    let (usage, timings) = (Usage::default(), Timings::default());
    JobEvent::Done(Done::new(Finish::Stop, usage, timings))
}

fn chunk(text: &str) -> JobEvent {
    JobEvent::Chunk(Chunk {
        text: text.to_owned(),
        ..Chunk::default()
    })
}

fn finish(bench: &mut Bench, key: &Key, text: &str) {
    let now = Instant::now();
    bench.event(key, chunk(text), now);
    bench.event(key, done(), now);
    bench.hear();
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
        desk.confirmed(packet_id, None);
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
        matches!(ask(&mut desk, "1", "hi"), Verdict::Later),
        "it was answered already"
    );
    desk.hear();
    let again = sent(&mut desk);
    assert_eq!(again[0].1["answer"], "hello");
    assert_eq!(desk.unanswered(), 0);
}

#[test]
fn whoever_may_not_ask_any_more_is_given_no_answer_again() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "a");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    sent(&mut desk);
    let verdict = ask(&mut desk, "2", "a");
    accept(&mut desk, verdict);
    let mut denying = config(4);
    let rule = "clients = [\"plc\"]\ndeny = true\n";
    denying.access = vec![toml::from_str(rule).unwrap()];
    desk.access.replace(Rules::resolve(&denying).unwrap());
    // One was answered, one is being answered.
    for id in ["1", "2"] {
        assert!(matches!(ask(&mut desk, id, "a"), Verdict::Later));
        let refused = sent(&mut desk);
        assert_eq!(refused[0].1["error"]["code"], "not_allowed", "{refused:?}");
        assert!(refused.iter().all(|(_, value)| value["answer"].is_null()));
    }
    desk.access.replace(Rules::resolve(&config(4)).unwrap());
    assert!(matches!(ask(&mut desk, "1", "a"), Verdict::Later));
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["answer"], "hello");
}

#[test]
fn an_id_with_other_contents_never_gets_the_old_answer() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    sent(&mut desk);
    assert!(matches!(ask(&mut desk, "1", "other"), Verdict::Later));
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
fn what_has_an_answer_is_told_nothing_else_and_not_twice_at_once() {
    let mut desk = small(1);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    // Over the bound, and over connections that end before anything is confirmed, it is on its way once.
    for _ in 0..9 {
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
        assert_eq!(desk.outbox.answers(), 1);
        desk.disconnected();
    }
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    let first = sent(&mut desk);
    assert_eq!((first.len(), &first[0].1["answer"]), (1, &"hello".into()));
    assert_eq!(desk.take_acks(), [ACK], "of this connection alone");
    // Delivered, it is read once for all who ask meanwhile, and acknowledged once it has left.
    for _ in 0..3 {
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    }
    desk.disconnected();
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    desk.hear();
    assert!(desk.take_acks().is_empty());
    let again = sent(&mut desk);
    assert_eq!((again.len(), &again[0].1["answer"]), (1, &"hello".into()));
    assert_eq!(desk.take_acks(), [ACK]);
}

#[test]
fn what_is_over_the_bound_is_refused_with_a_hint() {
    let mut desk = small(1);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Later));
    let refused = sent(&mut desk);
    assert_eq!(refused[0].1["error"]["code"], "busy");
    assert!(refused[0].1["error"]["retry_after_ms"].is_u64());
    finish(&mut desk, &key, "x");
    // An answer that the broker has not taken counts as well.
    assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Later));
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
    desk.hear();
    let messages = sent(&mut desk);
    assert_eq!(messages[0].1["error"]["code"], "deadline_exceeded");
    assert_eq!(messages[1].0, "andon/gw1/event/expired");
    // The broker may send it again and gets the same; the client may ask again, for another attempt.
    let mut repeated = message("andon/gw1/request/plc", r#"{"id":"1","prompt":"hi"}"#);
    repeated.repeated = true;
    assert!(matches!(
        desk.receive(&repeated, Instant::now()),
        Verdict::Later
    ));
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["error"]["code"], "deadline_exceeded");
    assert_eq!(desk.take_acks(), [ACK], "once the broker has it");
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "at last");
    let answer = &sent(&mut desk)[0].1;
    assert_eq!(
        (&answer["answer"], &answer["attempt"]),
        (&"at last".into(), &2.into())
    );
}

#[test]
fn only_a_clients_own_running_request_is_cancelled() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    let now = Instant::now();
    let cancel = |desk: &mut Bench, topic: &str, id: &str| desk.receive(&message(topic, id), now);
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

#[test]
fn nothing_is_heard_of_a_request_before_it_is_safe() {
    let mut desk = small(4);
    let payload = r#"{"id":"1","prompt":"hi","stream":true}"#;
    let Verdict::Submit(prepared) =
        desk.receive(&message("andon/gw1/request/plc", payload), Instant::now())
    else {
        panic!("submitted");
    };
    let key = prepared.key.clone();
    assert!(desk.accept(*prepared));
    desk.event(&key, chunk("hello"), Instant::now());
    let again = desk.receive(&message("andon/gw1/request/plc", payload), Instant::now());
    assert!(matches!(again, Verdict::Later), "neither is safe");
    assert!(sent(&mut desk).is_empty() && desk.take_acks().is_empty());
    desk.hear();
    assert_eq!(desk.take_acks(), [ACK, ACK]);
    assert_eq!(sent(&mut desk)[0].1["text"], "hello");
    desk.event(&key, done(), Instant::now());
    assert!(sent(&mut desk).is_empty(), "the answer is not safe");
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["answer"], "hello");
}

#[test]
fn what_cannot_be_kept_is_refused_and_acknowledged_with_the_refusal() {
    let mut desk = small(4);
    let Verdict::Submit(prepared) = ask(&mut desk, "1", "hi") else {
        panic!("submitted");
    };
    let key = prepared.key.clone();
    assert!(desk.accept(*prepared));
    desk.hear();
    desk.take_acks();
    // The spool's word comes too late to be heard twice; as if it had been the other one:
    let fault = Fault::new(FaultCode::Unavailable, "the request cannot be kept");
    desk.jobs.get_mut(&key).unwrap().acks.push(ACK);
    let serial = desk.jobs[&key].serial;
    let stale = Note::Accepted(key.clone(), serial - 1, Err(fault.clone()));
    desk.note(stale, Instant::now());
    assert_eq!(desk.unanswered(), 1, "that was about another job");
    desk.note(Note::Accepted(key, serial, Err(fault)), Instant::now());
    assert!(desk.take_acks().is_empty(), "the broker does not know yet");
    assert_eq!(sent(&mut desk)[0].1["error"]["code"], "unavailable");
    assert_eq!(desk.take_acks(), [ACK]);
    assert_eq!(desk.unanswered(), 0);
}

#[test]
fn the_next_process_goes_on_with_what_the_last_one_left() {
    let folder = tempfile::TempDir::new().unwrap();
    let config = SpoolConfig {
        dir: folder.path().to_path_buf(),
        ..SpoolConfig::default()
    };
    let open = || Spool::open(&config, Arc::new(Telemetry::new())).unwrap();
    let mut desk = on(open(), 4);
    for (id, text) in [
        ("answered", Some("yes")),
        ("running", None),
        ("cancelled", None),
    ] {
        let verdict = ask(&mut desk, id, "hi");
        let key = accept(&mut desk, verdict);
        match text {
            Some(text) => finish(&mut desk, &key, text),
            None => desk.event(&key, JobEvent::Started, Instant::now()),
        }
    }
    // It ends here, with nothing sent.
    let seed = desk.spool.list(&Filter::default())[1].1.seed;
    desk.spool.close();
    drop(desk);

    let mut desk = on(open(), 4);
    assert!(
        matches!(ask(&mut desk, "running", "hi"), Verdict::Done),
        "it is in the spool"
    );
    let cancel = message("andon/gw1/cancel/plc", "cancelled");
    assert!(matches!(
        desk.receive(&cancel, Instant::now()),
        Verdict::Done
    ));
    desk.fetch(true, Instant::now());
    assert!(desk.hear().is_none(), "its answer is there");
    let prepared = desk.hear().expect("it is to be computed again");
    assert_eq!(prepared.request.seed_unsaid, Some(seed));
    let key = prepared.key.clone();
    assert!(desk.accept(*prepared));
    assert!(desk.hear().is_none(), "it was cancelled");
    desk.hear();
    finish(&mut desk, &key, "late");
    let sent = sent(&mut desk);
    let of = |id: &str| {
        let mut of = sent.iter().filter(|(topic, _)| topic.ends_with(id));
        let found = of.next().unwrap().1.clone();
        assert!(of.next().is_none());
        found
    };
    assert_eq!(
        (&of("answered")["answer"], &of("answered")["attempt"]),
        (&"yes".into(), &1.into())
    );
    assert_eq!(
        (&of("running")["answer"], &of("running")["attempt"]),
        (&"late".into(), &2.into())
    );
    assert_eq!(of("cancelled")["error"]["code"], "cancelled");
    let (counts, _) = desk.spool.holds();
    assert_eq!(counts, [0, 0, 0, 3], "all are delivered");
    desk.spool.close();
}

#[test]
fn a_daemon_that_stops_leaves_its_requests_to_the_next() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    let fault = Fault::new(FaultCode::Unavailable, "the daemon is stopping");
    desk.event(&key, JobEvent::Failed(fault), Instant::now());
    assert_eq!(desk.unanswered(), 0);
    assert!(sent(&mut desk).is_empty());
    assert!(!desk.spool.find(&key).unwrap().1.state.is_answered());
}

#[test]
fn what_has_lost_its_model_is_computed_once_that_is_there() {
    let mut desk = small(4);
    let gone = || {
        let fault = Fault::new(FaultCode::ModelUnavailable, "the model is being unloaded");
        JobEvent::Failed(fault)
    };
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    desk.event(&key, gone(), Instant::now());
    assert!(desk.take_has_left() && desk.has_backlog());
    assert!(sent(&mut desk).is_empty());
    // One that is not safe yet is left once it is.
    let Verdict::Submit(prepared) = ask(&mut desk, "2", "hi") else {
        panic!("it is new");
    };
    let second = prepared.key.clone();
    assert!(desk.accept(*prepared));
    desk.event(&second, gone(), Instant::now());
    assert_eq!(desk.unanswered(), 1);
    desk.hear();
    assert_eq!((desk.unanswered(), desk.take_acks().len()), (0, 1));

    desk.fetch(true, Instant::now());
    let prepared = desk.hear().expect("it is tried again");
    // The model is not there yet: it waits on.
    let fault = Fault::new(FaultCode::ModelUnavailable, "the model is being loaded");
    assert!(matches!(desk.refused(&prepared, fault), Verdict::Later));
    desk.hear();
    desk.fetch(true, Instant::now());
    let prepared = desk.hear().expect("and again");
    assert_eq!(prepared.key, key);
    assert!(desk.accept(*prepared));
    finish(&mut desk, &key, "at last");
    let answer = &sent(&mut desk)[0].1;
    assert_eq!(
        (&answer["answer"], &answer["attempt"]),
        (&"at last".into(), &1.into())
    );
}

fn unavailable() -> Fault {
    Fault::new(FaultCode::Unavailable, "it fails")
}

#[test]
fn a_repetition_waits_for_a_disk_that_fails_and_hears_nothing_else() {
    let mut desk = small(1);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    sent(&mut desk);
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    let Ok(Note::Repeated(number, kept)) = desk.notes.blocking_recv().ok_or(()) else {
        panic!("it is read");
    };
    let failed = Note::Repeated(number, Box::new(Err(unavailable())));
    desk.note(failed, Instant::now());
    assert!(sent(&mut desk).is_empty() && desk.take_acks().is_empty());
    assert!(desk.take_read_failed() && desk.has_backlog());
    // Published before it was safe, it is not in the table yet.
    let unsafe_yet = (*kept).unwrap().map(|kept| Kept {
        answer: None,
        ..kept
    });
    desk.fetch(true, Instant::now());
    let early = Note::Repeated(number, Box::new(Ok(unsafe_yet)));
    desk.note(early, Instant::now());
    assert!(sent(&mut desk).is_empty() && desk.take_acks().is_empty());
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["answer"], "hello");
    assert_eq!(desk.take_acks(), [ACK]);
    // With nothing to acknowledge and no place it hears nothing rather than `busy`.
    let verdict = ask(&mut desk, "2", "hi");
    accept(&mut desk, verdict);
    let mut loose = message("andon/gw1/request/plc", r#"{"id":"1","prompt":"hi"}"#);
    loose.ack = None;
    let verdict = desk.receive(&loose, Instant::now());
    assert!(matches!(verdict, Verdict::Done));
    assert!(sent(&mut desk).is_empty());
}

#[test]
fn another_attempt_that_cannot_be_kept_is_refused_as_of_the_last_and_made_later() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    let fault = Fault::new(FaultCode::Internal, "broken");
    desk.event(&key, JobEvent::Failed(fault), Instant::now());
    desk.hear();
    sent(&mut desk);
    let Verdict::Submit(prepared) = ask(&mut desk, "1", "hi") else {
        panic!("another attempt");
    };
    assert!(desk.accept(*prepared));
    let serial = desk.jobs[&key].serial;
    let note = Note::Accepted(key.clone(), serial, Err(unavailable()));
    desk.note(note, Instant::now());
    let refused = &sent(&mut desk)[0].1;
    assert_eq!(
        (&refused["error"]["code"], &refused["attempt"]),
        (&"unavailable".into(), &1.into())
    );
    assert!(desk.has_backlog());
    desk.hear();
    desk.fetch(true, Instant::now());
    let prepared = desk.hear().expect("it is computed after all");
    assert!(desk.accept(*prepared));
    finish(&mut desk, &key, "at last");
    assert_eq!(sent(&mut desk)[0].1["attempt"], 2);
}

#[test]
fn an_answer_that_the_broker_refuses_is_sent_again_for_a_while_and_then_gives_way() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    let gate = Gate {
        version: Version::V5,
        packet_bytes_max: 65_536,
        window: 9,
    };
    let pauses = REFUSED_PAUSES.iter().map(Some).chain([None]);
    for (round, pause) in pauses.enumerate() {
        let mut count = 0;
        desk.outbox.pump(gate, Instant::now(), |_| {
            count += 1;
            true
        });
        assert_eq!(count, 1, "round {round}");
        let (_, header) = desk.spool.find(&key).unwrap();
        assert_eq!(header.state, State::Answered);
        desk.outbox.sent(1);
        desk.confirmed(1, Some("not authorized"));
        desk.fetch(true, Instant::now());
        assert!(desk.outbox.is_empty() && desk.fetched.is_empty());
        if let Some(pause) = pause {
            desk.fetch(true, Instant::now() + *pause);
            desk.hear();
        }
    }
    let (_, header) = desk.spool.find(&key).unwrap();
    assert_eq!(header.state, State::Delivered);
    assert!(desk.refused.is_empty());
}

#[test]
fn an_answer_of_an_earlier_process_goes_out_as_it_is_after_its_deadline_too() {
    let mut desk = small(4);
    let payload = r#"{"id":"1","prompt":"hi","deadline_ms":1}"#;
    let verdict = desk.receive(&message("andon/gw1/request/plc", payload), Instant::now());
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    let spool = desk.spool.clone();
    std::thread::sleep(Duration::from_millis(5));
    // It may have left before the last process ended.
    let mut desk = on(spool, 4);
    desk.fetch(true, Instant::now());
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["answer"], "hello");
}

#[test]
fn alarms_have_room_beyond_the_bound_and_come_out_of_the_spool_first() {
    let mut desk = small(8);
    for id in 0..8 {
        let verdict = ask(&mut desk, &id.to_string(), "hi");
        accept(&mut desk, verdict);
    }
    let alarm = |desk: &mut Bench, id: &str| {
        let payload = format!(r#"{{"id":"{id}","prompt":"fire","priority":"alarm"}}"#);
        desk.receive(&message("andon/gw1/request/plc", &payload), Instant::now())
    };
    assert!(matches!(ask(&mut desk, "8", "hi"), Verdict::Later));
    let verdict = alarm(&mut desk, "alarm");
    let key = accept(&mut desk, verdict);
    assert!(
        matches!(alarm(&mut desk, "another"), Verdict::Later),
        "an eighth"
    );
    // The next process has them all.
    let spool = desk.spool.clone();
    let mut desk = on(spool, 8);
    desk.fetch(true, Instant::now());
    let first = desk.hear().expect("to be computed");
    assert_eq!(first.key, key);
}

#[test]
fn an_answer_that_comes_too_late_is_kept_as_an_error_before_that_is_said() {
    let mut desk = small(4);
    let payload = r#"{"id":"1","prompt":"hi","deadline_ms":1}"#;
    let verdict = desk.receive(&message("andon/gw1/request/plc", payload), Instant::now());
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    std::thread::sleep(Duration::from_millis(5));
    assert!(sent(&mut desk).is_empty());
    desk.keep_late();
    assert!(sent(&mut desk).is_empty(), "it is not safe");
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["error"]["code"], "deadline_exceeded");
    let (_, header) = desk.spool.find(&key).unwrap();
    assert_eq!(header.fault.as_deref(), Some("deadline_exceeded"));
    assert_eq!(header.state, State::Delivered);
    let mut repeated = message("andon/gw1/request/plc", payload);
    repeated.repeated = true;
    assert!(matches!(
        desk.receive(&repeated, Instant::now()),
        Verdict::Later
    ));
    desk.hear();
    assert_eq!(sent(&mut desk)[0].1["error"]["code"], "deadline_exceeded");
}

#[test]
fn a_record_that_cannot_be_read_ends_and_its_client_may_ask_again() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    let (number, _) = desk.spool.find(&key).unwrap();
    let spool = desk.spool.clone();
    let mut desk = on(spool, 4);
    let damaged = Fault::new(FaultCode::Internal, "damaged");
    desk.note(Note::Read(number, Box::new(Err(damaged))), Instant::now());
    let (_, header) = desk.spool.find(&key).unwrap();
    assert_eq!(header.state, State::Delivered);
    assert_eq!(header.fault.as_deref(), Some("internal"));
    let verdict = ask(&mut desk, "1", "hi");
    accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    sent(&mut desk);
    // An answer that was delivered, too.
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    let damaged = Fault::new(FaultCode::Internal, "damaged");
    desk.note(
        Note::Repeated(number, Box::new(Err(damaged))),
        Instant::now(),
    );
    assert_eq!(sent(&mut desk)[0].1["error"]["code"], "unavailable");
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Submit(_)));
}

#[test]
fn what_was_erased_while_it_was_read_is_neither_computed_nor_said() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    accept(&mut desk, verdict);
    let mut desk = on(desk.spool.clone(), 4);
    desk.fetch(true, Instant::now());
    let note = desk.notes.blocking_recv().unwrap();
    desk.spool.drop_all(&Filter::default());
    assert!(desk.note(note, Instant::now()).is_none());
    assert!(sent(&mut desk).is_empty());
}

#[test]
fn a_message_without_an_id_that_the_broker_sends_again_is_the_same_request() {
    let mut desk = small(4);
    let mut nameless = message("andon/gw1/request/plc", r#"{"prompt":"hi"}"#);
    let verdict = desk.receive(&nameless, Instant::now());
    let first = accept(&mut desk, verdict);
    nameless.repeated = true;
    assert!(matches!(
        desk.receive(&nameless, Instant::now()),
        Verdict::Done
    ));
    // So it is to the next process.
    let mut desk = on(desk.spool.clone(), 4);
    assert!(matches!(
        desk.receive(&nameless, Instant::now()),
        Verdict::Done
    ));
    // Another one, or the same under another packet, is none of it.
    nameless.repeated = false;
    let verdict = desk.receive(&nameless, Instant::now());
    let second = accept(&mut desk, verdict);
    assert_ne!(first, second);
    nameless.repeated = true;
    nameless.ack = Some(AckToken {
        packet_id: 6,
        ..ACK
    });
    assert!(matches!(
        desk.receive(&nameless, Instant::now()),
        Verdict::Submit(_)
    ));
}

#[test]
fn an_answer_of_an_earlier_process_that_is_asked_for_goes_out_once() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    for fetched_first in [false, true] {
        let mut desk = on(desk.spool.clone(), 4);
        if fetched_first {
            desk.fetch(true, Instant::now());
        }
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
        desk.fetch(true, Instant::now());
        desk.hear();
        let gate = Gate {
            version: Version::V5,
            packet_bytes_max: 65_536,
            window: 9,
        };
        let mut count = 0;
        desk.outbox.pump(gate, Instant::now(), |_| {
            count += 1;
            true
        });
        assert_eq!(count, 1);
        assert!(desk.notes.try_recv().is_err());
    }
}
