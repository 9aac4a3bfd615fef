//! What is taken out of a request before it leaves the gateway, and put back into its answer.
//!
//! In the place of each secret there is a placeholder, `[SERIAL_1]`: the kind that the configuration names, and a number, in
//! the order in which the kind's secrets first come. Equal ones share one. So what is sent says nothing about a secret but where
//! it stands, and two requests that differ in secrets only are the same question. A model that writes the placeholder into its
//! answer, with its brackets or without, has the secret put back by the [`Restorer`].
//!
//! Named fields of a task's input are taken out before the task's template sees them, so that nothing that it makes of them
//! leaves; what they hold is then looked for in everything else, too. What looks like a placeholder already in the request is a
//! secret like any other, so that an answer cannot confuse the two.
//!
//! Invariant: nothing that a rule fits is in what this hands out. A request with more secrets than [`SECRETS_MAX`] gets none.

mod restore;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

pub use restore::{Form, Restorer};

use crate::config::redact::RedactConfig;
use crate::request::Message;

/// Most different secrets of one request.
pub const SECRETS_MAX: usize = 1024;
/// Largest program that an expression becomes, in bytes, and largest cache of it.
const PROGRAM_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting in an expression.
const NESTING_MAX: u32 = 64;
/// A field's value that is shorter than this, in bytes, is not looked for outside the field: it would be everywhere.
const LITERAL_BYTES_MIN: usize = 4;
/// The words of a tool or a schema that a person wrote for a model to read or write; the others are names and grammar.
const TEXTS_OF_SCHEMAS: [&str; 7] = [
    "description",
    "title",
    "enum",
    "const",
    "default",
    "examples",
    "$comment",
];

/// More secrets than a request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it has more than {SECRETS_MAX} different texts that must not leave"
        )
    }
}

impl std::error::Error for TooMany {}

struct Rule {
    label: Arc<str>,
    pattern: Option<Regex>,
    fields: Vec<Vec<String>>,
}

/// Takes out what the configuration says.
pub struct Redactor {
    rules: Vec<Rule>,
    /// What looks like a placeholder: its first group is the label.
    lookalike: Option<Regex>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.rules.iter().map(|rule| &rule.label);
        f.debug_list().entries(labels).finish()
    }
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(PROGRAM_BYTES_MAX)
        .nest_limit(NESTING_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(bytes) => {
                format!("becomes a program of more than {bytes} bytes")
            }
            // It shows the expression in several lines and says last what is wrong with it.
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                let last = last.trim_start_matches("error: ");
                format!("is not a regular expression: {last}")
            }
        })
}

impl Redactor {
    /// Checks an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_pattern(pattern: &str) -> Result<(), String> {
        let pattern = build(pattern)?;
        if pattern.is_match("") {
            return Err("fits where there is nothing".to_owned());
        }
        Ok(())
    }

    /// One of these rules, which have been checked.
    ///
    /// # Errors
    /// The number, from 1, of a rule whose expression is none, and why.
    pub fn new(rules: &[RedactConfig]) -> Result<Redactor, (usize, String)> {
        let mut made = Vec::with_capacity(rules.len());
        for (number, rule) in (1..).zip(rules) {
            let pattern = rule.pattern.as_deref().map(build).transpose();
            let fields = rule.fields.iter();
            made.push(Rule {
                label: rule.name.to_ascii_uppercase().into(),
                pattern: pattern.map_err(|error| (number, error))?,
                fields: fields
                    .map(|field| field.split('.').map(str::to_owned).collect())
                    .collect(),
            });
        }
        let labels: Vec<&str> = made.iter().map(|rule| &*rule.label).collect();
        let lookalike = format!(r"({})\\?_[0-9]+", labels.join("|"));
        let lookalike = (!labels.is_empty()).then(|| build(&lookalike)).transpose();
        Ok(Redactor {
            lookalike: lookalike.map_err(|error| (0, error))?,
            rules: made,
        })
    }

    /// Whether nothing is taken out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Begins with a request.
    #[must_use]
    pub fn begin(&self) -> Redaction<'_> {
        Redaction {
            redactor: self,
            secrets: Vec::new(),
            known: BTreeMap::new(),
            of_input: 0,
        }
    }

    /// Takes out of a conversation. For more than that, see [`Redactor::begin`].
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn redact(&self, messages: &[Message]) -> Result<(Vec<Message>, Secrets), TooMany> {
        let mut redaction = self.begin();
        let mut messages = messages.to_vec();
        redaction.messages(&mut messages)?;
        Ok((messages, redaction.done()))
    }
}

