//! What goes wrong at the server, one way after the other.

use std::time::Duration;

use andon_tests::upstream::{Fake, Greeting, Step, end, event, events_head, good, status, text};
use andond::config::upstream::UpstreamConfig;
use andond::upstream::FaultKind;
use serde_json::json;

use super::{ask, ask_for, at, question, upstreams};

fn send(bytes: impl Into<Vec<u8>>) -> Step {
    Step::Send(bytes.into())
}

/// Every way in which a reply is none, with the kind of fault and whether a part of an answer was handed over before.
fn ways() -> Vec<(&'static str, Vec<Step>, FaultKind, bool)> {
    let head = events_head;
    let half = || [events_head(), text("It is ")].concat();
    let json = |length: usize, body: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
    };
    let answer =
        json!({"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}).to_string();
    let short = json(answer.len() - 5, &answer);
    let long = json(answer.len() + 50, &answer);
    let ms = Duration::from_millis;
    use FaultKind::*;
    vec![
        ("says nothing", vec![Step::Hang], Slow, false),
        (
            "says its head and nothing more",
            vec![send(head()), Step::Hang],
            Slow,
            false,
        ),
        (
            "says its head slowly",
            vec![Step::Forever(b"HTTP/1.1 200 OK\r\nA".to_vec(), ms(100))],
            Slow,
            false,
        ),
        (
            "comments for ever",
            vec![send(head()), Step::Forever(b": there\n\n".to_vec(), ms(20))],
            Slow,
            false,
        ),
        (
            "stops in the middle",
            vec![send(half()), Step::Hang],
            Slow,
            true,
        ),
        (
            "is alive and says nothing more",
            vec![send(half()), Step::Forever(b": there\n\n".to_vec(), ms(20))],
            Slow,
            true,
        ),
        (
            "goes on for ever, slowly",
            vec![send(half()), Step::Forever(text("and "), ms(50))],
            Slow,
            true,
        ),
        (
            "goes on for ever, fast",
            vec![send(half()), Step::Forever(text("and ").repeat(100), ms(1))],
            Endless,
            true,
        ),
        (
            "thinks for ever",
            vec![
                send(head()),
                Step::Forever(
                    event(&json!({"choices": [{"delta": {"reasoning_content": "x"}}]})),
                    ms(20),
                ),
            ],
            Slow,
            false,
        ),
        (
            "has one line without end",
            vec![
                send(head()),
                send("data: "),
                Step::Forever(vec![b'x'; 65_536], ms(1)),
            ],
            Endless,
            false,
        ),
        (
            "has a head without end",
            vec![
                send("HTTP/1.1 200 OK\r\n"),
                Step::Forever(format!("X: {}\r\n", "x".repeat(1000)).into_bytes(), ms(1)),
            ],
            Endless,
            false,
        ),
        ("breaks off at once", vec![Step::Reset], Broken, false),
        ("hangs up at once", vec![Step::Close], Broken, false),
        (
            "breaks off in its head",
            vec![send("HTTP/1.1 200 O"), Step::Close],
            Broken,
            false,
        ),
        (
            "breaks off after its head",
            vec![send(head()), Step::Reset],
            Broken,
            false,
        ),
        (
            "ends after its head",
            vec![send(head()), Step::Close],
            Broken,
            false,
        ),
        (
            "breaks off in the middle",
            vec![send(half()), Step::Wait(ms(50)), Step::Reset],
            Broken,
            true,
        ),
        (
            "ends in the middle",
            vec![send(half()), Step::Close],
            Broken,
            true,
        ),
        (
            "ends within an event",
            vec![
                send([half(), b"data: {\"choices\":[{\"de".to_vec()].concat()),
                Step::Close,
            ],
            Broken,
            true,
        ),
        ("says too small a length", vec![send(short)], Garbled, false),
        (
            "says too large a length",
            vec![send(long), Step::Close],
            Broken,
            false,
        ),
        (
            "says too large a length and stays",
            vec![send(json(answer.len() + 50, &answer)), Step::Hang],
            Slow,
            false,
        ),
        (
            "says two lengths",
            vec![send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{answer}"
            ))],
            Garbled,
            false,
        ),
        (
            "says no length",
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: many\r\n\r\n",
            )],
            Garbled,
            false,
        ),
        (
            "says a chunk's length that is none",
            vec![
                send(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                ),
                Step::Close,
            ],
            Garbled,
            false,
        ),
        (
            "says an endless chunk's length",
            vec![
                send(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
                ),
                Step::Close,
            ],
            Garbled,
            false,
        ),
        (
            "does not speak HTTP",
            vec![send(vec![0xff; 512]), Step::Close],
            Garbled,
            false,
        ),
        (
            "speaks another protocol",
            vec![send("220 mail.plant ESMTP\r\n"), Step::Close],
            Garbled,
            false,
        ),
        (
            "sends a page",
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
            )],
            Garbled,
            false,
        ),
        (
            "sends a page as JSON",
            status("200 OK", "", "<html></html>"),
            Garbled,
            false,
        ),
        (
            "sends a page as events",
            vec![
                send([head(), b"<html>\n</html>\n".to_vec()].concat()),
                Step::Close,
            ],
            Garbled,
            false,
        ),
        (
            "sends bytes as events",
            vec![send([head(), (0..=255).collect()].concat()), Step::Close],
            Garbled,
            false,
        ),
        (
            "sends bytes in the middle",
            vec![
                send(half()),
                Step::Wait(ms(50)),
                send(b"data: \xff\xfe\n\n".to_vec()),
                Step::Close,
            ],
            Garbled,
            true,
        ),
        (
            "sends other JSON",
            status("200 OK", "", "{\"choices\": 5}"),
            Garbled,
            false,
        ),
        (
            "sends an empty answer",
            status("200 OK", "", "{}"),
            Garbled,
            false,
        ),
        (
            "sends nothing as JSON",
            status("200 OK", "", ""),
            Garbled,
            false,
        ),
        (
            "compresses",
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            )],
            Garbled,
            false,
        ),
        (
            "has no content",
            vec![send("HTTP/1.1 204 No Content\r\n\r\n")],
            Garbled,
            false,
        ),
        (
            "fails in the middle",
            vec![
                send(half()),
                Step::Wait(ms(50)),
                send(event(&json!({"error": {"message": "overloaded"}}))),
                Step::Close,
            ],
            Failed,
            true,
        ),
        (
            "fails",
            status(
                "500 Internal Server Error",
                "",
                "{\"error\":{\"type\":\"server_error\"}}",
            ),
            Failed,
            false,
        ),
        (
            "fails without a word",
            status("502 Bad Gateway", "", ""),
            Failed,
            false,
        ),
        (
            "fails without end",
            vec![
                send("HTTP/1.1 500 No\r\n\r\n"),
                Step::Forever(vec![b'x'; 4096], ms(1)),
            ],
            Failed,
            false,
        ),
        (
            "is busy",
            status("429 Too Many Requests", "Retry-After: 60\r\n", ""),
            Busy,
            false,
        ),
        (
            "is busy and does not say how long",
            status("429 Too Many Requests", "", ""),
            Busy,
            false,
        ),
        (
            "is away and says how long",
            status("503 Service Unavailable", "Retry-After: 60\r\n", ""),
            Busy,
            false,
        ),
        (
            "is away",
            status("503 Service Unavailable", "", ""),
            Failed,
            false,
        ),
        (
            "does not take the key",
            status(
                "401 Unauthorized",
                "",
                "{\"error\":{\"code\":\"invalid_api_key\"}}",
            ),
            Denied,
            false,
        ),
        (
            "does not take the question",
            status(
                "400 Bad Request",
                "",
                "{\"error\":{\"code\":\"context_length_exceeded\"}}",
            ),
            Rejected,
            false,
        ),
        (
            "does not know the model",
            status("404 Not Found", "", ""),
            Rejected,
            false,
        ),
        (
            "withholds",
            vec![
                send(
                    [
                        head(),
                        event(
                            &json!({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}),
                        ),
                    ]
                    .concat(),
                ),
                Step::Close,
            ],
            Withheld,
            false,
        ),
    ]
}

