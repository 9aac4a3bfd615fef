//! The compact socket: the real daemon, a client of the protocol written for these tests.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::{Builder, Daemon};
use andon_tests::tiny_model::TinyModel;
use andon_wire::limits::{CLIENT_FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX};
use andon_wire::{
    Ask, Cancel, ClientFrame, ErrorCode, Finish, HEADER_BYTES, Hello, Input, ModelName,
    PROTOCOL_VERSION, Priority, RequestId, ServerFrame, TaskName,
};
use serde_json::json;

/// Longest wait for a frame; generous, since debug builds run on busy machines.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Enough tokens that an answer is still being made when the test's next step comes.
const LONG: u32 = 30_000;

/// What a test needs to know of a frame, owned.
#[derive(Debug, Clone, PartialEq)]
enum Got {
    Welcome,
    Accepted(String),
    Chunk(String, u32, String),
    Done(String, Finish, u32),
    Error(Option<String>, ErrorCode, Option<u32>),
    Cancelled(String, bool),
    Other,
}

struct Client {
    stream: UnixStream,
}

impl Client {
    /// A connection without a hello.
    fn raw(daemon: &Daemon) -> Client {
        let stream = UnixStream::connect(daemon.wire_socket()).unwrap();
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        Client { stream }
    }

    fn new(daemon: &Daemon) -> Client {
        let mut client = Client::raw(daemon);
        client.send(&hello(PROTOCOL_VERSION));
        assert_eq!(client.next(), Some(Got::Welcome));
        client
    }

    fn send(&mut self, frame: &ClientFrame<'_>) {
        self.stream.write_all(&encoded(frame)).unwrap();
    }

    fn ask(&mut self, id: &str, tokens: u32, change: impl FnOnce(&mut Ask<'_>)) {
        let mut ask = Ask::new(RequestId::new(id).unwrap(), Input::Prompt("The machine"));
        ask.tokens_max = Some(tokens);
        change(&mut ask);
        self.send(&ClientFrame::Ask(ask));
    }

    fn cancel(&mut self, id: &str) {
        let id = RequestId::new(id).unwrap();
        self.send(&ClientFrame::Cancel(Cancel { id }));
    }

    /// The next frame, or `None` when the server has closed.
    fn next(&mut self) -> Option<Got> {
        let mut header = [0; HEADER_BYTES];
        match self.stream.read_exact(&mut header) {
            Err(error) if closed(&error) => return None,
            result => result.unwrap(),
        }
        let bytes = usize::try_from(u32::from_le_bytes(header)).unwrap();
        assert!(bytes <= SERVER_FRAME_BYTES_MAX);
        let mut payload = vec![0; bytes];
        self.stream.read_exact(&mut payload).unwrap();
        Some(match ServerFrame::decode(&payload).unwrap() {
            ServerFrame::Welcome(_) => Got::Welcome,
            ServerFrame::Accepted(accepted) => Got::Accepted(accepted.id.as_str().to_owned()),
            ServerFrame::Chunk(chunk) => Got::Chunk(
                chunk.id.as_str().to_owned(),
                chunk.sequence,
                chunk.text.to_owned(),
            ),
            ServerFrame::Done(done) => {
                Got::Done(done.id.as_str().to_owned(), done.finish, done.chunks)
            }
            ServerFrame::Error(fault) => Got::Error(
                fault.id.map(|id| id.as_str().to_owned()),
                fault.code,
                fault.retry_after_ms,
            ),
            ServerFrame::Cancelled(cancelled) => {
                Got::Cancelled(cancelled.id.as_str().to_owned(), cancelled.found)
            }
            _ => Got::Other,
        })
    }

    /// Reads until a frame that `wanted` takes; what came before it is dropped.
    fn until(&mut self, wanted: impl Fn(&Got) -> bool) -> Got {
        loop {
            let got = self.next().expect("the server closed");
            if wanted(&got) {
                return got;
            }
        }
    }

    /// The request's answer: its chunks joined, its end, and whether the chunks' numbers had no gap.
    fn answer(&mut self, id: &str) -> (String, Got) {
        let mut text = String::new();
        let mut expected = 0;
        loop {
            match self.next().expect("the server closed") {
                Got::Chunk(of, sequence, piece) if of == id => {
                    assert_eq!(sequence, expected, "a gap in the chunks");
                    expected += 1;
                    text.push_str(&piece);
                }
                Got::Done(of, finish, chunks) if of == id => {
                    assert_eq!(chunks, expected);
                    return (text, Got::Done(of, finish, chunks));
                }
                Got::Error(Some(of), code, retry) if of == id => {
                    return (text, Got::Error(Some(of), code, retry));
                }
                _ => {}
            }
        }
    }

    /// Expects an error that ends the connection.
    fn refused(&mut self, code: ErrorCode) {
        assert_eq!(self.next(), Some(Got::Error(None, code, None)));
        assert_eq!(self.next(), None, "the connection stays open");
    }
}

fn closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}

