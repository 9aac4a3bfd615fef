//! Calls out of the text of an answer, as it comes.
//!
//! Nothing is held back longer than it takes to tell what it is: free text that could be the beginning of calls, and what
//! stands around names and arguments. Arguments are passed on as they come.

use super::format::{CallFormat, Opener, Piece};
use super::{ID_CHARACTERS, is_of_name};

/// What a piece of an answer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEvent {
    /// Text that is no call.
    Text(String),
    /// A call of this tool begins.
    Begin(String),
    /// A piece of the arguments of the call that began last.
    Arguments(String),
    /// Its arguments are complete.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Free text, at the very start of the answer.
    Start,
    /// Free text.
    Free,
    /// Text to the end, whatever it says.
    Text,
    /// Between the opener and the first name.
    Begin,
    Name,
    Between,
    /// The levels of brackets that are open, whether a string is, and whether its next character is escaped.
    Arguments(u32, bool, bool),
    /// Behind arguments.
    Behind,
    /// All is said.
    Over,
}

/// Reads the calls of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallReader {
    format: CallFormat,
    held: String,
    stage: Stage,
}

/// How a text begins.
enum Match {
    /// With all of the pieces, which take so many bytes.
    Whole(usize),
    /// It may, with more behind it.
    Perhaps,
    No,
}

impl CallReader {
    /// A reader at the start of an answer.
    #[must_use]
    pub fn new(format: CallFormat) -> Self {
        Self {
            format,
            held: String::new(),
            stage: Stage::Start,
        }
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, text: &str) -> Vec<CallEvent> {
        self.held.push_str(text);
        let mut events = Vec::new();
        while self.step(&mut events) {}
        events
    }

    /// Ends the answer: what was held back and is no part of a call is text.
    pub fn finish(&mut self) -> Vec<CallEvent> {
        let held = std::mem::take(&mut self.held);
        match self.stage {
            Stage::Start | Stage::Free | Stage::Text if !held.is_empty() => {
                vec![CallEvent::Text(held)]
            }
            _ => Vec::new(),
        }
    }

