//! `andonctl ask` against a server that behaves.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use crate::support::{Outcome, Server, done};
use andon_wire::{
    ClientFrame, Egress, ErrorCode, Fault, Finish, Input, Message, Priority, RequestId, Role,
    ServerFrame,
};

fn says(text: &'static str) -> impl Fn(&andon_wire::Ask<'_>) {
    move |ask| match &ask.input {
        Input::Messages(messages) => {
            assert_eq!(
                messages.as_slice(),
                [Message {
                    role: Role::User,
                    content: text
                }]
            );
        }
        other => panic!("{other:?}"),
    }
}

fn interrupt(child: &Child) {
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_answer_goes_to_standard_output_and_nothing_else_does() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("why does it stop"));
        peer.answer(&id, &["Because", " of", " the guard — été."]);
    });
    let outcome = server.run(["ask", "why", "does", "it", "stop"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stdout, "Because of the guard — été.\n");
    assert_eq!(outcome.stderr, "");

    let outcome = server.run(["ask", "--stats", "why does it stop"]);
    assert_eq!(outcome.stdout, "Because of the guard — été.\n");
    assert_eq!(
        outcome.stderr,
        "[first token 21 ms, 3 tokens at 200.0 tok/s; prompt 12 tokens, 8 cached; tiny, local, stop]\n"
    );
}

#[test]
fn pieces_are_shown_as_they_come() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("go"));
        peer.chunk(&id, 0, "one");
        // The rest is sent only when the first piece was seen.
        match peer.receive() {
            Some(ClientFrame::Cancel(cancel)) => assert_eq!(cancel.id, id),
            other => panic!("{other:?}"),
        }
        peer.chunk(&id, 1, " two");
        let done = andon_wire::Done {
            finish: Finish::Cancelled,
            ..done(&id, 2)
        };
        peer.send(&ServerFrame::Done(done));
    });
    let mut child = server.andonctl(["ask", "go"]).spawn().unwrap();
    let mut first = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"one");
    interrupt(&child);
    let outcome = Outcome::from(child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(4), "{outcome:?}");
    assert_eq!(outcome.stdout, " two\n");
    assert!(outcome.stderr.contains("cancelled"), "{outcome:?}");
}

#[test]
fn a_second_interrupt_ends_the_program() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("go"));
        peer.chunk(&id, 0, "one");
        assert!(matches!(peer.receive(), Some(ClientFrame::Cancel(_))));
        peer.chunk(&id, 1, "two");
        // Never ends the answer; the program goes nevertheless.
        assert_eq!(peer.receive(), None);
    });
    let mut child = server.andonctl(["ask", "go"]).spawn().unwrap();
    let mut three = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut three)
        .unwrap();
    interrupt(&child);
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut three)
        .unwrap();
    assert_eq!(&three, b"two");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn when_the_reader_goes_away_the_request_ends_quietly() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("go"));
        let mut sequence = 0;
        while peer.chunk(&id, sequence, "more and more\n") {
            sequence += 1;
        }
    });
    let mut child = server.andonctl(["ask", "go"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    let outcome = Outcome::from(child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn options_become_the_request() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(|ask| {
            assert_eq!(ask.id.as_str(), "my-1");
            match &ask.input {
                Input::Messages(messages) => assert_eq!(
                    messages.as_slice(),
                    [
                        Message {
                            role: Role::System,
                            content: "Be brief."
                        },
                        Message {
                            role: Role::User,
                            content: "hello"
                        },
                    ]
                ),
                other => panic!("{other:?}"),
            }
            assert_eq!(
                ask.model.as_ref().map(andon_wire::ModelName::as_str),
                Some("org/tiny")
            );
            assert_eq!(ask.tokens_max, Some(64));
            assert_eq!(ask.stop.as_slice(), ["\n\n", "END"]);
            assert_eq!(ask.priority, Some(Priority::Alarm));
            assert_eq!(ask.deadline_ms, Some(20_000));
            assert_eq!(ask.egress, Some(Egress::Local));
            assert_eq!(ask.sampling.temperature, Some(0.5));
            assert_eq!(ask.sampling.top_p, Some(0.9));
            assert_eq!(ask.sampling.top_k, Some(40));
            assert_eq!(ask.sampling.min_p, Some(0.05));
            assert_eq!(ask.sampling.repeat_penalty, Some(1.1));
            assert_eq!(ask.sampling.repeat_last_n, Some(64));
            assert_eq!(ask.sampling.presence_penalty, Some(-0.5));
            assert_eq!(ask.sampling.frequency_penalty, Some(0.25));
            assert_eq!(ask.sampling.seed, Some(7));
            assert!(!ask.stream);
        });
        peer.answer(&id, &["hi"]);
    });
    let outcome = server.run([
        "ask",
        "--id",
        "my-1",
        "--system",
        "Be brief.",
        "--model",
        "org/tiny",
        "--tokens-max",
        "64",
        "--stop",
        "\n\n",
        "--stop",
        "END",
        "--priority",
        "alarm",
        "--deadline-ms",
        "20000",
        "--egress",
        "local",
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "40",
        "--min-p",
        "0.05",
        "--repeat-penalty",
        "1.1",
        "--repeat-last-n",
        "64",
        "--presence-penalty",
        "-0.5",
        "--frequency-penalty",
        "0.25",
        "--seed",
        "7",
        "--no-stream",
        "hello",
    ]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stdout, "hi\n");
}