fn hello(version: u16) -> ClientFrame<'static> {
    ClientFrame::Hello(Hello {
        version,
        software: "test",
    })
}

fn encoded(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut buffer = vec![0; CLIENT_FRAME_BYTES_MAX + HEADER_BYTES];
    frame.encode(&mut buffer).unwrap().to_vec()
}

/// A daemon whose model takes long answers, in a folder that must outlive it.
fn long_winded(folder: &Path, config: &str) -> Daemon {
    let path = folder.join("long.gguf");
    TinyModel {
        context_tokens_max: 65_536,
        ..TinyModel::default()
    }
    .write(&path)
    .unwrap();
    let builder: Builder = Daemon::builder()
        .model(&path)
        .config("[model]\nkv-tokens-max = 131072\n");
    builder.config(config).start().unwrap()
}

/// Waits until the daemon's metrics have a line that begins so.
fn wait_for_metric(daemon: &Daemon, line: &str) {
    let start = Instant::now();
    while start.elapsed() < READ_TIMEOUT {
        let metrics = daemon.http().get("/metrics").unwrap().text();
        if metrics.lines().any(|found| found.starts_with(line)) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!(
        "no metric {line}\n{}",
        daemon.http().get("/metrics").unwrap().text()
    );
}

#[test]
fn an_answer_is_the_one_that_http_gives_streamed_or_not() {
    let daemon = Daemon::builder().start().unwrap();
    let body = json!({"prompt": "The machine", "max_tokens": 24, "temperature": 0});
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    let expected = reply.json().unwrap()["choices"][0]["text"].clone();
    let mut client = Client::new(&daemon);
    for stream in [true, false] {
        client.ask("1", 24, |ask| ask.stream = stream);
        assert_eq!(client.next(), Some(Got::Accepted("1".to_owned())));
        let (text, end) = client.answer("1");
        assert_eq!(json!(text), expected);
        assert!(matches!(end, Got::Done(_, Finish::Length, _)), "{end:?}");
    }
}

#[test]
fn several_requests_of_a_connection_are_answered_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "");
    let mut client = Client::new(&daemon);
    client.ask("slow", LONG, |_| {});
    client.until(|got| matches!(got, Got::Chunk(..)));
    client.ask("quick", 4, |_| {});
    let end = client.until(|got| matches!(got, Got::Done(..) | Got::Error(..)));
    assert!(matches!(end, Got::Done(id, Finish::Length, _) if id == "quick"));
    // In the middle of an answer, status and models are answered too.
    client.send(&ClientFrame::Status);
    client.until(|got| *got == Got::Other);
    client.send(&ClientFrame::Models);
    client.until(|got| *got == Got::Other);
}

#[test]
fn a_cancel_from_another_connection_ends_the_request_and_frees_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "");
    let mut asking = Client::new(&daemon);
    let mut other = Client::new(&daemon);
    asking.ask("17", LONG, |_| {});
    asking.until(|got| matches!(got, Got::Chunk(..)));

    // The id is taken, for every connection of this user.
    other.ask("17", 4, |_| {});
    let refused = other.next();
    assert!(
        matches!(
            refused,
            Some(Got::Error(Some(_), ErrorCode::DuplicateId, _))
        ),
        "{refused:?}"
    );
    other.cancel("17");
    assert_eq!(other.next(), Some(Got::Cancelled("17".to_owned(), true)));
    let end = asking.until(|got| matches!(got, Got::Done(..) | Got::Error(..)));
    assert!(matches!(end, Got::Done(_, Finish::Cancelled, _)), "{end:?}");

    other.cancel("17");
    assert_eq!(other.next(), Some(Got::Cancelled("17".to_owned(), false)));
    other.ask("17", 4, |_| {});
    let (_, end) = other.answer("17");
    assert!(matches!(end, Got::Done(_, Finish::Length, _)), "{end:?}");
}

#[test]
fn a_client_that_goes_away_takes_its_requests_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "");
    let mut client = Client::new(&daemon);
    client.ask("1", LONG, |_| {});
    client.ask("2", LONG, |_| {});
    client.until(|got| matches!(got, Got::Chunk(..)));
    drop(client);
    wait_for_metric(&daemon, "andon_running 0");
    wait_for_metric(
        &daemon,
        "andon_outcomes_total{origin=\"wire\",outcome=\"cancelled\"} 2",
    );
}

