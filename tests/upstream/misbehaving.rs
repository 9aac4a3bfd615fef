//! What goes wrong at the server, one way after the other.

use std::time::Duration;

use andon_tests::upstream::{Fake, Step, end, event, events_head, good, status, text};
use andond::config::upstream::UpstreamConfig;
use andond::upstream::FaultKind;
use serde_json::json;

use super::{Way, ask, ask_for, at, half_way, question, server, servers, upstreams, way};

fn send(bytes: impl Into<Vec<u8>>) -> Step {
    Step::Send(bytes.into())
}

/// Every way that was thought of.
fn ways() -> Vec<Way> {
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
        way("says nothing", Slow, vec![Step::Hang]),
        way(
            "says its head and nothing more",
            Slow,
            vec![send(head()), Step::Hang],
        ),
        way(
            "says its head slowly",
            Slow,
            vec![Step::Forever(b"HTTP/1.1 200 OK\r\nA".to_vec(), ms(100))],
        ),
        way(
            "comments for ever",
            Slow,
            vec![send(head()), Step::Forever(b": there\n\n".to_vec(), ms(20))],
        ),
        half_way("stops in the middle", Slow, vec![send(half()), Step::Hang]),
        half_way(
            "is alive and says nothing more",
            Slow,
            vec![send(half()), Step::Forever(b": there\n\n".to_vec(), ms(20))],
        ),
        half_way(
            "goes on for ever, slowly",
            Slow,
            vec![send(half()), Step::Forever(text("and "), ms(50))],
        ),
        half_way(
            "goes on for ever, fast",
            Endless,
            vec![send(half()), Step::Forever(text("and ").repeat(100), ms(1))],
        ),
        way(
            "thinks for ever",
            Slow,
            vec![
                send(head()),
                Step::Forever(
                    event(&json!({"choices": [{"delta": {"reasoning_content": "x"}}]})),
                    ms(20),
                ),
            ],
        ),
        way(
            "has one line without end",
            Endless,
            vec![
                send(head()),
                send("data: "),
                Step::Forever(vec![b'x'; 65_536], ms(1)),
            ],
        ),
        way(
            "has a head without end",
            Endless,
            vec![
                send("HTTP/1.1 200 OK\r\n"),
                Step::Forever(format!("X: {}\r\n", "x".repeat(1000)).into_bytes(), ms(1)),
            ],
        ),
        way("breaks off at once", Broken, vec![Step::Reset]),
        way("hangs up at once", Broken, vec![Step::Close]),
        way(
            "breaks off in its head",
            Broken,
            vec![send("HTTP/1.1 200 O"), Step::Close],
        ),
        way(
            "breaks off after its head",
            Broken,
            vec![send(head()), Step::Reset],
        ),
        way(
            "ends after its head",
            Broken,
            vec![send(head()), Step::Close],
        ),
        half_way(
            "breaks off in the middle",
            Broken,
            vec![send(half()), Step::Wait(ms(50)), Step::Reset],
        ),
        half_way(
            "ends in the middle",
            Broken,
            vec![send(half()), Step::Close],
        ),
        half_way(
            "ends within an event",
            Broken,
            vec![
                send([half(), b"data: {\"choices\":[{\"de".to_vec()].concat()),
                Step::Close,
            ],
        ),
        way("says too small a length", Garbled, vec![send(short)]),
        way(
            "says too large a length",
            Broken,
            vec![send(long), Step::Close],
        ),
        way(
            "says too large a length and stays",
            Slow,
            vec![send(json(answer.len() + 50, &answer)), Step::Hang],
        ),
        way(
            "says two lengths",
            Garbled,
            vec![send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{answer}"
            ))],
        ),
        way(
            "says no length",
            Garbled,
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: many\r\n\r\n",
            )],
        ),
        way(
            "says a chunk's length that is none",
            Garbled,
            vec![
                send(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                ),
                Step::Close,
            ],
        ),
        way(
            "says an endless chunk's length",
            Garbled,
            vec![
                send(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
                ),
                Step::Close,
            ],
        ),
        way(
            "does not speak HTTP",
            Garbled,
            vec![send(vec![0xff; 512]), Step::Close],
        ),
        way(
            "speaks another protocol",
            Garbled,
            vec![send("220 mail.plant ESMTP\r\n"), Step::Close],
        ),
        way(
            "sends a page",
            Garbled,
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
            )],
        ),
        way(
            "sends a page as JSON",
            Garbled,
            status("200 OK", "", "<html></html>"),
        ),
        way(
            "sends a page as events",
            Garbled,
            vec![
                send([head(), b"<html>\n</html>\n".to_vec()].concat()),
                Step::Close,
            ],
        ),
        way(
            "sends bytes as events",
            Garbled,
            vec![send([head(), (0..=255).collect()].concat()), Step::Close],
        ),
        half_way(
            "sends bytes in the middle",
            Garbled,
            vec![
                send(half()),
                Step::Wait(ms(50)),
                send(b"data: \xff\xfe\n\n".to_vec()),
                Step::Close,
            ],
        ),
        way(
            "sends other JSON",
            Garbled,
            status("200 OK", "", "{\"choices\": 5}"),
        ),
        way("sends an empty answer", Garbled, status("200 OK", "", "{}")),
        way("sends nothing as JSON", Garbled, status("200 OK", "", "")),
        way(
            "compresses",
            Garbled,
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            )],
        ),
        way(
            "has no content",
            Garbled,
            vec![send("HTTP/1.1 204 No Content\r\n\r\n")],
        ),
        half_way(
            "fails in the middle",
            Failed,
            vec![
                send(half()),
                Step::Wait(ms(50)),
                send(event(&json!({"error": {"message": "overloaded"}}))),
                Step::Close,
            ],
        ),
        way(
            "fails",
            Failed,
            status(
                "500 Internal Server Error",
                "",
                "{\"error\":{\"type\":\"server_error\"}}",
            ),
        ),
        way(
            "fails without a word",
            Failed,
            status("502 Bad Gateway", "", ""),
        ),
        way(
            "fails without end",
            Failed,
            vec![
                send("HTTP/1.1 500 No\r\n\r\n"),
                Step::Forever(vec![b'x'; 4096], ms(1)),
            ],
        ),
        way(
            "is busy",
            Busy,
            status("429 Too Many Requests", "Retry-After: 60\r\n", ""),
        ),
        way(
            "is busy and does not say how long",
            Busy,
            status("429 Too Many Requests", "", ""),
        ),
        way(
            "is away and says how long",
            Busy,
            status("503 Service Unavailable", "Retry-After: 60\r\n", ""),
        ),
        way("is away", Failed, status("503 Service Unavailable", "", "")),
        way(
            "does not take the key",
            Denied,
            status(
                "401 Unauthorized",
                "",
                "{\"error\":{\"code\":\"invalid_api_key\"}}",
            ),
        ),
        way(
            "does not take the question",
            Rejected,
            status(
                "400 Bad Request",
                "",
                "{\"error\":{\"code\":\"context_length_exceeded\"}}",
            ),
        ),
        way(
            "does not know the model",
            Rejected,
            status("404 Not Found", "", ""),
        ),
        way(
            "withholds",
            Withheld,
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
        ),
    ]
}