#[test]
fn text_comes_from_standard_input_too() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("line one\nline two\n"));
        peer.answer(&id, &["ok\n"]);
    });
    for arguments in [&["ask"][..], &["ask", "-"]] {
        let outcome = server.run_with(arguments, "line one\nline two\n");
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(outcome.stdout, "ok\n");
    }
}

#[test]
fn a_raw_text_and_a_task_are_sent_as_such() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(|ask| match &ask.input {
            Input::Prompt(text) => assert_eq!(*text, "Once upon"),
            Input::Task { name, input_json } => {
                assert_eq!(name.as_str(), "explain");
                assert_eq!(*input_json, r#"{"code":"E42"}"#);
            }
            other => panic!("{other:?}"),
        });
        peer.answer(&id, &["ok"]);
    });
    assert_eq!(server.run(["ask", "--raw", "Once upon"]).code, Some(0));
    let input = r#"{"code":"E42"}"#;
    assert_eq!(
        server
            .run(["ask", "--task", "explain", "--input", input])
            .code,
        Some(0)
    );
    assert_eq!(
        server
            .run_with(["ask", "--task", "explain", "--input", "-"], input)
            .code,
        Some(0)
    );
}

#[test]
fn the_last_attempt_is_the_answer() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("go"));
        peer.chunk(&id, 0, "lost");
        for (sequence, text) in [(0, "kept"), (1, " too")] {
            let chunk = andon_wire::Chunk {
                id: id.clone(),
                attempt: 2,
                sequence,
                text,
            };
            peer.send(&ServerFrame::Chunk(chunk));
        }
        peer.send(&ServerFrame::Done(andon_wire::Done {
            attempt: 2,
            ..done(&id, 2)
        }));
    });
    let outcome = server.run(["ask", "--no-stream", "go"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stdout, "kept too\n");
    assert!(outcome.stderr.contains("begins again"), "{outcome:?}");
}

#[test]
fn json_has_the_answer_and_the_figures() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(|_| {});
        peer.answer(&id, &["a \"b\"", "\n", "c"]);
    });
    let outcome = server.run(["ask", "--json", "--id", "j", "go"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "text": "a \"b\"\nc",
            "id": "j",
            "attempt": 1,
            "chunks": 3,
            "finish": "stop",
            "model": "tiny",
            "usage": {"prompt_tokens": 12, "cached_tokens": 8, "completion_tokens": 3},
            "timings": {
                "queue_us": 10, "prefill_us": 20_000, "decode_us": 10_000, "first_token_us": 21_000
            },
            "origin": "local",
            "decode_tokens_per_s": 200.0,
        })
    );
}

#[test]
fn refusals_say_why_and_what_to_do() {
    for (code, retry_after_ms, status, advice) in [
        (ErrorCode::Busy, Some(1500), 5, "try again in 1.5 s"),
        (ErrorCode::Unavailable, None, 5, "try again"),
        (ErrorCode::UnknownModel, None, 1, "andonctl models"),
        (ErrorCode::ContextFull, None, 1, "less text"),
        (ErrorCode::DeadlineExceeded, None, 4, "--deadline-ms"),
        (ErrorCode::Cancelled, None, 4, "told so"),
        (ErrorCode::Internal, None, 1, "journalctl"),
    ] {
        let server = Server::welcoming(move |peer| {
            let id = peer.accept(|_| {});
            let fault = Fault {
                id: Some(id),
                code,
                message: "told so",
                retry_after_ms,
            };
            peer.send(&ServerFrame::Error(fault));
        });
        let outcome = server.run(["ask", "go"]);
        assert_eq!(outcome.code, Some(status), "{code:?} {outcome:?}");
        assert_eq!(outcome.stdout, "");
        assert!(outcome.stderr.contains("told so"), "{outcome:?}");
        assert!(outcome.stderr.contains(code.as_str()), "{outcome:?}");
        assert!(outcome.stderr.contains(advice), "{outcome:?}");

        let outcome = server.run(["ask", "--json", "--id", "e", "go"]);
        assert_eq!(outcome.code, Some(status), "{code:?} {outcome:?}");
        let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(json["error"]["code"], code.as_str());
        assert_eq!(json["error"]["message"], "told so");
        assert_eq!(json["error"]["id"], "e");
    }
}