#[test]
fn what_is_no_frame_is_told_so_and_the_connection_closed() {
    let daemon = Daemon::builder()
        .config("[wire]\nframe-timeout-ms = 300\n")
        .start()
        .unwrap();

    let mut client = Client::new(&daemon);
    client.stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
    client.refused(ErrorCode::TooLarge);

    let mut client = Client::new(&daemon);
    let mut damaged = encoded(&ClientFrame::Status);
    *damaged.last_mut().unwrap() ^= 1;
    client.stream.write_all(&damaged).unwrap();
    client.refused(ErrorCode::InvalidRequest);

    let mut client = Client::new(&daemon);
    client.stream.write_all(&0_u32.to_le_bytes()).unwrap();
    client.refused(ErrorCode::InvalidRequest);

    // Half a frame and then nothing: told and closed once its time is over, not held for ever.
    let mut client = Client::new(&daemon);
    client
        .stream
        .write_all(&encoded(&ClientFrame::Status)[..6])
        .unwrap();
    client.refused(ErrorCode::InvalidRequest);

    // A connection that never says hello.
    Client::raw(&daemon).refused(ErrorCode::InvalidRequest);

    let mut client = Client::raw(&daemon);
    client.send(&ClientFrame::Status);
    client.refused(ErrorCode::InvalidRequest);

    let mut client = Client::raw(&daemon);
    client.send(&hello(PROTOCOL_VERSION + 1));
    client.refused(ErrorCode::UnsupportedVersion);

    // Nothing of it harmed the daemon, and a connection that is quiet between frames stays.
    let mut client = Client::new(&daemon);
    thread::sleep(Duration::from_millis(600));
    client.ask("1", 4, |_| {});
    let (_, end) = client.answer("1");
    assert!(matches!(end, Got::Done(..)), "{end:?}");
}

#[test]
fn a_wrong_request_is_refused_and_the_connection_stays() {
    let daemon = Daemon::builder().start().unwrap();
    let mut client = Client::new(&daemon);
    let refused = |client: &mut Client, code| match client.next() {
        Some(Got::Error(Some(_), found, _)) => assert_eq!(found, code),
        other => panic!("{other:?}"),
    };
    client.ask("1", 4, |ask| {
        ask.model = Some(ModelName::new("nobody").unwrap());
    });
    refused(&mut client, ErrorCode::UnknownModel);
    client.ask("1", 4, |ask| {
        ask.input = Input::Task {
            name: TaskName::new("nothing").unwrap(),
            input_json: "{}",
        };
    });
    refused(&mut client, ErrorCode::UnknownTask);
    client.ask("1", 4, |ask| {
        ask.input = Input::Task {
            name: TaskName::new("nothing").unwrap(),
            input_json: "{",
        };
    });
    refused(&mut client, ErrorCode::InvalidRequest);
    client.ask("1", 4, |ask| ask.input = Input::Prompt(""));
    refused(&mut client, ErrorCode::InvalidRequest);
    client.ask("1", 4, |ask| ask.sampling.temperature = Some(f32::NAN));
    refused(&mut client, ErrorCode::InvalidRequest);
    let long = "many words ".repeat(2_000);
    client.ask("1", 4, |ask| {
        ask.input = Input::Prompt(Box::leak(long.into_boxed_str()));
    });
    refused(&mut client, ErrorCode::ContextFull);
    client.ask("1", 4, |_| {});
    let (_, end) = client.answer("1");
    assert!(matches!(end, Got::Done(..)), "{end:?}");
}

#[test]
fn requests_beyond_the_connections_bound_are_refused_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "[wire]\nrequests-max = 2\n");
    let mut client = Client::new(&daemon);
    for id in ["1", "2", "3"] {
        client.ask(id, LONG, |_| {});
    }
    let got = client.until(|got| matches!(got, Got::Done(..) | Got::Error(..)));
    assert!(
        matches!(&got, Got::Error(Some(id), ErrorCode::Busy, Some(_)) if id == "3"),
        "{got:?}"
    );
}

#[test]
fn deadlines_end_what_waits_and_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "[engine]\nparallel-max = 1\n");
    let mut client = Client::new(&daemon);
    client.ask("runs", LONG, |ask| ask.deadline_ms = Some(1_500));
    client.until(|got| matches!(got, Got::Chunk(..)));
    client.ask("waits", 4, |ask| ask.deadline_ms = Some(200));
    let first = client.until(|got| matches!(got, Got::Done(..) | Got::Error(..)));
    assert!(
        matches!(&first, Got::Error(Some(id), ErrorCode::DeadlineExceeded, _) if id == "waits"),
        "{first:?}"
    );
    let second = client.until(|got| matches!(got, Got::Done(..) | Got::Error(..)));
    assert!(
        matches!(&second, Got::Error(Some(id), ErrorCode::DeadlineExceeded, _) if id == "runs"),
        "{second:?}"
    );
}

