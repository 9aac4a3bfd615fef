//! What an upstream sends, read as it comes: a stream of events, or one piece of JSON.
//!
//! Invariant: whatever bytes come, what is kept of them is bounded, and an answer counts as complete only if the upstream said
//! that it is. Reading it does not depend on how the bytes were cut.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::answer::{FaultKind, ToolCall};
use crate::worker::Finish;

/// Most bytes of a reply.
const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most bytes of one event, and of a reply that comes as a whole.
const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of text in an answer.
const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of the names, ids and arguments of calls in an answer.
const CALLS_BYTES_MAX: usize = 256 * 1024;
/// Most calls in an answer, as here.
const CALLS_MAX: usize = 32;
/// Pieces of text that count as one token at most: a server may cut a token, but not everything.
const PIECES_PER_TOKEN: usize = 4;
/// Pieces that are always taken.
const PIECES_MIN: usize = 64;
/// Bytes of a token of which the upstream does not say how many there were; most have more.
const TOKEN_BYTES: usize = 2;
/// What ends a stream of events.
const DONE: &str = "[DONE]";

/// How a reply is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As server-sent events.
    Events,
    /// As one piece of JSON.
    Whole,
}

/// Why a reply is of no use. In the daemon's own words: nothing of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadFault {
    /// What kind of fault it is.
    pub kind: FaultKind,
    /// What is wrong.
    pub what: &'static str,
}

const fn garbled(what: &'static str) -> ReadFault {
    ReadFault {
        kind: FaultKind::Garbled,
        what,
    }
}

const fn endless(what: &'static str) -> ReadFault {
    ReadFault {
        kind: FaultKind::Endless,
        what,
    }
}

/// What was found in a piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A token that is no text: of a call, or of reasoning, which is not passed on.
    Token,
    /// Text.
    Text(String),
}

/// A complete reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    /// Why the answer ended.
    pub finish: Finish,
    /// The calls in it, not checked.
    pub calls: Vec<ToolCall>,
    /// Tokens of the prompt and of the answer, where the upstream says so.
    pub usage: Option<(u32, u32)>,
    /// Tokens of the answer at most, as far as can be seen from here.
    pub tokens_seen: u32,
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    /// Of an answer that comes in pieces.
    delta: Option<Delta>,
    /// Of one that comes whole.
    message: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    /// What a model thinks, by either name; some say it by both.
    reasoning_content: Option<Value>,
    reasoning: Option<Value>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<usize>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

/// Reads one reply.
#[derive(Debug)]
pub struct Reader {
    form: Form,
    pieces_max: usize,
    bytes: usize,
    /// A line that has not ended, or of a reply as a whole all of it.
    line: Vec<u8>,
    /// The data of an event that has not ended, and whether there is any.
    data: String,
    has_data: bool,
    pieces: usize,
    text_bytes: usize,
    /// Pieces of reasoning, and their bytes: not passed on, but paid for.
    thoughts: usize,
    thought_bytes: usize,
    calls: Vec<ToolCall>,
    calls_bytes: usize,
    finish: Option<String>,
    usage: Option<(u32, u32)>,
    refused: bool,
    over: bool,
}

impl Reader {
    /// A reader of the reply to a question for so many tokens at most.
    #[must_use]
    pub fn new(form: Form, tokens_max: Option<usize>) -> Reader {
        let pieces = |tokens: usize| tokens.saturating_mul(PIECES_PER_TOKEN).max(PIECES_MIN);
        Reader {
            form,
            pieces_max: tokens_max.map_or(usize::MAX, pieces),
            bytes: 0,
            line: Vec::new(),
            data: String::new(),
            has_data: false,
            pieces: 0,
            text_bytes: 0,
            thoughts: 0,
            thought_bytes: 0,
            calls: Vec::new(),
            calls_bytes: 0,
            finish: None,
            usage: None,
            refused: false,
            over: false,
        }
    }