#[test]
fn what_breaks_a_limit_is_not_sent() {
    let server = Server::start(|_| panic!("nothing should have been sent"));
    for arguments in [
        &["ask", "--temperature", "NaN", "x"][..],
        &["ask", "--temperature", "3", "x"],
        &["ask", "--tokens-max", "0", "x"],
        &["ask", "--deadline-ms", "0", "x"],
        &["ask", "--stop", "", "x"],
        &["ask", "--id", "a/b", "x"],
        &["ask", "--id", "", "x"],
        &["ask", "--priority", "urgent", "x"],
        &["ask", "--task", "t", "--input", "[]"],
        &["ask", "--task", "t", "--input", "{"],
        &["ask", "--task", "t"],
        &["ask", "--task", "t", "--input", "{}", "x"],
        &["ask", "--raw", "--system", "s", "x"],
        &["ask", "--task", "t#", "--input", "{}"],
    ] {
        let outcome = server.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?} {outcome:?}");
        assert!(!outcome.stderr.is_empty());
    }
    for nothing in ["", " \n"] {
        let outcome = server.run_with(["ask"], nothing);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains("asks nothing"), "{outcome:?}");
    }
    let long = "x".repeat(andon_wire::limits::INPUT_BYTES_MAX + 1);
    let outcome = server.run_with(["ask"], &long);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("524289 bytes"), "{outcome:?}");
    let many = ["--stop", "x"].repeat(9);
    assert_eq!(
        server.run([&["ask"][..], &many, &["x"]].concat()).code,
        Some(2)
    );
}

#[test]
fn the_longest_input_is_sent() {
    let text = "x".repeat(andon_wire::limits::INPUT_BYTES_MAX);
    let bytes = text.len();
    let server = Server::welcoming(move |peer| {
        let id = peer.accept(|ask| match &ask.input {
            Input::Messages(messages) => assert_eq!(messages[0].content.len(), bytes),
            other => panic!("{other:?}"),
        });
        peer.answer(&id, &["long"]);
    });
    let outcome = server.run_with(["ask"], &text);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stdout, "long\n");
}

#[test]
fn every_request_has_an_id_of_its_own() {
    let mut seen = std::collections::HashSet::<RequestId>::new();
    let server = Server::welcoming(move |peer| {
        let id = peer.accept(|_| {});
        assert!(seen.insert(id.clone()), "{id} twice");
        peer.answer(&id, &["ok"]);
    });
    for _ in 0..8 {
        assert_eq!(server.run(["ask", "x"]).code, Some(0));
    }
}

#[test]
fn a_terminal_is_not_at_the_mercy_of_the_model() {
    // Into a pipe the text goes as it is: it is data.
    let server = Server::welcoming(|peer| {
        let id = peer.accept(|_| {});
        peer.answer(&id, &["\x1b[2J"]);
    });
    assert_eq!(server.run(["ask", "x"]).stdout, "\x1b[2J\n");
    // Messages go where a terminal may be, and never have control characters.
    let server = Server::welcoming(|peer| {
        let id = peer.accept(|_| {});
        let message = "bad \x1b]0;title\x07 thing";
        let code = ErrorCode::Internal;
        let fault = Fault {
            id: Some(id),
            code,
            message,
            retry_after_ms: None,
        };
        peer.send(&ServerFrame::Error(fault));
    });
    let outcome = server.run(["ask", "x"]);
    assert!(!outcome.stderr.contains(['\x1b', '\x07']), "{outcome:?}");
    assert!(outcome.stderr.contains("thing"), "{outcome:?}");
}

#[test]
fn the_socket_can_be_named_by_the_environment() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(says("hello"));
        peer.answer(&id, &["hi"]);
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_andonctl"))
        .arg("ask")
        .env("ANDON_SOCKET", server.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let outcome = Outcome::from(child.wait_with_output().unwrap());
    assert_eq!(outcome.stdout, "hi\n", "{outcome:?}");
}
