//! One that fails is left alone, and looked for.

use std::time::Duration;

use andon_tests::upstream::{Fake, Greeting, Step, good, status};
use andond::config::Config;
use andond::config::upstream::UpstreamConfig;
use andond::telemetry::Telemetry;
use andond::upstream::{FaultKind, State, Upstreams};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, ask, at, folder, until, upstreams};

fn state(all: &Upstreams) -> State {
    all.link().borrow().upstreams[0].state
}

#[tokio::test]
async fn it_is_left_alone_after_failures_and_tried_with_one_question() {
    let fake = Fake::start(Greeting::Plain, vec![vec![Step::Reset]])
        .await
        .expect("it listens");
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
    let fake = Fake::start(Greeting::Plain, vec![status("500 No", "", "")])
        .await
        .expect("it listens");
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
    let fake = Fake::start(Greeting::Plain, vec![busy])
        .await
        .expect("it listens");
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
    let fake = Fake::start(Greeting::Plain, Vec::new())
        .await
        .expect("it listens");
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
    let one = Fake::start(Greeting::Plain, vec![good(&["one"])])
        .await
        .expect("it listens");
    let two = Fake::start(Greeting::Plain, vec![good(&["two"])])
        .await
        .expect("it listens");
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
