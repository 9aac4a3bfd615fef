//! HTTP/2 that goes wrong, frame by frame.

use std::time::Duration;

use andon_tests::certificates::Authority;
use andon_tests::upstream::{Frame, Step, data, end, frame, frames, head, text};
use andond::config::upstream::UpstreamConfig;
use andond::upstream::FaultKind;

use super::secure::{authority, secure};
use super::{Way, ask, ask_for, greets, half_way, question, until, upstreams, way};

/// Reasons for ending streams and connections, as RFC 9113 numbers them.
const NO_ERROR: [u8; 4] = [0; 4];
const INTERNAL: [u8; 4] = [0, 0, 0, 2];
const REFUSED: [u8; 4] = [0, 0, 0, 7];
const CALM: [u8; 4] = [0, 0, 0, 11];

fn reset(reason: [u8; 4]) -> Vec<u8> {
    frame(Frame::Reset, 0, true, &reason)
}

/// The end of a connection on which streams up to this one were looked at.
fn go_away(last: u32, reason: [u8; 4]) -> Vec<u8> {
    let payload = [last.to_be_bytes(), reason].concat();
    frame(Frame::GoAway, 0, false, &payload)
}

fn settings(payload: &[u8]) -> Vec<u8> {
    frame(Frame::Settings, 0, false, payload)
}

/// A good answer.
fn answer(text_of_it: &str) -> Vec<Step> {
    let body = [text(text_of_it), end("stop")].concat();
    vec![Step::Send([head(), data(&body, true)].concat())]
}

