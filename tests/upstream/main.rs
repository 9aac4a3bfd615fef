//! Upstream servers that are slow, break off, lie, talk nonsense or never end: whatever they do, a question has an answer or a fault
//! of the right kind, in time. Sockets and TLS are real.
#![forbid(unsafe_code)]

mod answers;
mod breaker;
mod http2;
mod misbehaving;
mod secrets;
mod secure;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_tests::upstream::{Fake, Greeting, Step};
use andond::config::Config;
use andond::config::upstream::UpstreamConfig;
use andond::request::{Egress, Input, Message, Origin, Request};
use andond::telemetry::Telemetry;
use andond::upstream::{
    Answered, Answering, FaultKind, Permit, Piece, Question, UpstreamFault, Upstreams,
};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in the clear that does this with each request, in turn; the last holds for all that follow.
async fn servers(scripts: Vec<Vec<Step>>) -> Fake {
    greets(Greeting::Plain, scripts).await
}

/// One that does this with every request.
async fn server(script: Vec<Step>) -> Fake {
    servers(vec![script]).await
}

/// One that greets so.
async fn greets(greeting: Greeting, scripts: Vec<Vec<Step>>) -> Fake {
    let fake = Fake::start(greeting, scripts).await;
    fake.expect("it listens")
}

/// An upstream of this name at this server, which is asked once and in short order.
fn at(name: &str, fake: &Fake) -> UpstreamConfig {
    UpstreamConfig {
        name: name.to_owned(),
        url: format!("http://{}/v1", fake.address()),
        model: "large".to_owned(),
        connect_timeout_ms: 500,
        first_token_timeout_ms: 700,
        token_timeout_ms: 400,
        total_timeout_ms: 2_000,
        retries_max: 0,
        ..UpstreamConfig::default()
    }
}

fn upstreams(list: Vec<UpstreamConfig>) -> Upstreams {
    let config = Config {
        upstream: list,
        ..Config::default()
    };
    Upstreams::new(&config, Arc::new(Telemetry::new()))
}

fn permit() -> Permit {
    let mut request = Request::new("1", "c", Origin::Mqtt, Input::Messages(Vec::new()));
    request.egress = Some(Egress::Any);
    Permit::of(&request, None).expect("it may travel")
}

fn question() -> Question {
    Question {
        tokens_max: Some(100),
        ..Question::new(vec![Message::new("user", "What does E42 mean?")])
    }
}

/// What came of a question.
#[derive(Debug)]
struct Outcome {
    text: String,
    pieces: Vec<Piece>,
    end: Result<Answered, UpstreamFault>,
    took: Duration,
}

impl Outcome {
    fn fault(&self) -> &UpstreamFault {
        self.end.as_ref().expect_err("a fault")
    }

    fn answered(&self) -> &Answered {
        self.end.as_ref().expect("an answer")
    }
}

async fn ask(upstreams: &Upstreams) -> Outcome {
    ask_for(upstreams, question(), None).await
}

async fn ask_for(upstreams: &Upstreams, question: Question, deadline: Option<Duration>) -> Outcome {
    let began = Instant::now();
    let answering = upstreams.ask(permit(), question, deadline.map(|after| began + after));
    let outcome = tokio::time::timeout(PATIENCE, gather(answering, began)).await;
    outcome.expect("it ends")
}

async fn gather(mut answering: Answering, began: Instant) -> Outcome {
    let (mut text, mut pieces) = (String::new(), Vec::new());
    let end = loop {
        match answering.next().await.expect("it says how it ends") {
            Ok(Piece::Done(answered)) => break Ok(answered),
            Ok(piece) => {
                if let Piece::Text(piece) = &piece {
                    text.push_str(piece);
                }
                pieces.push(piece);
            }
            Err(fault) => break Err(fault),
        }
    };
    assert!(answering.next().await.is_none(), "it ends once");
    Outcome {
        text,
        pieces,
        end,
        took: began.elapsed(),
    }
}

/// A way in which a reply is none.
struct Way {
    name: &'static str,
    /// The kind of fault that it is.
    kind: FaultKind,
    /// Whether a part of an answer is handed over before.
    says_text: bool,
    script: Vec<Step>,
}

fn way(name: &'static str, kind: FaultKind, script: Vec<Step>) -> Way {
    Way {
        name,
        kind,
        says_text: false,
        script,
    }
}

/// One after a part of an answer.
fn half_way(name: &'static str, kind: FaultKind, script: Vec<Step>) -> Way {
    Way {
        says_text: true,
        ..way(name, kind, script)
    }
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_path_buf();
    (folder, path)
}