#[test]
fn an_alarm_is_answered_while_everything_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "[engine]\nparallel-max = 1\n");
    let mut client = Client::new(&daemon);
    client.ask("batch", LONG, |ask| ask.priority = Some(Priority::Batch));
    client.until(|got| matches!(got, Got::Chunk(..)));
    client.ask("next", LONG, |ask| {
        ask.priority = Some(Priority::Interactive);
    });
    client.ask("alarm", 4, |ask| ask.priority = Some(Priority::Alarm));
    let end = client.until(|got| matches!(got, Got::Done(..) | Got::Error(..)));
    assert!(
        matches!(&end, Got::Done(id, Finish::Length, _) if id == "alarm"),
        "{end:?}"
    );
}

#[test]
fn a_reader_that_stops_reading_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = long_winded(folder.path(), "[http]\nwrite-timeout-ms = 300\n");
    let body = json!({"prompt": "The machine", "max_tokens": LONG, "stream": true}).to_string();
    let mut stuck = UnixStream::connect(daemon.http_socket()).unwrap();
    write!(
        stuck,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut client = Client::new(&daemon);
    for id in ["1", "2", "3"] {
        client.ask(id, 16, |_| {});
        let (_, end) = client.answer(id);
        assert!(matches!(end, Got::Done(_, Finish::Length, _)), "{end:?}");
    }
    // Its connection is given up once it has taken nothing for its time, and its request with it.
    wait_for_metric(
        &daemon,
        "andon_outcomes_total{origin=\"http\",outcome=\"cancelled\"} 1",
    );
    wait_for_metric(&daemon, "andon_running 0");
}

#[test]
fn a_stop_refuses_what_waits_and_finishes_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = long_winded(
        folder.path(),
        "[engine]\nparallel-max = 1\n[gateway]\nshutdown-grace-ms = 60000\n",
    );
    let mut client = Client::new(&daemon);
    client.ask("runs", 2_000, |_| {});
    client.until(|got| matches!(got, Got::Chunk(..)));
    client.ask("waits", 4, |_| {});
    client.until(|got| *got == Got::Accepted("waits".to_owned()));
    daemon.terminate().unwrap();
    let mut ends = Vec::new();
    while let Some(got) = client.next() {
        if matches!(got, Got::Done(..) | Got::Error(..)) {
            ends.push(got);
        }
    }
    assert!(
        matches!(
            &ends[..],
            [
                Got::Error(Some(waits), ErrorCode::Unavailable, Some(_)),
                Got::Done(runs, Finish::Length, _),
            ] if waits == "waits" && runs == "runs"
        ),
        "{ends:?}"
    );
    assert!(daemon.wait(READ_TIMEOUT).unwrap().success());
}

#[test]
fn earlier_answers_to_a_task_outlive_a_restart_and_change_no_answer() {
    let mut daemon = Daemon::builder()
        .config("[task.explain]\ninstructions = \"Explain {{ code }}.\"\n")
        .start()
        .unwrap();
    let ask = |daemon: &Daemon| {
        let mut client = Client::new(daemon);
        client.ask("1", 24, |ask| {
            ask.input = Input::Task {
                name: TaskName::new("explain").unwrap(),
                input_json: "{\"code\": \"E42\"}",
            };
        });
        let (text, end) = client.answer("1");
        assert!(matches!(end, Got::Done(..)), "{end:?}");
        text
    };
    let first = ask(&daemon);
    assert_eq!(ask(&daemon), first, "guessed from the first");
    let metrics = daemon.http().get("/metrics").unwrap().text();
    let counted = "andon_task_completion_tokens_total{task=\"explain\"}";
    assert!(metrics.contains(counted), "{metrics}");
    daemon.terminate().unwrap();
    daemon.wait(READ_TIMEOUT).unwrap();
    let folder = daemon.folder().join("cache/corpora");
    let files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    daemon.restart().unwrap();
    assert_eq!(ask(&daemon), first);
    let said = "a file of earlier answers is not used";
    assert!(!daemon.log().contains(said));
    daemon.kill().unwrap();
    let bytes = std::fs::read(&files[0]).unwrap();
    std::fs::write(&files[0], &bytes[..bytes.len() / 2]).unwrap();
    daemon.restart().unwrap();
    assert_eq!(ask(&daemon), first);
    assert!(daemon.log().contains(said), "{}", daemon.log());
}
