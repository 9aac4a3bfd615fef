//! One that fails is left alone, and looked for.

use std::time::Duration;

use andon_tests::upstream::{Step, events_head, good, status, text};
use andond::config::Config;
use andond::config::upstream::UpstreamConfig;
use andond::telemetry::Telemetry;
use andond::upstream::{FaultKind, State, Upstreams};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, ask, ask_for, at, folder, question, server, servers, until, upstreams};

fn state(all: &Upstreams) -> State {
    all.link().borrow().upstreams[0].state
}

#[tokio::test]
async fn it_is_left_alone_after_failures_and_tried_with_one_question() {
    let fake = server(vec![Step::Reset]).await;
    let quick = UpstreamConfig {
        failures_max: 2,
        open_ms: 300,
        open_max_ms: 300,
        ..at("plant", &fake)
    };
    let all = upstreams(vec![quick]);
    for _ in 0..2 {
        assert_eq!(ask(&all).await.fault().kind, FaultKind::Broken);
    }
    assert_eq!((state(&all), all.link().borrow().up), (State::Open, false));
    let outcome = ask(&all).await;
    assert_eq!(outcome.fault().kind, FaultKind::Unavailable);
    assert!(outcome.took < Duration::from_millis(200));
    assert_eq!(fake.seen().len(), 2);
    // When the wait is over one question goes through, and no second beside it.
    tokio::time::sleep(Duration::from_millis(400)).await;
    fake.now(
        [
            vec![Step::Wait(Duration::from_millis(200))],
            good(&["There."]),
        ]
        .concat(),
    );
    let (first, second) = tokio::join!(ask(&all), ask(&all));
    let kinds = [
        first.end.map_err(|fault| fault.kind),
        second.end.map_err(|fault| fault.kind),
    ];
    assert_eq!(
        kinds.iter().filter(|outcome| outcome.is_ok()).count(),
        1,
        "{kinds:?}"
    );
    assert!(
        kinds
            .iter()
            .any(|outcome| matches!(outcome, Err(FaultKind::Unavailable))),
        "{kinds:?}"
    );
    assert_eq!((state(&all), fake.seen().len()), (State::Closed, 3));
}

#[tokio::test]
async fn it_is_looked_for_and_the_link_says_when_it_is_there() {
    let fake = server(vec![Step::Reset]).await;
    let quick = UpstreamConfig {
        failures_max: 1,
        open_ms: 100,
        open_max_ms: 200,
        ..at("plant", &fake)
    };
    let all = upstreams(vec![quick]);
    let stopping = CancellationToken::new();
    let (_folder, proc) = folder();
    let watching = tokio::spawn(all.clone().watch(proc, stopping.clone()));
    ask(&all).await.fault();
    assert!(!all.link().borrow().up);
    // Probes cost nothing: they ask for the list of models.
    until("it is looked for", || fake.seen().len() >= 4).await;
    assert!(
        fake.seen()[1..]
            .iter()
            .all(|seen| seen.line == "GET /v1/models HTTP/1.1")
    );
    assert!(!all.link().borrow().up);
    let mut link = all.link();
    fake.now(status("200 OK", "", "{\"data\": []}"));
    let up = tokio::time::timeout(PATIENCE, link.wait_for(|link| link.up)).await;
    up.expect("in time").expect("it lives");
    assert_eq!(state(&all), State::HalfOpen);
    fake.now(good(&["There."]));
    assert_eq!(ask(&all).await.text, "There.");
    assert_eq!(state(&all), State::Closed);
    stopping.cancel();
    tokio::time::timeout(PATIENCE, watching)
        .await
        .expect("it stops")
        .expect("no panic");
}

#[tokio::test]
async fn the_end_of_a_servers_own_word_is_told() {
    let busy = status("429 Too Many Requests", "Retry-After: 1\r\n", "");
    let fake = server(busy).await;
    let all = upstreams(vec![at("plant", &fake)]);
    let stopping = CancellationToken::new();
    let (_folder, proc) = folder();
    tokio::spawn(all.clone().watch(proc, stopping.clone()));
    ask(&all).await.fault();
    assert_eq!(
        (state(&all), all.link().borrow().up),
        (State::Limited, false)
    );
    let mut link = all.link();
    let up = tokio::time::timeout(PATIENCE, link.wait_for(|link| link.up)).await;
    up.expect("in time").expect("it lives");
    stopping.cancel();
}

