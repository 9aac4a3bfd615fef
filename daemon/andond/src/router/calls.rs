//! Calls of tools that an upstream made, in the text that front ends read calls from.
//!
//! A worker's answer writes calls as its model does, and says how; an upstream's come as fields, and are written in the plain
//! format here.

use andon_engine::calls::CallFormat;

use crate::upstream::ToolCall;

/// How calls are written here.
pub(super) fn format() -> CallFormat {
    CallFormat::plain(None)
}

/// The calls, one after the other.
pub(super) fn written(calls: &[ToolCall]) -> String {
    let each = calls.iter().map(|call| {
        let (name, arguments) = (&call.name, &call.arguments);
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    });
    each.collect::<Vec<String>>().join("\n")
}

#[cfg(test)]
mod tests {
    use andon_engine::calls::{CallEvent, CallReader};

    use super::*;

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall {
            id: "1".to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let calls = [
            call("stop_belt", r#"{"belt": 3, "why": "a } \"quoted\" brace"}"#),
            call(
                "tell",
                r#"{"text":"<tool_call>\n</tool_call>","to":[{"a":null}]}"#,
            ),
            call("none", "{}"),
        ];
        let mut reader = CallReader::new(format());
        let mut events = reader.push("Let me see.");
        events.extend(reader.push(&written(&calls)));
        events.extend(reader.finish());
        let (mut text, mut read) = (String::new(), Vec::new());
        for event in events {
            match event {
                CallEvent::Text(piece) => text.push_str(&piece),
                CallEvent::Begin(name) => read.push((name, String::new(), false)),
                CallEvent::Arguments(piece) => {
                    read.last_mut()
                        .expect("a call has begun")
                        .1
                        .push_str(&piece);
                }
                CallEvent::End => read.last_mut().expect("a call has begun").2 = true,
            }
        }
        assert_eq!(text, "Let me see.");
        let expected = calls.map(|call| (call.name, call.arguments, true));
        assert_eq!(read, expected);
    }
}