fn ways() -> Vec<Way> {
    use FaultKind::*;
    let ms = Duration::from_millis;
    let send = |parts: &[Vec<u8>]| Step::Send(parts.concat());
    let half = || [head(), data(&text("It is "), false)].concat();
    let begun = || settings(&[]);
    // A header that is not indexed: a name and a value of so many bytes.
    let header = |bytes: usize| {
        let length = u16::try_from(bytes - 127).expect("short");
        // Its length in seven bits, and the rest of that in two sevens more.
        let more = [0x80 | (length & 0x7f) as u8, (length >> 7) as u8];
        [&[0x00, 1, b'x', 0x7f][..], &more, &vec![b'y'; bytes]].concat()
    };
    vec![
        half_way(
            "goes away in the middle",
            Broken,
            vec![send(&[half(), go_away(1, NO_ERROR)]), Step::Close],
        ),
        half_way(
            "goes away in the middle for a fault of its own",
            Broken,
            vec![
                send(&[half()]),
                Step::Wait(ms(50)),
                send(&[go_away(1, INTERNAL)]),
                Step::Close,
            ],
        ),
        half_way(
            "says that it will go away, and then nothing",
            Slow,
            vec![send(&[half(), go_away(1, NO_ERROR)]), Step::Hang],
        ),
        way(
            "goes away for a fault of its own",
            Broken,
            vec![send(&[begun(), go_away(1, INTERNAL)]), Step::Close],
        ),
        way(
            "goes away since it is asked too much",
            Busy,
            vec![send(&[begun(), go_away(0, CALM)]), Step::Hang],
        ),
        half_way(
            "ends the stream in the middle",
            Broken,
            vec![
                send(&[half()]),
                Step::Wait(ms(50)),
                send(&[reset(INTERNAL)]),
                Step::Hang,
            ],
        ),
        half_way(
            "ends the stream in the middle as if all were well",
            Broken,
            vec![
                send(&[half()]),
                Step::Wait(ms(50)),
                send(&[reset(NO_ERROR)]),
                Step::Hang,
            ],
        ),
        half_way(
            "ends the body in the middle",
            Broken,
            vec![send(&[half(), data(&[], true)]), Step::Hang],
        ),
        half_way(
            "ends in the middle with trailers",
            Broken,
            vec![
                send(&[
                    half(),
                    frame(Frame::Headers, 0x5, true, &[0x00, 1, b'x', 1, b'y']),
                ]),
                Step::Hang,
            ],
        ),
        half_way(
            "stops in the middle",
            Slow,
            vec![send(&[half()]), Step::Hang],
        ),
        half_way(
            "breaks off in the middle",
            Broken,
            vec![send(&[half()]), Step::Wait(ms(50)), Step::Reset],
        ),
        way(
            "refuses the stream",
            Busy,
            vec![send(&[begun(), reset(REFUSED)])],
        ),
        way(
            "ends the stream",
            Broken,
            vec![send(&[begun(), reset(INTERNAL)]), Step::Hang],
        ),
        way("says nothing", Slow, vec![Step::Hang]),
        way(
            "says its settings and nothing more",
            Slow,
            vec![send(&[begun()]), Step::Hang],
        ),
        // The setting 4 is how much may be sent of a body before more is allowed.
        way(
            "takes nothing of the question",
            Slow,
            vec![send(&[settings(&[0, 4, 0, 0, 0, 0])]), Step::Hang],
        ),
        way(
            "asks for ever whether somebody is there",
            Slow,
            vec![
                send(&[begun()]),
                Step::Forever(frame(Frame::Ping, 0, false, &[7; 8]).repeat(64), ms(1)),
            ],
        ),
        way(
            "says its settings for ever",
            Slow,
            vec![Step::Forever(
                settings(&[0, 4, 0, 1, 0, 0]).repeat(64),
                ms(1),
            )],
        ),
        half_way(
            "is there for ever and says nothing more",
            Slow,
            vec![
                send(&[half()]),
                Step::Forever(frame(Frame::Ping, 0, false, &[7; 8]), ms(5)),
            ],
        ),
        half_way(
            "sends nothing for ever",
            Garbled,
            vec![
                send(&[half()]),
                Step::Forever(data(&[], false).repeat(64), ms(1)),
            ],
        ),
        way(
            "has a head without end",
            Garbled,
            vec![
                send(&[begun(), frame(Frame::Headers, 0, true, &[0x88])]),
                Step::Forever(frame(Frame::Continuation, 0, true, &header(1_000)), ms(1)),
            ],
        ),
        way(
            "has a head of empty pieces without end",
            Garbled,
            vec![
                send(&[begun(), frame(Frame::Headers, 0, true, &[0x88])]),
                Step::Forever(frame(Frame::Continuation, 0, true, &[]).repeat(16), ms(1)),
            ],
        ),
        way(
            "has a head that is too large",
            Garbled,
            vec![
                send(&[
                    begun(),
                    frame(
                        Frame::Headers,
                        0,
                        true,
                        &[&[0x88][..], &header(16_000)].concat(),
                    ),
                    frame(Frame::Continuation, 0, true, &header(16_000)).repeat(4),
                    frame(Frame::Continuation, 0x4, true, &header(16_000)),
                ]),
                Step::Hang,
            ],
        ),
        way(
            "has a head that refers to nothing",
            Garbled,
            vec![
                send(&[begun(), frame(Frame::Headers, 0x4, true, &[0xff, 0x7f])]),
                Step::Hang,
            ],
        ),
        way(
            "has two heads at once",
            Garbled,
            vec![
                send(&[
                    begun(),
                    frame(Frame::Headers, 0, true, &[0x88]),
                    data(b"x", false),
                ]),
                Step::Hang,
            ],
        ),
        way(
            "begins with a head of something else",
            Garbled,
            vec![
                send(&[begun(), frame(Frame::Push, 0x4, true, &[0, 0, 0, 2, 0x82])]),
                Step::Hang,
            ],
        ),
        way(
            "allows nothing more",
            Garbled,
            vec![
                send(&[begun(), frame(Frame::Window, 0, false, &[0; 4])]),
                Step::Hang,
            ],
        ),
        way(
            "allows too much",
            Garbled,
            vec![
                send(&[
                    begun(),
                    frame(Frame::Window, 0, false, &[0x7f, 0xff, 0xff, 0xff]),
                ]),
                Step::Hang,
            ],
        ),
        way(
            "has a frame that is too long",
            Garbled,
            vec![
                send(&[begun(), vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]]),
                Step::Hang,
            ],
        ),
        way(
            "has settings of no length",
            Garbled,
            vec![send(&[settings(&[0, 4, 0])]), Step::Hang],
        ),
        way(
            "speaks HTTP/1.1 after all",
            Garbled,
            vec![
                Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()),
                Step::Hang,
            ],
        ),
        way(
            "talks nonsense",
            Garbled,
            vec![Step::Send(vec![0xa5; 4096]), Step::Hang],
        ),
        way("closes", Broken, vec![Step::Close]),
        way("breaks off", Broken, vec![Step::Reset]),
    ]
}

fn by_frames(authority: &Authority) -> andon_tests::upstream::Greeting {
    frames(&authority.path("host.pem"), &authority.path("host.key")).expect("a certificate")
}

