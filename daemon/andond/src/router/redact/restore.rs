//! Puts secrets back into an answer that comes in pieces.
//!
//! A placeholder is known by its label and number, with its brackets or, where no letter, digit or `_` touches it, without, and
//! with the backslash that Markdown wants before a `_`. Whatever may be the beginning of one is held back until the next piece.
//!
//! Invariant: what is held back is never longer than a placeholder, and the pieces together are the same whatever the cuts.

use super::Secrets;

/// Most digits of a number.
const DIGITS_MAX: usize = 4;

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Words.
    Text,
    /// JSON, in whose strings placeholders are.
    Json,
}

/// See the module.
#[derive(Debug)]
pub struct Restorer {
    secrets: Secrets,
    form: Form,
    /// What came and was not handed out.
    pub(super) held: String,
    /// The byte before it, if that is part of a word.
    in_word: bool,
}

/// What stands at a place.
enum Found {
    Nothing,
    /// It may become something.
    Beginning,
    /// So many bytes are the placeholder of the secret with this number.
    Placeholder(usize, usize),
}

impl Restorer {
    pub(super) fn new(secrets: Secrets, form: Form) -> Restorer {
        Restorer {
            secrets,
            form,
            held: String::new(),
            in_word: false,
        }
    }

    /// Takes the next piece, and gives what is certain by now.
    pub fn feed(&mut self, piece: &str) -> String {
        if self.secrets.is_empty() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        self.give(false)
    }

    /// Gives the rest.
    pub fn finish(&mut self) -> String {
        self.give(true)
    }

    fn give(&mut self, is_all: bool) -> String {
        let held = std::mem::take(&mut self.held);
        let mut given = String::with_capacity(held.len());
        let mut at = 0;
        while let Some(first) = held[at..].chars().next() {
            match self.find(&held.as_bytes()[at..], is_all) {
                Found::Beginning => break,
                Found::Placeholder(bytes, index) => {
                    self.write(index, &mut given);
                    at += bytes;
                    self.in_word = false;
                }
                Found::Nothing => {
                    given.push(first);
                    at += first.len_utf8();
                    self.in_word = first.is_ascii_alphanumeric() || first == '_';
                }
            }
        }
        self.held = held[at..].to_owned();
        given
    }

    fn find(&self, rest: &[u8], is_all: bool) -> Found {
        match rest {
            [b'[', inner @ ..] => match self.core(inner, is_all) {
                Found::Placeholder(bytes, index) => match inner.get(bytes) {
                    Some(b']') => Found::Placeholder(bytes + 2, index),
                    None if !is_all => Found::Beginning,
                    _ => Found::Nothing,
                },
                other => other,
            },
            _ if self.in_word => Found::Nothing,
            _ => self.core(rest, is_all),
        }
    }

    /// A label, `_` and a number, and then nothing that could belong to it.
    fn core(&self, rest: &[u8], is_all: bool) -> Found {
        let mut begins = false;
        for (index, secret) in self.secrets.0.iter().enumerate() {
            let label = secret.label.as_bytes();
            let (inner, cut) = match rest.strip_prefix(label) {
                Some(inner) => (inner, false),
                None => (&[][..], label.starts_with(rest)),
            };
            if cut || inner.is_empty() {
                begins |= cut || rest.len() == label.len() && rest == label;
                continue;
            }
            let escape = usize::from(self.form == Form::Text && inner[0] == b'\\');
            match inner.get(escape) {
                Some(b'_') => {}
                Some(_) => continue,
                None => {
                    begins = true;
                    continue;
                }
            }
            let number = &inner[escape + 1..];
            let digits = number.iter().take_while(|byte| byte.is_ascii_digit());
            let digits = digits.take(DIGITS_MAX + 1).count();
            match number.get(digits) {
                None if !is_all && digits <= DIGITS_MAX => {
                    begins = true;
                    continue;
                }
                Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'_' => continue,
                _ => {}
            }
            if number[..digits] == *secret.number.to_string().as_bytes() {
                return Found::Placeholder(label.len() + escape + 1 + digits, index);
            }
        }
        if begins && !is_all {
            Found::Beginning
        } else {
            Found::Nothing
        }
    }

    fn write(&self, index: usize, given: &mut String) {
        let value = &self.secrets.0[index].value;
        match self.form {
            Form::Text => given.push_str(value),
            Form::Json => {
                let quoted = serde_json::Value::String(value.clone()).to_string();
                given.push_str(&quoted[1..quoted.len() - 1]);
            }
        }
    }
}
