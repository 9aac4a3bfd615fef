//! Servers that are not there, break off, or talk nonsense: always an exit status and a word about
//! it, never a hang, a panic or a wrong answer.

use std::os::unix::net::UnixListener;
use std::process::Command;

use andon_wire::{
    Chunk, ClientFrame, ErrorCode, Fault, HEADER_BYTES, RequestId, ServerFrame, Welcome, checksum,
};

use crate::support::{Outcome, Peer, Server, done, sealed};

const COMMANDS: [&[&str]; 5] = [
    &["ask", "x"],
    &["ask", "--json", "x"],
    &["status"],
    &["models"],
    &["cancel", "1"],
];

#[track_caller]
fn lost(outcome: &Outcome, why: &str) {
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains(why), "{why}: {outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
}

fn run(socket: &std::path::Path, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andonctl"));
    command
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(std::process::Stdio::null());
    Outcome::from(command.output().unwrap())
}

#[test]
fn nobody_there() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for arguments in COMMANDS.into_iter().chain([&["chat"][..]]) {
        lost(&run(&socket, arguments), "is andond running");
    }
    // A socket file that a daemon left behind.
    drop(UnixListener::bind(&socket).unwrap());
    for arguments in COMMANDS {
        lost(&run(&socket, arguments), "nobody listens");
    }
    lost(&run(directory.path(), &["status"]), "cannot connect");
    lost(
        &run(&directory.path().join("x".repeat(200)), &["status"]),
        "cannot connect",
    );
}

#[test]
fn something_else_answers() {
    let server = Server::start(|peer| {
        peer.receive();
        peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    for arguments in COMMANDS {
        lost(
            &server.run(arguments),
            "bytes where at most 8192 are allowed",
        );
    }
}

#[test]
fn the_connection_is_closed_at_every_byte() {
    let welcome = sealed(&ServerFrame::Welcome(Welcome {
        version: andon_wire::PROTOCOL_VERSION,
        software: "",
        gateway: "",
        frame_bytes_max: 1,
        requests_max: 1,
    }));
    let mut cut = 0;
    let rounds = welcome.len();
    let server = Server::start(move |peer| {
        peer.receive();
        peer.raw(&welcome[..cut]);
        cut += 1;
    });
    for cut in 0..rounds {
        let why = if cut == 0 {
            "the daemon closed it"
        } else {
            "ended inside a frame"
        };
        lost(&server.run(["status"]), why);
    }
}

#[test]
fn the_connection_is_closed_before_the_answer_ends() {
    let server = Server::welcoming(|peer| {
        let id = peer.accept(|_| {});
        peer.chunk(&id, 0, "half");
    });
    let outcome = server.run(["ask", "x"]);
    lost(&outcome, "the daemon closed it");
    assert_eq!(outcome.stdout, "half\n");
    let outcome = server.run(["ask", "--no-stream", "x"]);
    lost(&outcome, "the daemon closed it");
    assert_eq!(outcome.stdout, "");
}

/// What a server sends in place of an answer, and what the program says of it.
type Nonsense = (fn(&mut Peer, &RequestId) -> bool, &'static str);

#[test]
fn nonsense_in_place_of_an_answer() {
    let cases: [Nonsense; 11] = [
        (|peer, _| peer.raw(&[0; 64]), "at least 5 are needed"),
        (
            |peer, _| peer.raw(&u32::MAX.to_le_bytes()),
            "at most 8192 are allowed",
        ),
        (|peer, _| peer.raw(b"\x05\0\0\0\x03\0\0\0\0"), "checksum"),
        (|peer, _| seal(peer, &[99]), "does not decode"),
        (
            |peer, _| seal(peer, &[7, 1, b'a', 0, 0]),
            "follow the frame's value",
        ),
        (|peer, _| seal(peer, &[0, 99]), "version 99"),
        (|peer, _| seal(peer, &[1, 0, 0]), "outside its limits"),
        // A gap.
        (
            |peer, id| peer.chunk(id, 1, "two"),
            "chunk 1 of attempt 1 came where chunk 0",
        ),
        // A chunk went missing.
        (
            |peer, id| peer.send(&ServerFrame::Done(done(id, 1))),
            "1 chunks and 0 arrived",
        ),
        // An attempt that was given up on.
        (
            |peer, id| {
                [2, 1].into_iter().all(|attempt| {
                    let id = id.clone();
                    peer.send(&ServerFrame::Chunk(Chunk {
                        id,
                        attempt,
                        sequence: 0,
                        text: "",
                    }))
                })
            },
            "of attempt 1 came where",
        ),
        // Somebody else's answer.
        (
            |peer, _| {
                peer.send(&ServerFrame::Done(done(
                    &RequestId::new("other").unwrap(),
                    0,
                )))
            },
            "that is none",
        ),
    ];
    for (nonsense, why) in cases {
        let server = Server::welcoming(move |peer| {
            let id = peer.accept(|_| {});
            nonsense(peer, &id);
        });
        lost(&server.run(["ask", "x"]), why);
    }
}

fn seal(peer: &mut Peer, value: &[u8]) -> bool {
    let mut frame = u32::try_from(value.len() + 4)
        .unwrap()
        .to_le_bytes()
        .to_vec();
    frame.extend_from_slice(value);
    frame.extend_from_slice(&checksum(value).to_le_bytes());
    assert!(frame.len() > HEADER_BYTES);
    peer.raw(&frame)
}

#[test]
fn a_frame_that_answers_another_question() {
    let server = Server::welcoming(|peer| {
        let status = matches!(peer.receive(), Some(ClientFrame::Status));
        if status {
            seal(peer, &[6, 0]);
        } else {
            peer.chunk(&RequestId::new("1").unwrap(), 0, "x");
        }
    });
    for arguments in [
        &["status"][..],
        &["models"],
        &["cancel", "1"],
        &["ask", "x"],
    ] {
        lost(&server.run(arguments), "that is none");
    }
}

#[test]
fn the_daemon_refuses_the_connection() {
    for (code, status) in [
        (ErrorCode::UnsupportedVersion, 1),
        (ErrorCode::Denied, 1),
        (ErrorCode::Unavailable, 5),
    ] {
        let server = Server::start(move |peer| {
            peer.receive();
            let fault = Fault {
                id: None,
                code,
                message: "not you",
                retry_after_ms: None,
            };
            peer.send(&ServerFrame::Error(fault));
        });
        for arguments in COMMANDS {
            let outcome = server.run(arguments);
            assert_eq!(outcome.code, Some(status), "{outcome:?}");
            assert!(outcome.stderr.contains("not you"), "{outcome:?}");
        }
    }
}