    /// Goes on as far as one stage; false if that needs more text.
    fn step(&mut self, events: &mut Vec<CallEvent>) -> bool {
        match self.stage {
            Stage::Start => self.start(),
            Stage::Free => self.free(events),
            Stage::Text => {
                if !self.held.is_empty() {
                    events.push(CallEvent::Text(std::mem::take(&mut self.held)));
                }
                false
            }
            Stage::Begin => {
                let found = starts_with(&self.held, self.format.begin());
                self.follow(&found, Stage::Name)
            }
            Stage::Name => {
                let Some(end) = self.held.bytes().position(|byte| !is_of_name(byte)) else {
                    return false;
                };
                if end == 0 {
                    return self.follow(&Match::No, Stage::Between);
                }
                events.push(CallEvent::Begin(self.held.drain(..end).collect()));
                self.stage = Stage::Between;
                true
            }
            Stage::Between => {
                let found = starts_with(&self.held, self.format.between());
                self.follow(&found, Stage::Arguments(0, false, false))
            }
            Stage::Arguments(levels, inside, escaped) => {
                self.arguments(levels, inside, escaped, events)
            }
            Stage::Behind => self.behind(),
            Stage::Over => {
                self.held.clear();
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let Opener::Start(opener) = self.format.opener() else {
            self.stage = Stage::Free;
            return true;
        };
        if self.held.starts_with(opener) {
            self.held.drain(..opener.len());
            self.stage = Stage::Begin;
        } else if opener.starts_with(&self.held) {
            return false;
        } else {
            self.stage = Stage::Text;
        }
        true
    }

    fn free(&mut self, events: &mut Vec<CallEvent>) -> bool {
        let opener = self.format.opener().text();
        let (end, found) = match self.held.find(opener) {
            Some(at) => (at, true),
            None => (self.held.len() - overlap(&self.held, opener), false),
        };
        // White space before calls is no text of the answer.
        let text = self.held[..end].trim_end();
        if !text.is_empty() {
            events.push(CallEvent::Text(text.to_owned()));
        }
        if found {
            self.held.drain(..end + opener.len());
            self.stage = Stage::Begin;
        } else {
            self.held.drain(..text.len());
        }
        found
    }

    /// Goes on to `next` behind what was found. What fits no format is text from there on; what holds the
    /// answer to the format lets that not happen.
    fn follow(&mut self, found: &Match, next: Stage) -> bool {
        match found {
            Match::Whole(length) => {
                self.held.drain(..length);
                self.stage = next;
                true
            }
            Match::Perhaps => false,
            Match::No => {
                self.stage = Stage::Text;
                true
            }
        }
    }

    fn arguments(
        &mut self,
        mut levels: u32,
        mut inside: bool,
        mut escaped: bool,
        events: &mut Vec<CallEvent>,
    ) -> bool {
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            match (inside, byte) {
                (true, _) if escaped => escaped = false,
                (true, b'\\') => escaped = true,
                (_, b'"') => inside = !inside,
                (false, b'{' | b'[') => levels = levels.saturating_add(1),
                (false, b'}' | b']') => {
                    levels = levels.saturating_sub(1);
                    if levels == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let length = end.unwrap_or(self.held.len());
        if length > 0 {
            events.push(CallEvent::Arguments(self.held.drain(..length).collect()));
        }
        if end.is_some() {
            events.push(CallEvent::End);
            self.stage = Stage::Behind;
        } else {
            self.stage = Stage::Arguments(levels, inside, escaped);
        }
        end.is_some()
    }

    fn behind(&mut self) -> bool {
        let next = self.format.next();
        match next.map_or(Match::No, |next| starts_with(&self.held, next)) {
            Match::Whole(length) => {
                self.held.drain(..length);
                self.stage = Stage::Name;
                true
            }
            Match::Perhaps => false,
            Match::No => match starts_with(&self.held, self.format.end()) {
                Match::Perhaps => false,
                Match::Whole(_) | Match::No => {
                    self.stage = Stage::Over;
                    true
                }
            },
        }
    }
}

/// Whether a text begins with pieces.
fn starts_with(text: &str, pieces: &[Piece]) -> Match {
    let mut rest = text;
    for piece in pieces {
        let expected = match piece {
            Piece::Text(expected) | Piece::Control { text: expected, .. } => expected.as_str(),
            Piece::Id => {
                let run = rest.bytes().take(ID_CHARACTERS);
                let length = run.take_while(u8::is_ascii_alphanumeric).count();
                if length < ID_CHARACTERS {
                    return if length == rest.len() {
                        Match::Perhaps
                    } else {
                        Match::No
                    };
                }
                rest = &rest[length..];
                continue;
            }
        };
        match rest.strip_prefix(expected) {
            Some(behind) => rest = behind,
            None if expected.starts_with(rest) => return Match::Perhaps,
            None => return Match::No,
        }
    }
    Match::Whole(text.len() - rest.len())
}

/// Bytes at the end of a text that `opener` may begin with.
fn overlap(text: &str, opener: &str) -> usize {
    let most = text.len().min(opener.len().saturating_sub(1));
    (1..=most)
        .rev()
        .find(|&length| {
            let at = text.len() - length;
            text.is_char_boundary(at) && opener.starts_with(&text[at..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a text in pieces of `size` bytes, those of one kind joined.
    fn read(format: &CallFormat, text: &str, size: usize) -> Vec<CallEvent> {
        let mut reader = CallReader::new(format.clone());
        let mut all = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            all.extend(reader.push(std::str::from_utf8(piece).expect("ASCII")));
        }
        all.extend(reader.finish());
        let mut joined: Vec<CallEvent> = Vec::new();
        for event in all {
            match (joined.last_mut(), event) {
                (Some(CallEvent::Text(last)), CallEvent::Text(next))
                | (Some(CallEvent::Arguments(last)), CallEvent::Arguments(next)) => {
                    last.push_str(&next);
                }
                (_, event) => joined.push(event),
            }
        }
        joined
    }

    fn text(text: &str) -> CallEvent {
        CallEvent::Text(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> [CallEvent; 3] {
        [
            CallEvent::Begin(name.to_owned()),
            CallEvent::Arguments(arguments.to_owned()),
            CallEvent::End,
        ]
    }

    #[test]
    fn text_and_calls_are_told_apart_wherever_pieces_end() {
        let format = CallFormat::plain(None);
        let arguments = "{\"a\": [\"}\\\"{\", {}]}";
        let calls = [("one", arguments.to_owned()), ("two", "{}".to_owned())];
        let written = format.write(calls.into_iter());
        let said = format!("I look, <tool\n\n {written}");
        for size in 1..=said.len() {
            let events = read(&format, &said, size);
            let expected = [text("I look, <tool")].into_iter();
            let expected = expected
                .chain(call("one", arguments))
                .chain(call("two", "{}"));
            assert_eq!(events, expected.collect::<Vec<_>>(), "{size}");
        }
    }

    #[test]
    fn text_without_calls_comes_whole() {
        let format = CallFormat::plain(None);
        for said in [
            "",
            " a <tool_call",
            "a  \n",
            "<tool_cal",
            "{\"name\": \"x\"}",
        ] {
            for size in 1..=said.len().max(1) {
                let expected: Vec<_> = (!said.is_empty()).then(|| text(said)).into_iter().collect();
                assert_eq!(read(&format, said, size), expected, "{said} {size}");
            }
        }
    }

    #[test]
    fn a_call_that_is_cut_says_what_there_is_of_it() {
        let format = CallFormat::plain(None);
        let said = "<tool_call>\n{\"name\": \"one\", \"arguments\": {\"a\": \"b";
        let events = read(&format, said, 7);
        assert_eq!(
            events,
            [
                CallEvent::Begin("one".to_owned()),
                CallEvent::Arguments("{\"a\": \"b".to_owned())
            ]
        );
        assert_eq!(read(&format, "<tool_call>\n{\"name\": \"on", 3), []);
    }
}
