//! Replies as servers write them, cut anywhere, and what is none.

use proptest::prelude::*;

use super::*;

const GOOD: &str = ": hello\r\n\r\nevent: x\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
    data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Gr\u{fc}\u{df}\"}},{\"index\":1,\"delta\":{\"content\":\"no\"}}]}\r\n\r\n\
    data: {\"choices\":[{\"delta\":\ndata: {\"content\":\" Gott\"}}]}\n\n\
    data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

fn read(
    form: Form,
    tokens_max: Option<usize>,
    pieces: &[&[u8]],
) -> Result<(String, Complete), ReadFault> {
    let mut reader = Reader::new(form, tokens_max);
    let mut text = String::new();
    let mut add = |found: Vec<Found>| {
        for one in found {
            if let Found::Text(piece) = one {
                text.push_str(&piece);
            }
        }
    };
    for piece in pieces {
        add(reader.push(piece)?);
    }
    let (rest, complete) = reader.finish()?;
    add(rest);
    Ok((text, complete))
}

#[test]
fn what_an_answer_took_is_not_worth_the_answer() {
    let usage = |usage: &str| {
        let reply = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}},\"finish_reason\":\"stop\"}}],\"usage\":{usage}}}\n\n"
        );
        let (text, complete) = read(Form::Events, None, &[reply.as_bytes()]).expect("an answer");
        assert_eq!(text, "a", "{usage}");
        complete.usage
    };
    let of = |prompt: &str| {
        usage(&format!(
            "{{\"prompt_tokens\":{prompt},\"completion_tokens\":2}}"
        ))
    };
    assert_eq!(of("1"), Some((1, 2)));
    assert_eq!(of("5000000000"), Some((u32::MAX, 2)));
    for none in ["-1", "1.5", "1e300", "\"7\"", "null", "{}"] {
        assert_eq!(of(none), None, "{none}");
    }
    for none in ["null", "[]", "\"none\"", "3"] {
        assert_eq!(usage(none), None, "{none}");
    }
}

#[test]
fn half_an_answer_is_none_whatever_its_end_is_called() {
    let reply = |first: &str, last: &str| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}},\"finish_reason\":{first}}}]}}\n\n\
             data: {{\"choices\":[{{\"delta\":{{\"content\":\"b\"}},\"finish_reason\":{last}}}]}}\n\ndata: [DONE]\n\n"
        )
    };
    let finish = |first, last| {
        let read = read(Form::Events, None, &[reply(first, last).as_bytes()]);
        read.map(|(text, complete)| (text, complete.finish))
    };
    let whole = "ab".to_owned();
    assert_eq!(
        finish("\"\"", "\"stop\"").ok(),
        Some((whole.clone(), Finish::Stop))
    );
    assert_eq!(
        finish("null", "\"max_tokens\"").ok(),
        Some((whole, Finish::Length))
    );
    for reason in ["\"abort\"", "\"error\"", "\"insufficient_system_resource\""] {
        let fault = finish("null", reason).expect_err(reason);
        assert_eq!(fault.kind, FaultKind::Broken);
    }
}

fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

fn text(content: &str) -> String {
    event(&serde_json::json!({"choices": [{"delta": {"content": content}}]}).to_string())
}

const STOP: &str = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;

#[test]
fn a_stream_is_read_however_it_is_cut() {
    let whole = read(Form::Events, None, &[GOOD.as_bytes()]).expect("good");
    assert_eq!(whole.0, "Gr\u{fc}\u{df} Gott");
    assert_eq!(
        (whole.1.finish, whole.1.usage),
        (Finish::Stop, Some((7, 3)))
    );
    let single: Vec<&[u8]> = GOOD.as_bytes().chunks(1).collect();
    assert_eq!(read(Form::Events, None, &single), Ok(whole.clone()));
    for at in 0..GOOD.len() {
        let (head, tail) = GOOD.as_bytes().split_at(at);
        assert_eq!(
            read(Form::Events, None, &[head, tail]),
            Ok(whole.clone()),
            "{at}"
        );
    }
}

#[test]
fn half_a_stream_is_no_answer() {
    let end = GOOD.find("\"stop\"}").expect("there");
    for at in 0..end {
        let half = GOOD.as_bytes().get(..at).expect("within");
        let fault = read(Form::Events, None, &[half]).expect_err("half");
        assert_eq!(fault.kind, FaultKind::Broken, "{at}");
    }
    // What follows the end of the answer may be missing.
    let ends = format!("{}data: {STOP}", text("a"));
    let (said, complete) = read(Form::Events, None, &[ends.as_bytes()]).expect("complete");
    assert_eq!((said.as_str(), complete.usage), ("a", None));
    assert_eq!(complete.tokens_seen, 1);
}