#[tokio::test]
async fn every_way_of_going_wrong_is_a_fault_of_its_kind_and_the_next_question_is_answered() {
    let authority = authority();
    let mut wrong = Vec::new();
    for Way {
        name,
        kind,
        says_text,
        script,
    } in ways()
    {
        let fake = greets(by_frames(&authority), vec![script]).await;
        let config = UpstreamConfig {
            // Each failure is another, and none has it left alone.
            failures_max: 9,
            ..secure(&fake, &authority)
        };
        let all = upstreams(vec![config]);
        let outcome = ask(&all).await;
        let told = outcome.end.as_ref().err();
        let told = told.map(|fault| (fault.kind, fault.sent_text));
        let in_time = outcome.took < Duration::from_secs(5) && fake.seen().len() == 1;
        if kind == FaultKind::Busy {
            // It is left alone for as long as it takes.
            tokio::time::sleep(Duration::from_millis(1_100)).await;
        }
        fake.now(answer("Yes."));
        let next = ask(&all).await;
        if told != Some((kind, says_text)) || !in_time || next.text != "Yes." {
            wrong.push(format!("{name}: {outcome:?} {next:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_deadline_is_kept_whatever_the_server_does() {
    let authority = authority();
    for Way { name, script, .. } in ways().into_iter().filter(|way| way.kind == FaultKind::Slow) {
        let fake = greets(by_frames(&authority), vec![script]).await;
        let patient = UpstreamConfig {
            first_token_timeout_ms: 60_000,
            token_timeout_ms: 60_000,
            total_timeout_ms: 60_000,
            ..secure(&fake, &authority)
        };
        let deadline = Some(Duration::from_millis(400));
        let outcome = ask_for(&upstreams(vec![patient]), question(), deadline).await;
        assert_eq!(
            outcome.fault().kind,
            FaultKind::Deadline,
            "{name}: {}",
            outcome.fault()
        );
        assert!(
            outcome.took < Duration::from_millis(1500),
            "{name}: {:?}",
            outcome.took
        );
    }
}

#[tokio::test]
async fn a_server_that_goes_away_in_order_finishes_its_answer_and_gets_no_further_question() {
    let authority = authority();
    let body = [text("Yes."), end("stop")].concat();
    let parting = vec![
        Step::Send([head(), go_away(1, NO_ERROR)].concat()),
        Step::Wait(Duration::from_millis(50)),
        Step::Send(data(&body, true)),
    ];
    let fake = greets(by_frames(&authority), vec![parting]).await;
    let all = upstreams(vec![secure(&fake, &authority)]);
    assert_eq!(ask(&all).await.text, "Yes.");
    fake.now(answer("Again."));
    assert_eq!(ask(&all).await.text, "Again.");
    let by: Vec<usize> = fake.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(by, [0, 1]);
}

#[tokio::test]
async fn what_follows_the_end_of_an_answer_does_not_matter() {
    let authority = authority();
    let said = [text("Yes."), end("stop")].concat();
    for (name, rest) in [
        ("its stream is ended", Step::Send(reset(NO_ERROR))),
        ("its stream is ended as failed", Step::Send(reset(INTERNAL))),
        ("it says no more", Step::Hang),
        ("it goes away", Step::Send(go_away(1, INTERNAL))),
        (
            "it goes on",
            Step::Forever(data(&text("No."), false), Duration::from_millis(1)),
        ),
    ] {
        let script = vec![Step::Send([head(), data(&said, false)].concat()), rest];
        let fake = greets(by_frames(&authority), vec![script]).await;
        let outcome = ask(&upstreams(vec![secure(&fake, &authority)])).await;
        assert_eq!(outcome.text, "Yes.", "{name}: {outcome:?}");
        outcome.answered();
    }
}

#[tokio::test]
async fn who_does_not_wait_any_more_ends_the_stream_and_no_other() {
    let authority = authority();
    let slow = vec![
        Step::Send([head(), data(&text("a"), false)].concat()),
        Step::Wait(Duration::from_millis(300)),
        Step::Send(data(&end("stop"), true)),
    ];
    let fake = greets(by_frames(&authority), vec![answer("Yes."), slow]).await;
    let all = upstreams(vec![secure(&fake, &authority)]);
    // From here on there is a connection for all.
    assert_eq!(ask(&all).await.text, "Yes.");
    let mut leaving = all.ask(super::permit(), question(), None);
    assert!(leaving.next().await.is_some());
    drop(leaving);
    assert_eq!(ask(&all).await.text, "a");
    until("all are there", || fake.seen().len() == 3).await;
    assert_eq!(fake.connections(), 1);
}
