//! The key goes to the upstream and is nowhere else, and neither is what is asked and answered.

use std::io::Write;
use std::sync::{Arc, Mutex};

use andon_tests::upstream::{Step, events_head, good, status, text};
use andond::config::upstream::UpstreamConfig;
use andond::upstream::FaultKind;
use tracing_subscriber::fmt::MakeWriter;

use super::{ask, at, folder, server, upstreams};

const KEY: &str = "sk_hunter_two_0123456789";
/// A word of the question, and one of answers.
const SAID: [&str; 2] = ["E42", "overheated"];

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn nothing_of_the_key_and_of_what_is_said_is_logged_or_told() {
    let log = Log::default();
    // All that the daemon itself would ever log, at the most talkative; what its libraries say at that level it never logs.
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (_folder, path) = folder();
    let file = path.join("key");
    std::fs::write(&file, format!("{KEY}\n")).expect("written");
    let echo = format!(
        "{{\"error\":{{\"message\":\"bad key {KEY} for E42\",\"type\":\"{KEY}\",\"code\":\"{KEY}\"}}}}"
    );
    let broken = format!("data: {{\"error\": \"{KEY} overheated E42\"}}\n\n").into_bytes();
    let redirect = format!("Location: http://127.0.0.1:1/?key={KEY}\r\n");
    for script in [
        good(&["It is ", "overheated."]),
        status("401 Unauthorized", "", &echo),
        status("400 Bad Request", "", &echo),
        status("500 No", &format!("X-Key: {KEY}\r\n"), &echo),
        status("429 Busy", &format!("Retry-After: {KEY}\r\n"), &echo),
        status("302 Found", &redirect, &echo),
        vec![
            Step::Send([events_head(), text("overheated"), broken].concat()),
            Step::Close,
        ],
        vec![
            Step::Send(
                format!("HTTP/1.1 200 {KEY}\r\nContent-Type: {KEY}\r\n\r\n{KEY}").into_bytes(),
            ),
            Step::Close,
        ],
        vec![
            Step::Send(format!("{KEY} overheated E42\r\n\r\n").into_bytes()),
            Step::Close,
        ],
        vec![Step::Reset],
    ] {
        let fake = server(script).await;
        let config = UpstreamConfig {
            api_key_file: Some(file.clone()),
            failures_max: 1,
            ..at("plant", &fake)
        };
        let all = upstreams(vec![config]);
        let outcome = ask(&all).await;
        let head = fake.seen()[0].head.to_ascii_lowercase();
        assert!(
            head.contains(&format!("authorization: bearer {KEY}")),
            "{head}"
        );
        if let Err(fault) = &outcome.end {
            let told = format!(
                "{fault} {fault:?} {} {:?}",
                fault.clone().into_fault(),
                fault.clone().into_fault()
            );
            for word in [KEY, "hunter", SAID[0], SAID[1]] {
                assert!(!told.contains(word), "{told}");
            }
        }
        assert!(!format!("{all:?}").contains("hunter"));
    }
    let log = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("UTF-8");
    assert!(
        log.contains("an upstream failed too often"),
        "nothing was logged at all"
    );
    for line in log.lines() {
        for word in [KEY, "hunter", SAID[0], SAID[1]] {
            assert!(!line.contains(word), "{line}");
        }
    }
}

#[tokio::test]
async fn a_key_that_is_replaced_holds_from_the_next_question_on() {
    let (_folder, path) = folder();
    let file = path.join("key");
    let fake = server(good(&["Yes."])).await;
    let config = UpstreamConfig {
        api_key_file: Some(file.clone()),
        failures_max: 9,
        ..at("plant", &fake)
    };
    let all = upstreams(vec![config]);
    let outcome = ask(&all).await;
    assert_eq!(outcome.fault().kind, FaultKind::Denied);
    assert!(
        outcome.fault().message.contains("api-key-file"),
        "{}",
        outcome.fault()
    );
    assert!(fake.seen().is_empty(), "without its key nothing is asked");
    for key in ["first", "second"] {
        std::fs::write(&file, key).expect("written");
        assert_eq!(ask(&all).await.text, "Yes.");
        let head = fake.seen().last().expect("asked").head.clone();
        assert!(
            head.to_ascii_lowercase()
                .contains(&format!("authorization: bearer {key}")),
            "{head}"
        );
    }
}
