//! What stands around the names and arguments of calls.

use std::sync::Arc;

use super::is_of_name;
use crate::tokenizer::Tokenizer;

/// Longest text before the first call's name, or between a name and its arguments: those in use have some 60 bytes.
const TEXT_BYTES_MAX: usize = 256;
/// What stands for an id where there is none.
const ID_MARK: &str = "\u{1}";
/// Shortest text by which calls are told from what else is said.
const OPENER_BYTES_MIN: usize = 4;

/// A stretch of what stands around names and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// This text.
    Text(String),
    /// This control token.
    Control {
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
    /// An id of the call.
    Id,
}

/// By what calls are told from other text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opener {
    /// This text, wherever it stands.
    Text(String),
    /// This text, where the answer begins with it.
    Start(String),
    /// This control token.
    Control {
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
}

impl Piece {
    /// Its text; none of an id, which is another each time.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Control { text, .. } => text,
            Self::Id => "",
        }
    }
}

impl Opener {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Start(text) | Self::Control { text, .. } => text,
        }
    }
}

/// How calls are written: opener, `begin`, a name, `between`, arguments as a JSON object, then `next` and another name, or
/// `end`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFormat {
    parts: Arc<Parts>,
}

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    opener: Opener,
    begin: Vec<Piece>,
    between: Vec<Piece>,
    /// `None` where there is one call in an answer.
    next: Option<Vec<Piece>>,
    end: Vec<Piece>,
    /// Whether the arguments have spaces behind commas and colons.
    spaced: bool,
}

/// What a template was seen to write.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen<'a> {
    pub(super) before: &'a str,
    pub(super) between: &'a str,
    pub(super) next: Option<&'a str>,
    pub(super) end: &'a str,
    pub(super) spaced: bool,
    /// What stands for an id.
    pub(super) id: &'a str,
}

impl CallFormat {
    /// The format of models whose template has none of its own. What of it is a control token for `tokenizer` is that token
    /// here: where prompts have calls in them, their tokens are the same.
    #[must_use]
    pub fn plain(tokenizer: Option<&Tokenizer>) -> Self {
        const OPENER: &str = "<tool_call>";
        const BEGIN: &str = "\n{\"name\": \"";
        const BETWEEN: &str = "\", \"arguments\": ";
        const END: &str = "}\n</tool_call>";
        let next = format!("{END}\n{OPENER}{BEGIN}");
        let seen = Seen {
            before: &format!("{OPENER}{BEGIN}"),
            between: BETWEEN,
            next: Some(&next),
            end: END,
            spaced: true,
            id: ID_MARK,
        };
        if let Some(tokenizer) = tokenizer
            && let Some(format) = Self::of(&seen, Some(tokenizer))
        {
            return format;
        }
        let text = |text: &str| vec![Piece::Text(text.to_owned())];
        Self {
            parts: Arc::new(Parts {
                opener: Opener::Text(OPENER.to_owned()),
                begin: text(BEGIN),
                between: text(BETWEEN),
                next: Some(text(&next)),
                end: text(END),
                spaced: true,
            }),
        }
    }

    /// The format that a prompt with tools, or else the vocabulary, hints at, for templates that write no calls: those of
    /// two families are told apart by their tags. `None` if there is neither.
    pub(super) fn hinted(prompt: &str, tokenizer: Option<&Tokenizer>) -> Option<Self> {
        const LIST: &str = "<|tool_call|>";
        const LIST_END: &str = "<|/tool_call|>";
        let knows = |text: &str| tokenizer.is_some_and(|all| all.id_of(text).is_some());
        if prompt.contains("<tool_call>") && prompt.contains("</tool_call>") {
            return Some(Self::plain(tokenizer));
        }
        if !prompt.contains(LIST) && !knows(LIST) {
            return None;
        }
        let end = if knows(LIST_END) { LIST_END } else { "" };
        let seen = Seen {
            before: &format!("{LIST}[{{\"name\": \""),
            between: "\", \"arguments\": ",
            next: Some("}, {\"name\": \""),
            end: &format!("}}]{end}"),
            spaced: true,
            id: ID_MARK,
        };
        Self::of(&seen, tokenizer)
    }

