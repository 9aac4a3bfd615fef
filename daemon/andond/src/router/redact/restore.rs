//! Puts secrets back into an answer that comes in pieces.
//!
//! A placeholder is known by its label and number, in large letters or small. In brackets there may be a space or a hyphen for the
//! `_`, and a space at either bracket; without them it is known where no letter, digit or `_` touches it. Before the `_` there may
//! be the backslash that Markdown wants. What has another number, or is changed otherwise, stays as it is. Whatever may be the
//! beginning of a placeholder is held back until the next piece.
//!
//! Invariant: what is held back is never longer than a placeholder, the pieces together are the same whatever the cuts, and no
//! answer grows by more than [`RESTORED_BYTES_MAX`].

use std::fmt;

use super::Secrets;
use crate::worker::UNREAD_BYTES_MAX;

/// Most bytes that are put back into one text: with as much of the upstream's own, a reader who has read nothing yet can have it
/// whole.
pub const RESTORED_BYTES_MAX: usize = UNREAD_BYTES_MAX / 2;
/// Most digits of a number.
const DIGITS_MAX: usize = 4;
/// Most letters and digits of a label.
const LABEL_BYTES_MAX: usize = crate::config::redact::NAME_BYTES_MAX;

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Words.
    Text,
    /// JSON, in whose strings placeholders are.
    Json,
}

/// A text that would grow by more than [`RESTORED_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "more than {RESTORED_BYTES_MAX} bytes that did not leave would have to be put back into the answer"
        )
    }
}

impl std::error::Error for TooLarge {}

/// See the module.
#[derive(Debug)]
pub struct Restorer {
    secrets: Secrets,
    form: Form,
    /// What came and was not handed out.
    pub(super) held: String,
    /// Whether the character before it is part of a word.
    in_word: bool,
    /// Characters that belong to an escape of JSON which has begun; after a backslash it is not known yet how many.
    escape: Escape,
    /// Bytes that may be put back yet.
    room: usize,
}

/// Where in an escape of JSON a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    /// In none.
    Outside,
    /// Behind the backslash.
    Begun,
    /// So many hexadecimal digits follow.
    Digits(u8),
}

/// What stands at a place.
enum Found<'s> {
    Nothing,
    /// It may become something.
    Beginning,
    /// So many bytes are the placeholder of this secret.
    Placeholder(usize, &'s str),
}

impl Restorer {
    pub(super) fn new(secrets: Secrets, form: Form) -> Restorer {
        Restorer {
            secrets,
            form,
            held: String::new(),
            in_word: false,
            escape: Escape::Outside,
            room: RESTORED_BYTES_MAX,
        }
    }

    /// Takes the next piece, and gives what is certain by now.
    ///
    /// # Errors
    /// [`TooLarge`]; then nothing of the piece is given.
    pub fn feed(&mut self, piece: &str) -> Result<String, TooLarge> {
        if self.secrets.is_empty() {
            return Ok(piece.to_owned());
        }
        self.held.push_str(piece);
        self.give(false)
    }

    /// Gives the rest.
    ///
    /// # Errors
    /// [`TooLarge`]
    pub fn finish(&mut self) -> Result<String, TooLarge> {
        self.give(true)
    }

    /// Takes and gives a whole text. Several of them together do not grow by more than one may.
    ///
    /// # Errors
    /// [`TooLarge`]
    pub fn whole(&mut self, text: &str) -> Result<String, TooLarge> {
        let mut whole = self.feed(text)?;
        whole.push_str(&self.finish()?);
        self.in_word = false;
        self.escape = Escape::Outside;
        Ok(whole)
    }

    fn give(&mut self, is_all: bool) -> Result<String, TooLarge> {
        let held = std::mem::take(&mut self.held);
        let secrets = self.secrets.clone();
        let mut given = String::with_capacity(held.len());
        let mut at = 0;
        while let Some(first) = held[at..].chars().next() {
            match self.find(&secrets, &held.as_bytes()[at..], is_all) {
                Found::Beginning => break,
                Found::Placeholder(bytes, secret) => {
                    self.write(secret, &mut given)?;
                    at += bytes;
                    self.in_word = false;
                }
                Found::Nothing => {
                    given.push(first);
                    at += first.len_utf8();
                    self.pass(first);
                }
            }
        }
        self.held = held[at..].to_owned();
        Ok(given)
    }