#[tokio::test]
async fn every_way_of_going_wrong_is_a_fault_of_its_kind_and_in_time() {
    for (name, script, kind, sent_text) in ways() {
        let fake = Fake::start(Greeting::Plain, vec![script])
            .await
            .expect("it listens");
        let all = upstreams(vec![at("plant", &fake)]);
        let outcome = ask(&all).await;
        let Err(fault) = &outcome.end else {
            panic!("{name}: {outcome:?}");
        };
        assert_eq!(fault.kind, kind, "{name}: {fault}");
        assert_eq!(fault.sent_text, sent_text, "{name}: {:?}", outcome.pieces);
        assert_eq!(fault.sent_text, !outcome.text.is_empty(), "{name}");
        assert_eq!(fault.upstream.as_deref(), Some("plant"), "{name}");
        // The longest of its times, and what a busy machine takes.
        assert!(
            outcome.took < Duration::from_secs(5),
            "{name}: {:?}",
            outcome.took
        );
        assert_eq!(fake.seen().len(), 1, "{name} is asked again");
    }
}

#[tokio::test]
async fn whatever_goes_wrong_another_answers_unless_something_was_said() {
    for (name, script, _, sent_text) in ways() {
        let bad = Fake::start(Greeting::Plain, vec![script])
            .await
            .expect("it listens");
        let good = Fake::start(Greeting::Plain, vec![good(&["It is overheated."])])
            .await
            .expect("it listens");
        let second = UpstreamConfig {
            priority: 1,
            ..at("second", &good)
        };
        let outcome = ask(&upstreams(vec![at("first", &bad), second])).await;
        if sent_text {
            assert!(outcome.fault().sent_text, "{name}");
            assert!(good.seen().is_empty(), "{name}");
        } else {
            assert_eq!(outcome.text, "It is overheated.", "{name}");
            assert_eq!(&*outcome.answered().upstream, "second", "{name}");
        }
    }
}