#[tokio::test]
async fn nobody_listens() {
    let fake = servers(Vec::new()).await;
    let there = at("plant", &fake);
    drop(fake);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let retrying = UpstreamConfig {
        retries_max: 1,
        failures_max: 9,
        ..there.clone()
    };
    let outcome = ask(&upstreams(vec![retrying])).await;
    assert_eq!(outcome.fault().kind, FaultKind::Unreachable);
    assert!(
        outcome.took >= Duration::from_millis(125),
        "{:?}",
        outcome.took
    );
    let unknown = UpstreamConfig {
        url: "http://no-such-host.invalid/v1".to_owned(),
        ..there
    };
    let outcome = ask(&upstreams(vec![unknown])).await;
    // A resolver that is away takes longer than the connection may.
    let kind = outcome.fault().kind;
    assert!(
        matches!(kind, FaultKind::Unreachable | FaultKind::Slow),
        "{kind:?}"
    );
    assert!(outcome.took < Duration::from_secs(3));
}

#[tokio::test]
async fn another_configuration_holds_from_the_next_question_on() {
    let one = server(good(&["one"])).await;
    let two = server(good(&["two"])).await;
    let config = |list: Vec<UpstreamConfig>| Config {
        upstream: list,
        ..Config::default()
    };
    let all = Upstreams::new(&config(vec![at("plant", &one)]), Arc::new(Telemetry::new()));
    assert_eq!(ask(&all).await.text, "one");
    let known = all.expected(1);
    all.reloaded(&config(vec![at("plant", &one)]));
    assert_eq!(all.expected(1), known);
    all.reloaded(&config(vec![at("plant", &two)]));
    assert_eq!(
        (ask(&all).await.text.as_str(), all.is_empty()),
        ("two", false)
    );
    all.reloaded(&config(Vec::new()));
    assert!(all.is_empty() && !all.link().borrow().up);
    assert_eq!(ask(&all).await.fault().kind, FaultKind::Unavailable);
}

#[tokio::test]
async fn whoever_says_something_is_there_whatever_it_says_of_its_models() {
    for (name, says) in [
        ("no models for this key", status("401 Unauthorized", "", "")),
        (
            "models elsewhere",
            status("302 Found", "Location: /login\r\n", ""),
        ),
        ("no list of models", status("404 Not Found", "", "")),
        ("a list that is broken", status("500 No", "", "")),
        (
            "nobody for that path",
            status("503 Service Unavailable", "", ""),
        ),
        ("busy", status("429 Too Many Requests", "", "")),
        (
            "a page",
            vec![Step::Send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>".to_vec(),
            )],
        ),
    ] {
        let fake = server(vec![Step::Reset]).await;
        let quick = UpstreamConfig {
            failures_max: 1,
            open_ms: 50,
            open_max_ms: 100,
            ..at("plant", &fake)
        };
        let all = upstreams(vec![quick]);
        let stopping = CancellationToken::new();
        let (_folder, proc) = folder();
        tokio::spawn(all.clone().watch(proc, stopping.clone()));
        ask(&all).await.fault();
        until("it is looked for", || fake.seen().len() >= 3).await;
        assert!(!all.link().borrow().up, "{name}");
        fake.now(says);
        let mut link = all.link();
        let up = tokio::time::timeout(PATIENCE, link.wait_for(|link| link.up)).await;
        up.expect(name).expect("it lives");
        fake.now(good(&["There."]));
        assert_eq!(ask(&all).await.text, "There.", "{name}");
        stopping.cancel();
    }
}

#[tokio::test]
async fn a_look_that_takes_long_holds_up_no_other() {
    let quick = |name: &str, fake: &_| UpstreamConfig {
        failures_max: 1,
        open_ms: 50,
        open_max_ms: 50,
        // So long a look may take.
        first_token_timeout_ms: 60_000,
        ..at(name, fake)
    };
    let (hanging, other) = (
        server(vec![Step::Reset]).await,
        server(vec![Step::Reset]).await,
    );
    let all = upstreams(vec![quick("hanging", &hanging), quick("other", &other)]);
    ask(&all).await.fault();
    assert!(!all.link().borrow().up);
    hanging.now(vec![Step::Hang]);
    let stopping = CancellationToken::new();
    let (_folder, proc) = folder();
    let watching = tokio::spawn(all.clone().watch(proc, stopping.clone()));
    until("both are looked for", || {
        hanging.seen().len() >= 2 && other.seen().len() >= 3
    })
    .await;
    other.now(status("200 OK", "", "{\"data\": []}"));
    let mut link = all.link();
    let up = tokio::time::timeout(PATIENCE, link.wait_for(|link| link.up)).await;
    up.expect("in time").expect("it lives");
    // Nobody looks twice at once.
    assert_eq!(hanging.seen().len(), 2);
    stopping.cancel();
    tokio::time::timeout(PATIENCE, watching)
        .await
        .expect("it stops")
        .expect("no panic");
    until("the look has ended, too", || hanging.left() == 1).await;
}

