//! Calls of tools in the answers of a reply: read as they come, each with an id of its own.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use andon_engine::calls::{CallEvent, CallFormat, CallReader};
use serde_json::{Value, json};

use crate::worker::Finish;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Text.
    Text(String),
    /// A call begins; of those of its answer it has this place.
    Begin {
        place: usize,
        id: String,
        name: String,
    },
    /// A piece of the arguments of the call at this place.
    Arguments { place: usize, text: String },
    /// The call at this place is complete.
    End { place: usize },
}

/// Reads one answer. Without a format, all of it is text.
#[derive(Debug)]
pub(super) struct Reading {
    reader: Option<CallReader>,
    /// What ids are made of.
    seed: (String, usize),
    begun: usize,
    complete: usize,
}

impl Reading {
    /// A reading of answer `index` of the reply `id`.
    pub(super) fn new(format: Option<&CallFormat>, id: &str, index: usize) -> Reading {
        Reading {
            reader: format.map(|format| CallReader::new(format.clone())),
            seed: (id.to_owned(), index),
            begun: 0,
            complete: 0,
        }
    }

    /// Whether the answer may have calls.
    pub(super) fn reads_calls(&self) -> bool {
        self.reader.is_some()
    }

    /// Takes the next piece of the answer's text.
    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        match &mut self.reader {
            None => vec![Part::Text(text.to_owned())],
            Some(reader) => {
                let events = reader.push(text);
                self.parts(events)
            }
        }
    }

    /// Ends the answer.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let events = self.reader.as_mut().map(CallReader::finish);
        self.parts(events.unwrap_or_default())
    }

    /// OpenAI's word for why the answer ended.
    pub(super) fn finish_name(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Stop if self.complete > 0 => "tool_calls",
            finish => finish.name(),
        }
    }

    fn parts(&mut self, events: Vec<CallEvent>) -> Vec<Part> {
        let mut parts = Vec::with_capacity(events.len());
        for event in events {
            let place = self.begun.saturating_sub(1);
            parts.push(match event {
                CallEvent::Text(text) => Part::Text(text),
                CallEvent::Begin(name) => {
                    let place = self.begun;
                    self.begun += 1;
                    let id = self.id(place);
                    Part::Begin { place, id, name }
                }
                CallEvent::Arguments(text) => Part::Arguments { place, text },
                CallEvent::End => {
                    self.complete += 1;
                    Part::End { place }
                }
            });
        }
        parts
    }

    /// An id that no other call of this machine has, as far as 64 bits tell them apart.
    fn id(&self, place: usize) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.seed, place).hash(&mut hasher);
        format!("call_{:016x}", hasher.finish())
    }
}

/// A call, gathered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
    /// Whether there is all of it.
    pub(super) complete: bool,
}

impl Call {
    /// As messages have it.
    pub(super) fn object(&self) -> Value {
        json!({
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        })
    }
}

/// Adds parts to what was gathered of an answer.
pub(super) fn gather(parts: Vec<Part>, text: &mut String, calls: &mut Vec<Call>) {
    for part in parts {
        match part {
            Part::Text(piece) => text.push_str(&piece),
            Part::Begin { id, name, .. } => calls.push(Call {
                id,
                name,
                ..Call::default()
            }),
            Part::Arguments { text, .. } => {
                if let Some(call) = calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
            Part::End { .. } => {
                if let Some(call) = calls.last_mut() {
                    call.complete = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_numbered_and_named_and_told_in_the_end() {
        let format = CallFormat::plain(None);
        let mut reading = Reading::new(Some(&format), "chatcmpl-1", 2);
        let (mut text, mut calls) = (String::new(), Vec::new());
        let said = "Let me see. <tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>\n\
                    <tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";
        for piece in said.split_inclusive(' ') {
            gather(reading.push(piece), &mut text, &mut calls);
        }
        gather(reading.finish(), &mut text, &mut calls);
        assert_eq!(text, "Let me see.");
        let all: Vec<_> = calls
            .iter()
            .map(|call| (call.name.as_str(), call.arguments.as_str()))
            .collect();
        assert_eq!(all, [("a", "{\"x\": 1}"), ("b", "{}")]);
        assert_ne!(calls[0].id, calls[1].id);
        assert_ne!(calls[0].id, Reading::new(None, "chatcmpl-1", 3).id(0));
        assert_eq!(reading.finish_name(Finish::Stop), "tool_calls");
        assert_eq!(reading.finish_name(Finish::Length), "length");
        let mut plain = Reading::new(None, "chatcmpl-1", 2);
        assert_eq!(
            plain.push("<tool_call>"),
            [Part::Text("<tool_call>".to_owned())]
        );
        assert_eq!(plain.finish_name(Finish::Stop), "stop");
    }
}