#[tokio::test]
async fn a_deadline_is_kept_whatever_the_server_does() {
    for (name, script, kind, _) in ways() {
        if kind != FaultKind::Slow {
            continue;
        }
        let fake = Fake::start(Greeting::Plain, vec![script])
            .await
            .expect("it listens");
        let patient = UpstreamConfig {
            first_token_timeout_ms: 60_000,
            token_timeout_ms: 60_000,
            total_timeout_ms: 60_000,
            retries_max: 5,
            ..at("plant", &fake)
        };
        let outcome = ask_for(
            &upstreams(vec![patient]),
            question(),
            Some(Duration::from_millis(300)),
        )
        .await;
        let fault = outcome.fault();
        // A stream without end has by then said more than it may, if the machine is fast.
        assert!(
            matches!(fault.kind, FaultKind::Deadline | FaultKind::Endless),
            "{name}: {fault}"
        );
        assert!(
            outcome.took < Duration::from_millis(1500),
            "{name}: {:?}",
            outcome.took
        );
    }
}

#[tokio::test]
async fn what_follows_the_end_of_an_answer_does_not_matter() {
    let stop = || event(&json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
    let whole = || [events_head(), text("Yes."), end("stop")].concat();
    for (name, script) in [
        ("it stays", vec![send(whole()), Step::Hang]),
        (
            "it breaks off",
            vec![
                send(whole()),
                Step::Wait(Duration::from_millis(50)),
                Step::Reset,
            ],
        ),
        (
            "it goes on",
            vec![
                send(whole()),
                Step::Forever(text("No."), Duration::from_millis(1)),
            ],
        ),
        (
            "it says no more",
            vec![
                send([events_head(), text("Yes."), stop()].concat()),
                Step::Hang,
            ],
        ),
        (
            "it ends",
            vec![
                send([events_head(), text("Yes."), stop()].concat()),
                Step::Close,
            ],
        ),
    ] {
        let fake = Fake::start(Greeting::Plain, vec![script])
            .await
            .expect("it listens");
        let outcome = ask(&upstreams(vec![at("plant", &fake)])).await;
        assert_eq!(outcome.text, "Yes.", "{name}");
        outcome.answered();
    }
}

#[tokio::test]
async fn what_cannot_have_begun_is_asked_again_after_a_pause_and_nothing_else_is() {
    let retrying = |fake: &Fake| UpstreamConfig {
        retries_max: 2,
        ..at("plant", fake)
    };
    let fails = || status("500 Internal Server Error", "", "");
    let fake = Fake::start(Greeting::Plain, vec![fails(), fails(), good(&["At last."])])
        .await
        .expect("it listens");
    let outcome = ask(&upstreams(vec![retrying(&fake)])).await;
    assert_eq!(
        (outcome.text.as_str(), outcome.answered().attempts),
        ("At last.", 3)
    );
    assert!(
        outcome.took >= Duration::from_millis(375),
        "{:?}",
        outcome.took
    );

    let busy = status("429 Too Many Requests", "Retry-After: 1\r\n", "");
    let fake = Fake::start(Greeting::Plain, vec![busy, good(&["Now."])])
        .await
        .expect("it listens");
    let outcome = ask(&upstreams(vec![retrying(&fake)])).await;
    assert_eq!(
        (outcome.text.as_str(), outcome.answered().attempts),
        ("Now.", 2)
    );
    assert!(
        outcome.took >= Duration::from_millis(990),
        "{:?}",
        outcome.took
    );

    // Longer than it may take is not waited for, and it is left alone until then.
    let busy = status("429 Too Many Requests", "Retry-After: 30\r\n", "");
    let fake = Fake::start(Greeting::Plain, vec![busy, good(&["Now."])])
        .await
        .expect("it listens");
    let all = upstreams(vec![retrying(&fake)]);
    for _ in 0..2 {
        let outcome = ask(&all).await;
        assert_eq!(outcome.fault().kind, FaultKind::Busy);
        let after = outcome
            .fault()
            .retry_after
            .expect("it has said when")
            .as_secs();
        assert!((28..=30).contains(&after), "{after}");
    }
    assert_eq!(fake.seen().len(), 1);
    assert!(!all.link().borrow().up);

    for script in [
        vec![Step::Reset],
        vec![Step::Close],
        vec![Step::Hang],
        status("400 Bad Request", "", ""),
    ] {
        let fake = Fake::start(Greeting::Plain, vec![script, good(&["Again."])])
            .await
            .expect("it listens");
        let outcome = ask(&upstreams(vec![retrying(&fake)])).await;
        outcome.fault();
        assert_eq!(fake.seen().len(), 1);
    }
    // There is no time for a further attempt.
    let fake = Fake::start(Greeting::Plain, vec![fails()])
        .await
        .expect("it listens");
    let outcome = ask_for(
        &upstreams(vec![retrying(&fake)]),
        question(),
        Some(Duration::from_millis(100)),
    )
    .await;
    assert!(outcome.took < Duration::from_millis(600));
    assert_eq!(outcome.fault().kind, FaultKind::Failed);
}

#[tokio::test]
async fn a_redirect_is_followed_by_nobody() {
    let other = Fake::start(Greeting::Plain, vec![good(&["Hello."])])
        .await
        .expect("it listens");
    for code in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let to = format!(
            "Location: http://{}/v1/chat/completions\r\n",
            other.address()
        );
        let fake = Fake::start(Greeting::Plain, vec![status(code, &to, "")])
            .await
            .expect("it listens");
        let outcome = ask(&upstreams(vec![at("plant", &fake)])).await;
        assert_eq!(outcome.fault().kind, FaultKind::Redirected, "{code}");
        let address = other.address().to_string();
        assert!(!outcome.fault().to_string().contains(&address));
    }
    assert_eq!(other.connections(), 0);
}