struct Secret {
    label: Arc<str>,
    number: u32,
    value: String,
}

impl Secret {
    fn placeholder(&self) -> String {
        format!("[{}_{}]", self.label, self.number)
    }
}

/// What was taken out of one request. It is not printed.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[Secret]>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

impl Secrets {
    /// Whether nothing was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much was.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Puts it back into a text that comes in pieces. Texts that come beside each other need one each.
    #[must_use]
    pub fn restorer(&self, form: Form) -> Restorer {
        Restorer::new(self.clone(), form)
    }

    /// Puts it back into a whole text.
    #[must_use]
    pub fn restore(&self, text: &str, form: Form) -> String {
        let mut restorer = self.restorer(form);
        let mut whole = restorer.feed(text);
        whole.push_str(&restorer.finish());
        whole
    }
}

/// A piece of a text that is searched.
enum Piece<'t> {
    Raw(&'t str),
    /// The number of the secret that stands there.
    Taken(usize),
}

/// One request, of which everything is taken out by the same numbers.
pub struct Redaction<'r> {
    redactor: &'r Redactor,
    secrets: Vec<Secret>,
    /// By label and value.
    known: BTreeMap<(Arc<str>, String), usize>,
    /// So many of them were in the fields of a task's input, and stand in what its template made of it.
    of_input: usize,
}

impl fmt::Debug for Redaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.secrets.len())
    }
}