    /// The format of what was seen; `None` if calls cannot be told from other text by it, or not read back.
    pub(super) fn of(seen: &Seen<'_>, tokenizer: Option<&Tokenizer>) -> Option<Self> {
        if seen.before.len() > TEXT_BYTES_MAX || seen.between.len() > TEXT_BYTES_MAX {
            return None;
        }
        let pieces = |text: &str| pieces(text, seen.id, tokenizer);
        let (opener, begin) = opened(pieces(seen.before.trim_start())?)?;
        let between = pieces(seen.between)?;
        // The name has to end somewhere.
        match between.first()? {
            Piece::Text(text) if text.bytes().next().is_none_or(is_of_name) => return None,
            Piece::Id => return None,
            _ => {}
        }
        let (mut next, mut end) = (seen.next, seen.end);
        // Behind the end of an answer there is nothing, and no other call.
        if let Some(tokenizer) = tokenizer {
            let ends = tokenizer.ends_of_generation().iter();
            let ends = ends.filter_map(|&id| std::str::from_utf8(tokenizer.token_bytes(id)).ok());
            for text in ends.filter(|text| !text.is_empty()) {
                next = next.filter(|next| !next.contains(text));
                end = end.split_once(text).map_or(end, |(before, _)| before);
            }
        }
        let next = match next {
            Some(text) => Some(pieces(text)?),
            None => None,
        };
        Some(Self {
            parts: Arc::new(Parts {
                opener,
                begin,
                between,
                next: next.filter(|pieces| !pieces.is_empty()),
                end: pieces(end)?,
                spaced: seen.spaced,
            }),
        })
    }

    /// By what calls are told from other text.
    #[must_use]
    pub fn opener(&self) -> &Opener {
        &self.parts.opener
    }

    /// Whether an answer can have several calls.
    #[must_use]
    pub fn takes_several(&self) -> bool {
        self.parts.next.is_some()
    }

    pub(crate) fn begin(&self) -> &[Piece] {
        &self.parts.begin
    }

    pub(crate) fn between(&self) -> &[Piece] {
        &self.parts.between
    }

    pub(crate) fn next(&self) -> Option<&[Piece]> {
        self.parts.next.as_deref()
    }

    pub(crate) fn end(&self) -> &[Piece] {
        &self.parts.end
    }

    /// Whether arguments are written with spaces behind commas and colons.
    pub(crate) fn is_spaced(&self) -> bool {
        self.parts.spaced
    }

    /// Calls as they are written in a conversation.
    pub(super) fn write<'a>(&self, calls: impl Iterator<Item = (&'a str, String)>) -> String {
        let mut text = String::new();
        let write = |pieces: &[Piece], text: &mut String| {
            for piece in pieces {
                match piece {
                    Piece::Text(piece) | Piece::Control { text: piece, .. } => text.push_str(piece),
                    Piece::Id => text.push_str("000000000"),
                }
            }
        };
        for (index, (name, arguments)) in calls.enumerate() {
            if index == 0 || self.parts.next.is_none() {
                text.push_str(self.parts.opener.text());
                write(&self.parts.begin, &mut text);
            } else {
                write(self.parts.next.as_deref().unwrap_or_default(), &mut text);
            }
            text.push_str(name);
            write(&self.parts.between, &mut text);
            text.push_str(&arguments);
        }
        if !text.is_empty() {
            write(&self.parts.end, &mut text);
        }
        text
    }
}

/// A text as pieces; `None` if its control tokens swallow a part of it.
fn pieces(text: &str, id: &str, tokenizer: Option<&Tokenizer>) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for (index, before) in text.split(id).enumerate() {
        if index > 0 {
            pieces.push(Piece::Id);
        }
        match tokenizer {
            _ if before.is_empty() => {}
            None => pieces.push(Piece::Text(before.to_owned())),
            Some(tokenizer) => {
                for (id, text) in tokenizer.controls(before)? {
                    pieces.push(match id {
                        Some(id) => Piece::Control { id, text },
                        None => Piece::Text(text),
                    });
                }
            }
        }
    }
    Some(pieces)
}

/// The opener of what stands before the first name, and the rest of it.
fn opened(mut before: Vec<Piece>) -> Option<(Opener, Vec<Piece>)> {
    let first = before.first_mut()?;
    let text = match first {
        Piece::Id => return None,
        Piece::Control { id, text } => {
            let opener = Opener::Control {
                id: *id,
                text: text.clone(),
            };
            before.remove(0);
            return Some((opener, before));
        }
        Piece::Text(text) => text,
    };
    let inner = text.trim_start_matches(|c: char| c == '[' || c.is_whitespace());
    let (opener, length) = if inner.starts_with(['{', '"']) {
        // JSON itself: up to the end of its first name.
        let start = text.find('"')?;
        let length = start + 2 + text.get(start + 1..)?.find('"')?;
        (Opener::Start(text[..length].to_owned()), length)
    } else {
        let ends = |(at, c): &(usize, char)| *at > 0 && (c.is_whitespace() || "{[\"".contains(*c));
        let length = text
            .char_indices()
            .find(ends)
            .map_or(text.len(), |(at, _)| at);
        (Opener::Text(text[..length].to_owned()), length)
    };
    if length < OPENER_BYTES_MIN {
        return None;
    }
    text.drain(..length);
    if text.is_empty() {
        before.remove(0);
    }
    Some((opener, before))
}