#[test]
fn what_is_no_reply_is_told_apart() {
    for (form, bytes, kind) in [
        (Form::Events, "<html>\n", FaultKind::Garbled),
        (Form::Events, "data: {\n\n", FaultKind::Garbled),
        (Form::Events, "data: \u{0}\n\n", FaultKind::Garbled),
        (
            Form::Events,
            "data: {\"choices\":[{\"delta\":{\"content\":5}}]}\n\n",
            FaultKind::Garbled,
        ),
        (
            Form::Events,
            "data: {\"error\":{\"message\":\"secret\"}}\n\n",
            FaultKind::Failed,
        ),
        (Form::Events, "data: [DONE]\n\n", FaultKind::Garbled),
        (Form::Events, "", FaultKind::Broken),
        (Form::Whole, "", FaultKind::Garbled),
        (Form::Whole, "{\"choices\":[]}", FaultKind::Garbled),
        (
            Form::Whole,
            "{\"choices\":[{\"message\":{\"content\":\"a\"}}]}",
            FaultKind::Garbled,
        ),
        (
            Form::Whole,
            "{\"choices\":[{\"message\":{\"content\":\"\"},\"finish_reason\":\"content_filter\"}]}",
            FaultKind::Withheld,
        ),
        (
            Form::Whole,
            "{\"choices\":[{\"message\":{\"refusal\":\"no\"},\"finish_reason\":\"stop\"}]}",
            FaultKind::Withheld,
        ),
    ] {
        let fault = read(form, None, &[bytes.as_bytes()]).expect_err(bytes);
        assert_eq!(fault.kind, kind, "{bytes}");
    }
    assert_eq!(
        read(Form::Events, None, &[b"data: \xff\n\n"])
            .expect_err("no text")
            .kind,
        FaultKind::Garbled
    );
    let deep = event(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    let fault = read(Form::Events, None, &[deep.as_bytes()]).expect_err("too deep");
    assert_eq!(fault.kind, FaultKind::Garbled);
}

#[test]
fn what_does_not_end_is_ended() {
    let long = "x".repeat(EVENT_BYTES_MAX);
    let line = format!("data: {long}");
    let lines = "data: 0123456789\n".repeat(EVENT_BYTES_MAX / 10);
    let comments = ": x\n".repeat(1024);
    for (bytes, count) in [
        (&line, 1),
        (&lines, 1),
        (&comments, REPLY_BYTES_MAX / 4096 + 1),
    ] {
        let mut reader = Reader::new(Form::Events, None);
        let mut outcome = Ok(Vec::new());
        for _ in 0..count {
            outcome = reader.push(bytes.as_bytes());
            if outcome.is_err() {
                break;
            }
        }
        assert_eq!(outcome.expect_err("too much").kind, FaultKind::Endless);
        assert!(reader.line.capacity() + reader.data.capacity() <= 4 * EVENT_BYTES_MAX);
    }
    let piece = text("a");
    let mut reader = Reader::new(Form::Events, Some(20));
    let fault = (0..).find_map(|count| {
        reader
            .push(piece.as_bytes())
            .err()
            .map(|fault| (count, fault))
    });
    let (count, fault) = fault.expect("it ends");
    assert_eq!((count, fault.kind), (80, FaultKind::Endless));
    let piece = text(&"a".repeat(1000));
    let mut reader = Reader::new(Form::Events, None);
    let count = (0..).find(|_| reader.push(piece.as_bytes()).is_err());
    assert_eq!(count, Some(TEXT_BYTES_MAX / 1000));
    let whole = read(Form::Whole, None, &[long.as_bytes(), b"x"]).expect_err("too much");
    assert_eq!(whole.kind, FaultKind::Endless);
}

#[test]
fn calls_come_in_pieces_or_whole() {
    let delta = |calls: serde_json::Value| {
        event(&serde_json::json!({"choices": [{"delta": {"tool_calls": calls}}]}).to_string())
    };
    let stream = [
        delta(serde_json::json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}])),
        delta(serde_json::json!([{"index": 0, "function": {"arguments": "{\"x\""}}])),
        delta(serde_json::json!([{"index": 0, "function": {"arguments": ":1}"}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}])),
        event(STOP),
    ]
    .concat();
    let (_, complete) = read(Form::Events, None, &[stream.as_bytes()]).expect("good");
    let call = |id: &str, name: &str, arguments: &str| ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    };
    assert_eq!(
        complete.calls,
        [call("a", "f", "{\"x\":1}"), call("b", "g", "{}")]
    );
    let whole = serde_json::json!({"choices": [{"message": {"tool_calls": [
        {"id": "a", "function": {"name": "f", "arguments": "1"}},
        {"id": "b", "function": {"name": "g", "arguments": "2"}}]}, "finish_reason": "tool_calls"}]});
    let (_, complete) = read(Form::Whole, None, &[whole.to_string().as_bytes()]).expect("good");
    assert_eq!(complete.calls, [call("a", "f", "1"), call("b", "g", "2")]);
    for (calls, kind) in [
        (
            serde_json::json!([{"index": 5, "function": {"name": "f"}}]),
            FaultKind::Garbled,
        ),
        (
            serde_json::json!([{"index": usize::MAX, "function": {"name": "f"}}]),
            FaultKind::Endless,
        ),
        (
            serde_json::json!([{"index": 0, "function": {"name": "f", "arguments": "x".repeat(CALLS_BYTES_MAX)}}]),
            FaultKind::Endless,
        ),
    ] {
        let fault = read(Form::Events, None, &[delta(calls).as_bytes()]).expect_err("no calls");
        assert_eq!(fault.kind, kind);
    }
}