    /// Whether nothing follows that counts.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether the answer itself has ended, be it that something else may follow.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.over || self.finish.is_some()
    }

    /// Takes the next bytes and says what was in them.
    ///
    /// # Errors
    /// [`FaultKind::Garbled`], [`FaultKind::Endless`], or [`FaultKind::Failed`] where the upstream says so.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Found>, ReadFault> {
        let mut found = Vec::new();
        if self.over {
            return Ok(found);
        }
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > REPLY_BYTES_MAX {
            return Err(endless("the reply is too long"));
        }
        if self.form == Form::Whole {
            self.keep(bytes)?;
            return Ok(found);
        }
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            self.keep(head)?;
            let line = std::mem::take(&mut self.line);
            self.take_line(&line, &mut found)?;
            self.line = line;
            self.line.clear();
            if self.over {
                return Ok(found);
            }
        }
        self.keep(rest)?;
        Ok(found)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), ReadFault> {
        if self.line.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(endless("a piece of the reply is too long"));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], found: &mut Vec<Found>) -> Result<(), ReadFault> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return self.dispatch(found);
        }
        let Some(data) = line.strip_prefix(b"data:") else {
            // Comments, and fields that say nothing of the answer. What is no event at all has no such line.
            let is_field = line.starts_with(b":")
                || [&b"event"[..], b"id", b"retry"].iter().any(|name| {
                    line.strip_prefix(*name)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b":"))
                });
            return if is_field {
                Ok(())
            } else {
                Err(garbled("the reply is no stream of events"))
            };
        };
        let data = data.strip_prefix(b" ").unwrap_or(data);
        let data = std::str::from_utf8(data).map_err(|_| garbled("the reply is not UTF-8"))?;
        if self.data.len() + data.len() >= EVENT_BYTES_MAX {
            return Err(endless("a piece of the reply is too long"));
        }
        if self.has_data {
            self.data.push('\n');
        }
        self.data.push_str(data);
        self.has_data = true;
        Ok(())
    }

    fn dispatch(&mut self, found: &mut Vec<Found>) -> Result<(), ReadFault> {
        if !std::mem::take(&mut self.has_data) {
            return Ok(());
        }
        let data = std::mem::take(&mut self.data);
        if data.trim() == DONE {
            self.over = true;
            return Ok(());
        }
        let chunk = serde_json::from_str(&data)
            .map_err(|_| garbled("an event of the reply is not what it should be"))?;
        self.take(chunk, found)
    }

    fn take(&mut self, chunk: Chunk, found: &mut Vec<Found>) -> Result<(), ReadFault> {
        if chunk.error.is_some() {
            return Err(ReadFault {
                kind: FaultKind::Failed,
                what: "it says in its reply that it has failed",
            });
        }
        if let Some(usage) = chunk.usage {
            // What is no number of tokens says nothing, and is not worth the answer.
            let count = |name: &str| {
                let tokens = usage.get(name)?.as_u64()?;
                Some(u32::try_from(tokens).unwrap_or(u32::MAX))
            };
            let tokens = (count("prompt_tokens"), count("completion_tokens"));
            if let (Some(prompt), Some(completion)) = tokens {
                self.usage = Some((prompt, completion));
            }
        }
        let first = |choice: &Choice| choice.index == 0;
        for choice in chunk.choices.into_iter().flatten().filter(first) {
            if self.finish.is_some() {
                // Some say it once more, with nothing new.
                continue;
            }
            // Some say beside each piece what all pieces before it were.
            let delta = match self.form {
                Form::Events => choice.delta.or(choice.message),
                Form::Whole => choice.message.or(choice.delta),
            };
            if let Some(delta) = delta {
                self.take_delta(delta, found)?;
            }
            // Some say an empty one with every chunk but the last.
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                self.finish = Some(reason);
            }
        }
        Ok(())
    }

    fn take_delta(&mut self, delta: Delta, found: &mut Vec<Found>) -> Result<(), ReadFault> {
        let count = |reader: &mut Self| {
            reader.pieces += 1;
            if reader.pieces > reader.pieces_max {
                return Err(endless("the answer has more tokens than it may have"));
            }
            Ok(())
        };
        let said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        self.refused |= said(&delta.refusal);
        let thought = thought(&delta);
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            count(self)?;
            self.text_bytes += text.len();
            if self.text_bytes > TEXT_BYTES_MAX {
                return Err(endless("the answer is too long"));
            }
            found.push(Found::Text(text));
        } else if let Some(bytes) = thought {
            self.thoughts += 1;
            self.thought_bytes += bytes;
            found.push(Found::Token);
        }
        for call in delta.tool_calls.into_iter().flatten() {
            count(self)?;
            self.take_call(call)?;
            found.push(Found::Token);
        }
        Ok(())
    }

    fn take_call(&mut self, delta: CallDelta) -> Result<(), ReadFault> {
        let function = delta.function;
        let begins = function
            .as_ref()
            .is_some_and(|function| function.name.is_some());
        // Servers that send calls whole may leave the number out.
        let next = if begins {
            self.calls.len()
        } else {
            self.calls.len().saturating_sub(1)
        };
        let index = delta.index.unwrap_or(next);
        if index >= CALLS_MAX {
            return Err(endless("the answer has too many calls"));
        }
        if index > self.calls.len() {
            return Err(garbled("the calls of the answer are out of order"));
        }
        if index == self.calls.len() {
            self.calls.push(ToolCall {
                id: String::new(),
                name: String::new(),
                arguments: String::new(),
            });
        }
        let Some(call) = self.calls.get_mut(index) else {
            return Ok(());
        };
        let mut add = |to: &mut String, text: Option<String>, anew: bool| {
            let text = text.unwrap_or_default();
            self.calls_bytes += text.len();
            if self.calls_bytes > CALLS_BYTES_MAX {
                return Err(endless("the calls of the answer are too long"));
            }
            if !anew {
                to.push_str(&text);
            } else if to.is_empty() {
                *to = text;
            }
            Ok(())
        };
        add(&mut call.id, delta.id, true)?;
        if let Some(function) = function {
            add(&mut call.name, function.name, true)?;
            add(&mut call.arguments, function.arguments, false)?;
        }
        Ok(())
    }

    /// The reply has ended. What was found at its very end comes with what it was in all.
    ///
    /// # Errors
    /// [`FaultKind::Broken`] if there should have been more, [`FaultKind::Withheld`], and as for [`Reader::push`].
    pub fn finish(mut self) -> Result<(Vec<Found>, Complete), ReadFault> {
        let mut found = Vec::new();
        match self.form {
            Form::Whole => {
                let line = std::mem::take(&mut self.line);
                let chunk = serde_json::from_slice(&line)
                    .map_err(|_| garbled("the reply is not what it should be"))?;
                self.take(chunk, &mut found)?;
            }
            Form::Events if !self.has_ended() => {
                // Some leave out the empty line at the end.
                let line = std::mem::take(&mut self.line);
                let broken = ReadFault {
                    kind: FaultKind::Broken,
                    what: "the reply ends before the answer does",
                };
                let rest = if line.is_empty() {
                    Ok(())
                } else {
                    self.take_line(&line, &mut found)
                };
                rest.and_then(|()| self.dispatch(&mut found))
                    .map_err(|_| broken)?;
                if !self.has_ended() {
                    return Err(broken);
                }
            }
            Form::Events => {}
        }
        let finish = match self.finish.as_deref() {
            Some("length" | "max_tokens" | "model_length") => Finish::Length,
            Some("content_filter") => {
                return Err(ReadFault {
                    kind: FaultKind::Withheld,
                    what: "it withholds the answer",
                });
            }
            Some("stop" | "tool_calls" | "function_call" | "eos" | "eos_token" | "end_turn") => {
                Finish::Stop
            }
            // An abort, an error, a lack of machines: half an answer.
            Some(_) => {
                return Err(ReadFault {
                    kind: FaultKind::Broken,
                    what: "it broke off the answer",
                });
            }
            None => return Err(garbled("the reply does not say why the answer ends")),
        };
        if self.refused {
            return Err(ReadFault {
                kind: FaultKind::Withheld,
                what: "it refuses to answer",
            });
        }
        let bytes = self.text_bytes + self.calls_bytes + self.thought_bytes;
        let seen = (self.pieces + self.thoughts).max(bytes.div_ceil(TOKEN_BYTES));
        let complete = Complete {
            finish,
            calls: self.calls,
            usage: self.usage,
            tokens_seen: u32::try_from(seen).unwrap_or(u32::MAX),
        };
        Ok((found, complete))
    }
}

/// How many bytes of reasoning a piece has, if any: one text, or something with texts in it.
fn thought(delta: &Delta) -> Option<usize> {
    let thoughts = [&delta.reasoning_content, &delta.reasoning];
    let bytes = thoughts.into_iter().flatten().map(|thought| match thought {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(_) | Value::Object(_) => thought.to_string().len(),
    });
    // By both names it is the same.
    bytes.max().filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests;