impl Redaction<'_> {
    /// Takes out of a task's input, before its template is rendered with it.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn input(&mut self, input: &Value) -> Result<Value, TooMany> {
        let redactor = self.redactor;
        let fields = || {
            let rules = redactor.rules.iter();
            rules.flat_map(|rule| rule.fields.iter().map(move |field| (&rule.label, field)))
        };
        let mut taken = input.clone();
        for (_, field) in fields() {
            blank(&mut taken, field);
        }
        // Numbers in other fields are what templates compute with.
        self.strings(&mut taken, false)?;
        for (label, field) in fields() {
            self.field(label, input, &mut taken, field)?;
        }
        self.of_input = self.secrets.len();
        Ok(taken)
    }

    /// Takes out of a conversation: of the request itself, or what a task made of what [`Redaction::input`] gave.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn messages(&mut self, messages: &mut [Message]) -> Result<(), TooMany> {
        for message in messages {
            self.text(&mut message.content)?;
            for (key, value) in &mut message.extra {
                match key.as_str() {
                    "tool_calls" => self.calls(value)?,
                    // What answers refer to.
                    "tool_call_id" => {}
                    "name" if message.role == "tool" => {}
                    _ => self.strings(value, true)?,
                }
            }
        }
        Ok(())
    }

    /// Takes out of what a person wrote into tools, or into a schema. Their names stay.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn schema(&mut self, schema: &mut Value) -> Result<(), TooMany> {
        match schema {
            Value::Array(values) => values.iter_mut().try_for_each(|value| self.schema(value)),
            Value::Object(values) => values.iter_mut().try_for_each(|(key, value)| {
                // A property of such a name is a schema, and no text.
                if TEXTS_OF_SCHEMAS.contains(&key.as_str()) && !is_schema(value) {
                    self.strings(value, true)
                } else {
                    self.schema(value)
                }
            }),
            _ => Ok(()),
        }
    }

    /// Takes out of a text.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn text(&mut self, text: &mut String) -> Result<(), TooMany> {
        if self.redactor.is_empty() {
            return Ok(());
        }
        let mut pieces = vec![Piece::Raw(text.as_str())];
        let redactor = self.redactor;
        self.lookalikes(&mut pieces)?;
        self.literals(&mut pieces);
        for rule in &redactor.rules {
            let Some(pattern) = &rule.pattern else {
                continue;
            };
            let mut split = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let Piece::Raw(raw) = piece else {
                    split.push(piece);
                    continue;
                };
                let mut end = 0;
                for found in pattern.captures_iter(raw) {
                    let Some(found) = found.get(1).or_else(|| found.get(0)) else {
                        continue;
                    };
                    if found.is_empty() {
                        continue;
                    }
                    split.push(Piece::Raw(&raw[end..found.start()]));
                    split.push(Piece::Taken(self.secret(&rule.label, found.as_str())?));
                    end = found.end();
                }
                split.push(Piece::Raw(&raw[end..]));
            }
            pieces = split;
        }
        let written: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Raw(raw) => (*raw).to_owned(),
                Piece::Taken(index) => self.secrets[*index].placeholder(),
            })
            .collect();
        *text = written;
        Ok(())
    }

    /// What was taken out.
    #[must_use]
    pub fn done(self) -> Secrets {
        Secrets(self.secrets.into())
    }

    /// The number of a secret, a new one if it was not seen before.
    fn secret(&mut self, label: &Arc<str>, value: &str) -> Result<usize, TooMany> {
        let name = (Arc::clone(label), value.to_owned());
        if let Some(&index) = self.known.get(&name) {
            return Ok(index);
        }
        if self.secrets.len() >= SECRETS_MAX {
            return Err(TooMany);
        }
        let of_label = self.secrets.iter().filter(|secret| secret.label == *label);
        // No more than SECRETS_MAX.
        let number = u32::try_from(of_label.count()).unwrap_or(u32::MAX - 1) + 1;
        self.secrets.push(Secret {
            label: Arc::clone(label),
            number,
            value: value.to_owned(),
        });
        let index = self.secrets.len() - 1;
        self.known.insert(name, index);
        Ok(index)
    }

    /// Finds placeholders that a template was given, and takes out what only looks like one.
    fn lookalikes(&mut self, pieces: &mut Vec<Piece<'_>>) -> Result<(), TooMany> {
        let redactor = self.redactor;
        let (Some(lookalike), Some(Piece::Raw(raw))) = (&redactor.lookalike, pieces.pop()) else {
            return Ok(());
        };
        let mut end = 0;
        for found in lookalike.captures_iter(raw) {
            let (Some(whole), Some(label)) = (found.get(0), found.get(1)) else {
                continue;
            };
            let own = self.secrets[..self.of_input].iter().position(|secret| {
                *secret.label == *label.as_str()
                    && whole.as_str()[label.len()..] == format!("_{}", secret.number)
            });
            let (index, from, to) = match own {
                Some(index) => {
                    let bracketed = raw[..whole.start()].ends_with('[')
                        && whole.start() > end
                        && raw[whole.end()..].starts_with(']');
                    let around = usize::from(bracketed);
                    (index, whole.start() - around, whole.end() + around)
                }
                None => {
                    let rule = redactor
                        .rules
                        .iter()
                        .find(|rule| *rule.label == *label.as_str());
                    let Some(rule) = rule else { continue };
                    let index = self.secret(&rule.label, whole.as_str())?;
                    (index, whole.start(), whole.end())
                }
            };
            pieces.push(Piece::Raw(&raw[end..from]));
            pieces.push(Piece::Taken(index));
            end = to;
        }
        pieces.push(Piece::Raw(&raw[end..]));
        Ok(())
    }

    /// Takes out what stood in named fields wherever else it stands, longer ones first.
    fn literals(&self, pieces: &mut Vec<Piece<'_>>) {
        let mut literals: Vec<(usize, &str)> = (self.secrets[..self.of_input].iter().enumerate())
            .map(|(index, secret)| (index, secret.value.as_str()))
            .filter(|(_, value)| value.len() >= LITERAL_BYTES_MIN)
            .collect();
        literals.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        for (index, value) in literals {
            let mut split = Vec::with_capacity(pieces.len());
            for piece in pieces.drain(..) {
                let Piece::Raw(raw) = piece else {
                    split.push(piece);
                    continue;
                };
                let mut end = 0;
                for (at, _) in raw.match_indices(value) {
                    split.push(Piece::Raw(&raw[end..at]));
                    split.push(Piece::Taken(index));
                    end = at + value.len();
                }
                split.push(Piece::Raw(&raw[end..]));
            }
            *pieces = split;
        }
    }

    /// Puts placeholders in the place of a field, in each element where what it is in is an array.
    fn field(
        &mut self,
        label: &Arc<str>,
        from: &Value,
        into: &mut Value,
        path: &[String],
    ) -> Result<(), TooMany> {
        match (from, into, path) {
            (from, into, []) => *into = self.whole(label, from)?,
            (Value::Array(from), Value::Array(into), path) => {
                for (from, into) in from.iter().zip(into) {
                    self.field(label, from, into, path)?;
                }
            }
            (Value::Object(from), Value::Object(into), [first, rest @ ..]) => {
                if let (Some(from), Some(into)) = (from.get(first), into.get_mut(first)) {
                    self.field(label, from, into, rest)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A value with a placeholder for every text and number of it. What is nothing, true or false says what no placeholder could
    /// hide.
    fn whole(&mut self, label: &Arc<str>, value: &Value) -> Result<Value, TooMany> {
        let index = match value {
            Value::String(text) if !text.is_empty() => self.secret(label, text)?,
            Value::Number(number) => self.secret(label, &number.to_string())?,
            Value::Array(values) => {
                let values = values.iter().map(|value| self.whole(label, value));
                return values.collect::<Result<Vec<_>, _>>().map(Value::Array);
            }
            Value::Object(fields) => {
                let fields = fields.iter();
                let fields =
                    fields.map(|(key, value)| Ok((key.clone(), self.whole(label, value)?)));
                return fields.collect::<Result<Map<_, _>, _>>().map(Value::Object);
            }
            Value::String(_) | Value::Null | Value::Bool(_) => return Ok(value.clone()),
        };
        Ok(Value::String(self.secrets[index].placeholder()))
    }

    /// Takes out of every text of a value, and of its numbers if so said: a number with a secret in it becomes a text.
    fn strings(&mut self, value: &mut Value, numbers: bool) -> Result<(), TooMany> {
        match value {
            Value::String(text) => self.text(text),
            Value::Number(number) if numbers => {
                let plain = number.to_string();
                let mut text = plain.clone();
                self.text(&mut text)?;
                if text != plain {
                    *value = Value::String(text);
                }
                Ok(())
            }
            Value::Array(values) => values
                .iter_mut()
                .try_for_each(|value| self.strings(value, numbers)),
            Value::Object(values) => {
                let mut taken = Map::new();
                for (key, mut value) in std::mem::take(values) {
                    let mut key = key;
                    self.text(&mut key)?;
                    self.strings(&mut value, numbers)?;
                    taken.insert(key, value);
                }
                *values = taken;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes out of the arguments of calls, which are JSON in a text.
    fn calls(&mut self, calls: &mut Value) -> Result<(), TooMany> {
        for call in calls.as_array_mut().into_iter().flatten() {
            let Some(arguments) = call.pointer_mut("/function/arguments") else {
                continue;
            };
            match arguments {
                Value::String(text) => match serde_json::from_str::<Value>(text) {
                    Ok(mut value) => {
                        let before = value.clone();
                        self.strings(&mut value, true)?;
                        if value != before {
                            *text = value.to_string();
                        }
                    }
                    Err(_) => self.text(text)?,
                },
                value => self.strings(value, true)?,
            }
        }
        Ok(())
    }
}

/// Leaves nothing of a field.
fn blank(value: &mut Value, path: &[String]) {
    match (value, path) {
        (value, []) => *value = Value::Null,
        (Value::Array(values), path) => values.iter_mut().for_each(|value| blank(value, path)),
        (Value::Object(fields), [first, rest @ ..]) => {
            if let Some(value) = fields.get_mut(first) {
                blank(value, rest);
            }
        }
        _ => {}
    }
}

/// Whether what stands under a word of schemas is itself one: the property of that name.
fn is_schema(value: &Value) -> bool {
    let words = ["type", "$ref", "properties", "anyOf", "oneOf", "allOf"];
    value
        .as_object()
        .is_some_and(|fields| words.iter().any(|word| fields.contains_key(*word)))
}