#[tokio::test]
async fn every_way_of_going_wrong_is_a_fault_of_its_kind_and_in_time() {
    for Way {
        name,
        kind,
        says_text: sent_text,
        script,
    } in ways()
    {
        let fake = server(script).await;
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
    for Way {
        name,
        says_text: sent_text,
        script,
        ..
    } in ways()
    {
        let bad = server(script).await;
        let good = server(good(&["It is overheated."])).await;
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
    for Way {
        name, kind, script, ..
    } in ways()
    {
        if kind != FaultKind::Slow {
            continue;
        }
        let fake = server(script).await;
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
        let fake = server(script).await;
        // However much patience there is with tokens: none is missing.
        let patient = UpstreamConfig {
            token_timeout_ms: 60_000,
            total_timeout_ms: 60_000,
            ..at("plant", &fake)
        };
        let outcome = ask(&upstreams(vec![patient])).await;
        assert_eq!(outcome.text, "Yes.", "{name}");
        outcome.answered();
        assert!(
            outcome.took < Duration::from_secs(3),
            "{name}: {:?}",
            outcome.took
        );
    }
}

#[tokio::test]
async fn what_cannot_have_begun_is_asked_again_after_a_pause_and_nothing_else_is() {
    let retrying = |fake: &Fake| UpstreamConfig {
        retries_max: 2,
        ..at("plant", fake)
    };
    let fails = || status("503 Service Unavailable", "", "");
    let fake = servers(vec![fails(), fails(), good(&["At last."])]).await;
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
    let fake = servers(vec![busy, good(&["Now."])]).await;
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
    let fake = servers(vec![busy, good(&["Now."])]).await;
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
        status("500 Internal Server Error", "", ""),
        status("502 Bad Gateway", "", ""),
        status("504 Gateway Timeout", "", ""),
    ] {
        let fake = servers(vec![script, good(&["Again."])]).await;
        let outcome = ask(&upstreams(vec![retrying(&fake)])).await;
        outcome.fault();
        assert_eq!(fake.seen().len(), 1);
    }
    // There is no time for a further attempt.
    let fake = server(fails()).await;
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
    let other = server(good(&["Hello."])).await;
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
        let fake = server(status(code, &to, "")).await;
        let outcome = ask(&upstreams(vec![at("plant", &fake)])).await;
        assert_eq!(outcome.fault().kind, FaultKind::Redirected, "{code}");
        let address = other.address().to_string();
        assert!(!outcome.fault().to_string().contains(&address));
    }
    assert_eq!(other.connections(), 0);
}