    /// Notes a character that is no part of a placeholder.
    fn pass(&mut self, char: char) {
        let was = self.escape;
        self.escape = match (was, char) {
            (Escape::Outside, '\\') if self.form == Form::Json => Escape::Begun,
            (Escape::Begun, 'u') => Escape::Digits(4),
            (Escape::Digits(more @ 2..), _) => Escape::Digits(more - 1),
            _ => Escape::Outside,
        };
        // The letter of an escape is none of a word.
        self.in_word = was == Escape::Outside && (char.is_ascii_alphanumeric() || char == '_');
    }

    fn find<'s>(&self, secrets: &'s Secrets, rest: &[u8], is_all: bool) -> Found<'s> {
        match rest {
            _ if self.escape != Escape::Outside => Found::Nothing,
            [b'[', inner @ ..] => {
                let before = usize::from(inner.first() == Some(&b' '));
                let (bytes, secret) = match self.name(secrets, &inner[before..], true, is_all) {
                    Found::Placeholder(bytes, secret) => (before + bytes, secret),
                    other => return other,
                };
                let behind = usize::from(inner.get(bytes) == Some(&b' '));
                match inner.get(bytes + behind) {
                    Some(b']') => Found::Placeholder(bytes + behind + 2, secret),
                    None if !is_all => Found::Beginning,
                    _ => Found::Nothing,
                }
            }
            _ if self.in_word => Found::Nothing,
            _ => self.name(secrets, rest, false, is_all),
        }
    }

    /// A label, a number, and then nothing that could belong to it.
    fn name<'s>(
        &self,
        secrets: &'s Secrets,
        rest: &[u8],
        in_brackets: bool,
        is_all: bool,
    ) -> Found<'s> {
        // What is wanted next is not there yet.
        let cut = || {
            if is_all {
                Found::Nothing
            } else {
                Found::Beginning
            }
        };
        let letters = rest.iter().take(LABEL_BYTES_MAX + 1);
        let letters = letters
            .take_while(|byte| byte.is_ascii_alphanumeric())
            .count();
        let label = String::from_utf8_lossy(&rest[..letters]).to_ascii_uppercase();
        let mut behind = &rest[letters..];
        if behind.is_empty() {
            return if secrets.begins(&label) {
                cut()
            } else {
                Found::Nothing
            };
        }
        if label.is_empty() || !secrets.has(&label) {
            return Found::Nothing;
        }
        let escape: &[u8] = match self.form {
            Form::Text => b"\\",
            Form::Json => b"\\\\",
        };
        let mut is_escaped = false;
        if behind[0] == b'\\' {
            match behind.strip_prefix(escape) {
                Some(rest) => behind = rest,
                None if escape.starts_with(behind) => return cut(),
                None => return Found::Nothing,
            }
            is_escaped = true;
        }
        behind = match behind {
            [] => return cut(),
            [b'_', rest @ ..] => rest,
            [b' ' | b'-', rest @ ..] if in_brackets && !is_escaped => rest,
            _ => return Found::Nothing,
        };
        let digits = behind.iter().take(DIGITS_MAX + 1);
        let digits = digits.take_while(|byte| byte.is_ascii_digit()).count();
        match behind.get(digits) {
            _ if digits > DIGITS_MAX || behind.first() == Some(&b'0') => return Found::Nothing,
            None if !is_all => return Found::Beginning,
            Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'_' => return Found::Nothing,
            _ => {}
        }
        let number = std::str::from_utf8(&behind[..digits]).ok();
        let number = number.and_then(|number| number.parse().ok());
        match number.and_then(|number| secrets.find(&label, number)) {
            Some(secret) => Found::Placeholder(rest.len() - behind.len() + digits, secret),
            None => Found::Nothing,
        }
    }

    fn write(&mut self, secret: &str, given: &mut String) -> Result<(), TooLarge> {
        let quoted;
        let written = match self.form {
            Form::Text => secret,
            Form::Json => {
                quoted = serde_json::Value::from(secret).to_string();
                &quoted[1..quoted.len() - 1]
            }
        };
        self.room = self.room.checked_sub(written.len()).ok_or(TooLarge)?;
        given.push_str(written);
        Ok(())
    }
}