#[test]
fn one_name_or_the_other_or_both_are_understood() {
    let stop = event(STOP);
    for (said, text, tokens) in [
        (
            r#"{"choices":[{"delta":{"content":"a","reasoning":null,"reasoning_content":null}}]}"#,
            "a",
            1,
        ),
        (
            r#"{"choices":[{"delta":{"content":"","reasoning":"hm","reasoning_content":"hm"}}]}"#,
            "",
            1,
        ),
        (
            r#"{"choices":[{"delta":{"content":null,"reasoning":{"text":"0123456789"}}}]}"#,
            "",
            11,
        ),
        (
            r#"{"choices":[{"delta":{"content":"b"},"message":{"role":"assistant","content":"ab"}}]}"#,
            "b",
            1,
        ),
        (r#"{"choices":[{"message":{"content":"c"}}]}"#, "c", 1),
    ] {
        let stream = [event(said), stop.clone()].concat();
        let (found, complete) = read(Form::Events, None, &[stream.as_bytes()]).expect(said);
        assert_eq!(
            (found.as_str(), complete.tokens_seen),
            (text, tokens),
            "{said}"
        );
    }
    for whole in [
        r#"{"choices":[{"message":{"content":"a"},"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
    ] {
        let (found, _) = read(Form::Whole, None, &[whole.as_bytes()]).expect(whole);
        assert_eq!(found, "a");
    }
}

#[test]
fn what_a_model_thinks_is_counted() {
    let thought =
        event(r#"{"choices":[{"delta":{"reasoning_content":"so the press is hot, and"}}]}"#);
    let stream = [thought.repeat(100), text("Yes."), event(STOP)].concat();
    let (said, complete) = read(Form::Events, Some(5), &[stream.as_bytes()]).expect("good");
    assert_eq!((said.as_str(), complete.tokens_seen), ("Yes.", 1_202));
}

proptest! {
    /// Bytes of any kind are read to an end, and to the same wherever they are cut.
    #[test]
    fn any_bytes_are_read_alike(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                Just(b"data: ".to_vec()),
                Just(b"\n\n".to_vec()),
                Just(text("abc").into_bytes()),
                Just(event(STOP).into_bytes()),
                Just(b"data: [DONE]\n\n".to_vec()),
            ],
            0..12,
        ),
        at in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let form = if whole { Form::Whole } else { Form::Events };
        let all = pieces.concat();
        let (head, tail) = all.split_at(at.index(all.len() + 1));
        let outcome = read(form, Some(1000), &[&all]);
        prop_assert_eq!(read(form, Some(1000), &[head, tail]), outcome.clone());
        if let Ok((said, complete)) = outcome {
            prop_assert!(complete.tokens_seen as usize >= said.len().div_ceil(3).min(said.chars().count()) / 2);
        }
    }
}
