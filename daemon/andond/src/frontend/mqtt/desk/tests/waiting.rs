//! What waits: for its turn, for its model, for the broker.

use super::*;
use crate::frontend::mqtt::outbox::Letter;
use crate::spool::Order;

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
