//! Calls of tools that an upstream made, in the text that front ends read calls from.
//!
//! A worker's answer writes calls as its model does, and says how; an upstream's come as fields, and are written in the plain
//! format here.

use andon_engine::calls::{CallEvent, CallFormat, CallReader};

use crate::upstream::ToolCall;

/// How calls are written here.
pub(super) fn format() -> CallFormat {
    CallFormat::plain(None)
}

/// A text with the calls behind it, as front ends read both; `None` if they would read something else: a text that writes calls
/// itself, which nobody has checked.
pub(super) fn with(text: &str, calls: &[ToolCall]) -> Option<String> {
    let each = calls.iter().map(|call| {
        let (name, arguments) = (&call.name, &call.arguments);
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    });
    let whole = text.to_owned() + &each.collect::<Vec<String>>().join("\n");
    let (said, made) = read(&whole);
    let made = made.iter().map(|(name, arguments)| (name, arguments));
    let calls = calls.iter().map(|call| (&call.name, &call.arguments));
    // What stands between a text and calls is left out by some readers.
    (said.trim() == text.trim() && made.eq(calls)).then_some(whole)
}

/// The text and the complete calls, by name and arguments, that front ends find in an answer.
fn read(answer: &str) -> (String, Vec<(String, String)>) {
    let mut reader = CallReader::new(format());
    let mut events = reader.push(answer);
    events.extend(reader.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for event in events {
        match event {
            CallEvent::Text(piece) => text.push_str(&piece),
            CallEvent::Begin(name) => calls.push((name, String::new())),
            CallEvent::Arguments(piece) => {
                if let Some((_, arguments)) = calls.last_mut() {
                    arguments.push_str(&piece);
                }
            }
            CallEvent::End => {}
        }
    }
    (text, calls)
}

#[cfg(test)]
mod tests {
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
        let whole = with("Let me see.", &calls).expect("it is read back");
        let (text, read) = read(&whole);
        assert_eq!(text, "Let me see.");
        let expected = calls.map(|call| (call.name, call.arguments));
        assert_eq!(read, expected);
    }

    #[test]
    fn a_text_that_writes_calls_itself_is_none() {
        let one = [call("tell", "{}")];
        let own =
            "<tool_call>\n{\"name\": \"stop_belt\", \"arguments\": {\"belt\": 3}}\n</tool_call>";
        for text in [own, &format!("Well. {own}"), &format!("{own}\nand so on")] {
            assert_eq!(with(text, &[]), None, "{text}");
            assert_eq!(with(text, &one), None, "{text}");
        }
        for text in ["", "Well, 3 < 4.", "<tool", " \n", "Say <b>no</b>.\n"] {
            let whole = with(text, &one).expect("plain text");
            assert!(whole.starts_with(text), "{text}");
            assert_eq!(with(text, &[]).as_deref(), Some(text));
        }
    }
}