#[tokio::test]
async fn one_question_opens_no_breaker() {
    let strict = |name: &str, fake: &_| UpstreamConfig {
        failures_max: 2,
        retries_max: 3,
        ..at(name, fake)
    };
    // One that no server can answer.
    let (one, two) = (
        server(status("500 No", "", "")).await,
        server(status("500 No", "", "")).await,
    );
    let all = upstreams(vec![strict("one", &one), strict("two", &two)]);
    assert_eq!(ask(&all).await.fault().kind, FaultKind::Failed);
    assert_eq!((one.seen().len(), two.seen().len()), (1, 1));
    let states = |all: &Upstreams| -> Vec<State> {
        (all.link().borrow().upstreams.iter())
            .map(|one| one.state)
            .collect()
    };
    assert_eq!(states(&all), [State::Closed; 2]);
    ask(&all).await.fault();
    assert_eq!(states(&all), [State::Open; 2]);
    // However often it is asked again for it.
    let away = server(status("503 No", "", "")).await;
    let all = upstreams(vec![strict("away", &away)]);
    assert_eq!(ask(&all).await.fault().kind, FaultKind::Failed);
    assert_eq!((away.seen().len(), states(&all)), (4, vec![State::Closed]));
    ask(&all).await.fault();
    assert_eq!(states(&all), [State::Open]);
    // Nor does one whose last attempt is answered, or that nobody waits for, count less or more.
    let late = servers(vec![
        status("503 No", "", ""),
        status("503 No", "", ""),
        good(&["There."]),
        status("503 No", "", ""),
    ])
    .await;
    let all = upstreams(vec![strict("late", &late)]);
    assert_eq!(ask(&all).await.text, "There.");
    for expected in [State::Closed, State::Open] {
        let leaving = all.ask(super::permit(), question(), None);
        let before = late.seen().len();
        until("it is asked", || late.seen().len() > before).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(leaving);
        until("nobody asks", || states(&all) == [expected]).await;
    }
}

#[tokio::test]
async fn one_that_hangs_is_left_alone_however_short_the_deadlines_are() {
    let deadline = Some(Duration::from_millis(300));
    let strict = |fake: &_| UpstreamConfig {
        failures_max: 2,
        ..at("plant", fake)
    };
    // Nothing is known of it: its silences come to twice its patience, which is 700 ms.
    let hanging = server(vec![Step::Hang]).await;
    let all = upstreams(vec![strict(&hanging)]);
    let mut asked = 0;
    while state(&all) == State::Closed {
        ask_for(&all, question(), deadline).await.fault();
        asked += 1;
        assert!(asked < 10, "it is asked for ever");
    }
    assert!(asked >= 4, "{asked}");
    // It mostly answers at once: each silence is one too many.
    let hanging = server(good(&["Yes."])).await;
    let all = upstreams(vec![strict(&hanging)]);
    ask(&all).await.answered();
    hanging.now(vec![Step::Hang]);
    for expected in [State::Closed, State::Open] {
        let outcome = ask_for(&all, question(), deadline).await;
        assert_eq!(outcome.fault().kind, FaultKind::Deadline);
        assert_eq!(state(&all), expected);
    }
    // So where others are faster, and nobody waits for it.
    let hanging = server(good(&["Yes."])).await;
    let all = upstreams(vec![strict(&hanging)]);
    ask(&all).await.answered();
    hanging.now(vec![Step::Hang]);
    for expected in [State::Closed, State::Open] {
        let leaving = all.ask(super::permit(), question(), None);
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(leaving);
        until("it has ended", || state(&all) == expected).await;
    }
    // In the middle of answers it counts as well.
    let stopping = server(vec![
        Step::Send([events_head(), text("a")].concat()),
        Step::Hang,
    ])
    .await;
    let all = upstreams(vec![strict(&stopping)]);
    let mut asked = 0;
    while state(&all) == State::Closed {
        ask_for(&all, question(), deadline).await.fault();
        asked += 1;
        assert!(asked < 10, "it is asked for ever");
    }
    assert!(asked >= 2, "{asked}");
}

#[tokio::test]
async fn whoever_reads_slowly_does_not_make_the_server_a_silent_one() {
    let talkative = vec![
        Step::Send(events_head()),
        Step::Forever(text("and "), Duration::from_millis(5)),
    ];
    let fake = server(talkative).await;
    let strict = UpstreamConfig {
        failures_max: 1,
        ..at("plant", &fake)
    };
    let all = upstreams(vec![strict]);
    let mut answering = all.ask(super::permit(), question(), None);
    assert!(answering.next().await.is_some());
    // Longer than its patience with tokens.
    tokio::time::sleep(Duration::from_millis(900)).await;
    for _ in 0..20 {
        assert!(matches!(answering.next().await, Some(Ok(_))));
    }
    drop(answering);
    until("it has gone", || fake.left() == 1).await;
    assert_eq!(state(&all), State::Closed);
}
