//! What waits: for its turn, for its model, for the broker.

use super::*;
use crate::frontend::mqtt::outbox::Letter;
use crate::spool::Order;

fn gone() -> Fault {
    Fault::new(FaultCode::ModelUnavailable, "the model is away")
}

#[test]
fn an_answer_of_which_a_part_is_refused_is_sent_again_after_the_pause_and_not_before() {
    for last in [None, Some("not authorized")] {
        let mut desk = small(4);
        let verdict = ask(&mut desk, "1", "hi");
        let key = accept(&mut desk, verdict);
        finish(&mut desk, &key, "hello");
        let (number, _) = desk.spool.find(&key).unwrap();
        let mut part = Letter::passing(Outgoing {
            topic: "andon/gw1/response/plc/1".to_owned(),
            payload: Bytes::from_static(b"more"),
            retain: false,
            confirmed: true,
            properties: Properties::default(),
        });
        part.record = Some(number);
        desk.outbox.put(part);
        let gate = Gate {
            version: Version::V5,
            packet_bytes_max: 65_536,
            window: 9,
        };
        desk.outbox.pump(gate, Instant::now(), |_| true);
        for (packet_id, why) in [(1, Some("not authorized")), (2, last)] {
            desk.outbox.sent(packet_id);
            desk.confirmed(packet_id, why);
            desk.fetch(true, Instant::now());
            assert!(desk.fetched.is_empty(), "its time has not come");
        }
        let (_, header) = desk.spool.find(&key).unwrap();
        assert_eq!(header.state, State::Answered);
        desk.fetch(true, Instant::now() + REFUSED_PAUSES[0]);
        desk.hear();
        let sent = sent(&mut desk);
        assert_eq!((sent.len(), &sent[0].1["answer"]), (1, &"hello".into()));
        let (_, header) = desk.spool.find(&key).unwrap();
        assert_eq!(header.state, State::Delivered);
    }
}

#[test]
fn a_suspect_that_cannot_be_computed_now_lets_the_next_be() {
    let folder = tempfile::TempDir::new().unwrap();
    let config = SpoolConfig {
        dir: folder.path().to_path_buf(),
        ..SpoolConfig::default()
    };
    let open = || Spool::open(&config, Arc::new(Telemetry::new())).unwrap();
    let mut desk = on(open(), 4);
    for id in ["1", "2"] {
        let verdict = ask(&mut desk, id, "hi");
        let key = accept(&mut desk, verdict);
        desk.event(&key, JobEvent::Started, Instant::now());
    }
    // That they run is on the disk with the next that comes.
    let verdict = ask(&mut desk, "3", "hi");
    accept(&mut desk, verdict);
    let file = folder.path().join("spool.redb");
    let image = std::fs::read(&file).unwrap();
    desk.spool.close();
    drop(desk);
    std::fs::write(&file, image).unwrap();

    let mut desk = on(open(), 4);
    let records = desk.spool.list(&Filter::default());
    let numbers: Vec<u64> = records.iter().map(|(number, _)| *number).collect();
    let crashes: Vec<u8> = records.iter().map(|(_, header)| header.crashes).collect();
    assert_eq!(crashes, [1, 1, 0]);
    desk.fetch(true, Instant::now());
    assert!(!desk.spool.may_run(numbers[1]));
    let prepared = desk.hear().expect("the first");
    assert_eq!(prepared.key.id, "1");
    desk.refused(&prepared, gone());
    let header = desk.spool.get(numbers[0]).unwrap();
    assert_eq!(
        header.state,
        State::Accepted,
        "no end of the daemon is its doing"
    );
    assert!(desk.has_backlog() && desk.spool.may_run(numbers[1]));
    // Nor does one keep its place that cannot be read now.
    let unread = Note::Read(numbers[1], Box::new(Err(unavailable())));
    desk.note(unread, Instant::now());
    assert!(desk.spool.may_run(numbers[0]));
    desk.spool.close();
}

#[test]
fn a_deadline_that_passes_while_the_model_is_away_ends_the_request() {
    let mut desk = small(4);
    let payload = r#"{"id":"1","prompt":"hi","deadline_ms":1}"#;
    let verdict = desk.receive(&message("andon/gw1/request/plc", payload), Instant::now());
    let key = accept(&mut desk, verdict);
    desk.event(&key, JobEvent::Failed(gone()), Instant::now());
    std::thread::sleep(Duration::from_millis(5));
    desk.fetch(true, Instant::now());
    assert!(desk.hear().is_none(), "nothing is left to compute");
    desk.hear();
    assert_eq!(sent(&mut desk)[0].0, "andon/gw1/event/expired");
    desk.keep_late();
    desk.hear();
    let sent = sent(&mut desk);
    assert_eq!(sent[0].1["error"]["code"], "deadline_exceeded");
}

#[test]
fn what_is_dropped_takes_no_acknowledgement_with_it() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    sent(&mut desk);
    let (number, _) = desk.spool.find(&key).unwrap();
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    desk.hear();
    assert!(desk.take_acks().is_empty(), "its answer has not left");
    assert_eq!(desk.order(Order::Dropped(number, key)), None);
    assert_eq!(desk.take_acks(), [ACK]);
    assert!(sent(&mut desk).is_empty());
}

#[test]
fn who_asks_for_what_is_being_read_hears_that_it_cannot_be() {
    let mut desk = small(4);
    let verdict = ask(&mut desk, "1", "hi");
    let key = accept(&mut desk, verdict);
    finish(&mut desk, &key, "hello");
    let (number, _) = desk.spool.find(&key).unwrap();
    let mut desk = on(desk.spool.clone(), 4);
    desk.fetch(true, Instant::now());
    assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Later));
    let damaged = Fault::new(FaultCode::Internal, "damaged");
    desk.note(Note::Read(number, Box::new(Err(damaged))), Instant::now());
    assert!(desk.repeats.is_empty());
    assert_eq!(sent(&mut desk)[0].1["error"]["code"], "unavailable");
    assert_eq!(desk.take_acks(), [ACK]);
}
