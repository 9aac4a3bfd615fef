//! `andonctl chat` with its input piped in.

use andon_wire::{ClientFrame, ErrorCode, Fault, Input, RequestId, Role, ServerFrame};

use crate::support::{Peer, Server};

/// Answers a conversation with its messages and their numbers; a connection that asks nothing is
/// fine.
fn echo(peer: &mut Peer) {
    let Some((id, answer)) = asked(peer) else {
        return;
    };
    if answer.contains("fail") {
        let code = ErrorCode::Internal;
        let fault = Fault {
            id: Some(id),
            code,
            message: "failed",
            retry_after_ms: None,
        };
        peer.send(&ServerFrame::Error(fault));
        return;
    }
    let (first, rest) = answer.split_at(2);
    peer.answer(&id, &[first, rest.trim_end()]);
}

fn asked(peer: &mut Peer) -> Option<(RequestId, String)> {
    let frame = peer.receive()?;
    let ClientFrame::Ask(ask) = frame else {
        panic!("{frame:?}");
    };
    let Input::Messages(messages) = &ask.input else {
        panic!("{:?}", ask.input);
    };
    assert_eq!(
        messages.last().map(|message| message.role),
        Some(Role::User)
    );
    let mut answer = String::new();
    for (index, message) in messages.iter().enumerate() {
        answer += &format!("{index}{}:{} ", message.role.as_str(), message.content);
    }
    Some((ask.id.clone(), answer))
}

#[test]
fn the_conversation_is_kept_until_reset() {
    let server = Server::welcoming(echo);
    let outcome = server.run_with(["chat", "--system", "S"], "one\n\n  \ntwo\r\n/reset\nthree");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "0system:S 1user:one\n\
         0system:S 1user:one 2assistant:0system:S 1user:one 3user:two\n\
         0system:S 1user:three\n"
    );
    assert_eq!(outcome.stderr, "");
}

#[test]
fn quit_ends_it() {
    let server = Server::welcoming(echo);
    let outcome = server.run_with(["chat"], "one\n/quit\ntwo\n");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stdout, "0user:one\n");
    assert_eq!(server.run_with(["chat"], "").code, Some(0));
}

#[test]
fn stats_go_to_standard_error() {
    let server = Server::welcoming(echo);
    let outcome = server.run_with(["chat", "--stats"], "one\ntwo\n");
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .starts_with("[first token 21 ms, 2 tokens at 100.0 tok/s")
    );
}

#[test]
fn a_script_ends_where_a_turn_failed() {
    let server = Server::welcoming(echo);
    let outcome = server.run_with(["chat"], "one\nfail\ntwo\n");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_eq!(outcome.stdout, "0user:one\n");
    assert!(outcome.stderr.contains("failed"), "{outcome:?}");
}

#[test]
fn a_conversation_that_grew_too_long_says_so() {
    let server = Server::welcoming(|peer| {
        if let Some((id, _)) = asked(peer) {
            peer.answer(&id, &["ok"]);
        }
    });
    // The instructions, 63 turns and a question are the 128 messages that are allowed; the 65th
    // question is too much.
    let outcome = server.run_with(["chat", "--system", "S"], &"x\n".repeat(65));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert_eq!(outcome.stdout, "ok\n".repeat(64));
    assert!(outcome.stderr.contains("/reset"), "{outcome:?}");
}
