//! What is taken out of a request before it leaves the gateway, and put back into its answer.
//!
//! In the place of each secret there is a placeholder, `[SERIAL_1]`: the kind that the configuration names, and a number, in
//! the order in which the kind's secrets first come. Equal ones share one. So what is sent says nothing about a secret but where
//! it stands, and two requests that differ in secrets only are the same question. A model that writes the placeholder into its
//! answer has the secret put back by the [`Restorer`].
//!
//! All that is to be taken out of a text is looked for in the text as it came, and what touches or overlaps is taken out as one.
//! Named fields of a task's input are taken out before the task's template sees them, so that nothing that it makes of them
//! leaves; what they hold is then looked for in everything else, too. What looks like a placeholder already in the request is a
//! secret like any other, so that an answer cannot confuse the two.
//!
//! Each text is looked at for itself: a secret of which one half stands in one message and one in the next is not known. The
//! parts of one message's content are one text.
//!
//! Invariant: nothing that a rule fits is in what this hands out. A request from which that cannot be taken leaves not at all:
//! [`Unredactable`].

mod find;
mod json;
mod restore;
#[cfg(test)]
mod tests;
mod view;
mod walk;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

pub use restore::{Form, RESTORED_BYTES_MAX, Restorer, TooLarge};

use self::find::{Effort, Place, Sought, Values};
use crate::config::redact::RedactConfig;
use crate::request::Message;

/// Most different secrets of one request.
pub const SECRETS_MAX: usize = 1024;
/// Largest program that an expression becomes, in bytes, and largest cache of it.
const PROGRAM_BYTES_MAX: usize = 1 << 20;
/// For each byte of a text, bytes of what is made of it to be searched, at one time.
const VIEW_BYTES: usize = 24;
/// Deepest nesting in an expression.
const NESTING_MAX: u32 = 64;

/// Why a request cannot leave: what may not leave cannot be taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unredactable {
    /// There is more of it than [`SECRETS_MAX`].
    TooMany,
    /// To look for it takes too long.
    TooHard,
    /// It stands where there can be no placeholder: in the name of a tool, in an expression of a schema or a number that it
    /// compares with, or in a role.
    Fixed,
    /// The task makes nothing of an input without it.
    Unrendered,
}

impl fmt::Display for Unredactable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unredactable::TooMany => write!(
                f,
                "it has more than {SECRETS_MAX} different texts that must not leave"
            ),
            Unredactable::TooHard => {
                f.write_str("it takes too long to look for what must not leave")
            }
            Unredactable::Fixed => {
                f.write_str("what must not leave stands in a name or a schema that needs it")
            }
            Unredactable::Unrendered => {
                f.write_str("its task makes nothing of an input without what must not leave")
            }
        }
    }
}

impl std::error::Error for Unredactable {}

/// Most bytes that rules take, and the search by them in a text of `text_bytes_max`: one request is searched at a time.
#[must_use]
pub fn memory_bytes_max(rules: &[RedactConfig], text_bytes_max: usize) -> usize {
    if rules.is_empty() {
        return 0;
    }
    let expressions = rules.iter().filter(|rule| rule.pattern.is_some()).count();
    let expressions = expressions.saturating_mul(PROGRAM_BYTES_MAX);
    expressions.saturating_add(text_bytes_max.saturating_mul(VIEW_BYTES))
}

/// Takes out what the configuration says.
pub struct Redactor {
    /// What placeholders of each rule are called, in capital letters.
    labels: Vec<Arc<str>>,
    /// Expressions, each with the number of its rule.
    expressions: Vec<(usize, Regex)>,
    /// Fields, each with the number of its rule.
    fields: Vec<(usize, Vec<String>)>,
    /// What looks like a placeholder: everything that a [`Restorer`] might take for one, and more.
    lookalike: Option<Regex>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.labels).finish()
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
        let mut made = Redactor {
            labels: Vec::with_capacity(rules.len()),
            expressions: Vec::new(),
            fields: Vec::new(),
            lookalike: None,
        };
        for (index, rule) in rules.iter().enumerate() {
            made.labels.push(rule.name.to_ascii_uppercase().into());
            if let Some(pattern) = &rule.pattern {
                let pattern = build(pattern).map_err(|error| (index + 1, error))?;
                made.expressions.push((index, pattern));
            }
            let fields = rule.fields.iter();
            let fields = fields.map(|field| field.split('.').map(str::to_owned).collect());
            made.fields.extend(fields.map(|field| (index, field)));
        }
        if !made.labels.is_empty() {
            let labels = made.labels.join("|");
            let bare = format!(r"(?:{labels})\\{{0,2}}_[0-9]+");
            let bracketed = format!(r"\[ ?(?:{labels})(?:\\{{0,2}}_|[ -])[0-9]+ ?\]");
            let lookalike = build(&format!("(?i){bracketed}|{bare}"));
            made.lookalike = Some(lookalike.map_err(|error| (0, error))?);
        }
        Ok(made)
    }

    /// Whether nothing is taken out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Begins with a request.
    #[must_use]
    pub fn begin(&self) -> Redaction<'_> {
        Redaction {
            redactor: self,
            secrets: Vec::new(),
            known: BTreeMap::new(),
            numbers: vec![Vec::new(); self.labels.len()],
            of_input: 0,
            values: None,
            effort: Effort::new(),
        }
    }

    /// Takes out of a conversation. For more than that, see [`Redactor::begin`].
    ///
    /// # Errors
    /// [`Unredactable`]
    pub fn redact(&self, messages: &[Message]) -> Result<(Vec<Message>, Secrets), Unredactable> {
        let mut redaction = self.begin();
        let mut messages = messages.to_vec();
        redaction.messages(&mut messages)?;
        Ok((messages, redaction.done()))
    }
}

struct Secret {
    label: Arc<str>,
    rule: usize,
    /// Among those of its rule, from 1.
    number: usize,
    value: String,
}

impl Secret {
    fn placeholder(&self) -> String {
        format!("[{}_{}]", self.label, self.number)
    }
}

/// What was taken out of one request. It is not printed.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Taken>);

#[derive(Default)]
struct Taken {
    secrets: Vec<Secret>,
    /// By label, in the order of their numbers.
    by_label: BTreeMap<Arc<str>, Vec<usize>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.count())
    }
}

impl Secrets {
    /// Whether nothing was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.secrets.is_empty()
    }

    /// How much was.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.secrets.len()
    }

    /// Puts it back into a text that comes in pieces. Texts that come beside each other need one each.
    #[must_use]
    pub fn restorer(&self, form: Form) -> Restorer {
        Restorer::new(self.clone(), form)
    }

    /// Puts it back into a whole text.
    ///
    /// # Errors
    /// [`TooLarge`]
    pub fn restore(&self, text: &str, form: Form) -> Result<String, TooLarge> {
        self.restorer(form).whole(text)
    }

    /// Whether there are placeholders with this label, in capital letters.
    fn has(&self, label: &str) -> bool {
        self.0.by_label.contains_key(label)
    }

    /// Whether there are some whose labels begin so.
    fn begins(&self, label: &str) -> bool {
        let behind = (Bound::Included(label), Bound::Unbounded);
        let next = self.0.by_label.range::<str, _>(behind).next();
        next.is_some_and(|(next, _)| next.starts_with(label))
    }

    /// The secret of a placeholder with this label, in capital letters, and number.
    fn find(&self, label: &str, number: usize) -> Option<&str> {
        let numbers = self.0.by_label.get(label)?;
        let index = numbers.get(number.checked_sub(1)?)?;
        Some(&self.0.secrets.get(*index)?.value)
    }
}

/// One request, of which everything is taken out by the same numbers.
pub struct Redaction<'r> {
    redactor: &'r Redactor,
    secrets: Vec<Secret>,
    /// By rule and value.
    known: BTreeMap<(usize, String), usize>,
    /// The secrets of each rule, in the order of their numbers.
    numbers: Vec<Vec<usize>>,
    /// So many of them were in a task's input, and stand in what its template made of it.
    of_input: usize,
    /// What was in the named fields of a task's input.
    values: Option<Values>,
    effort: Effort,
}

impl fmt::Debug for Redaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.secrets.len())
    }
}

impl Redaction<'_> {
    /// Takes out of a text.
    ///
    /// # Errors
    /// [`Unredactable`]
    pub fn text(&mut self, text: &mut String) -> Result<(), Unredactable> {
        let places = self.places(text)?;
        self.take(text, places, Vec::new())
    }

    /// What was taken out.
    #[must_use]
    pub fn done(self) -> Secrets {
        let labels = self.redactor.labels.iter().cloned();
        Secrets(Arc::new(Taken {
            secrets: self.secrets,
            by_label: labels.zip(self.numbers).collect(),
        }))
    }

    /// Takes out of a text in which there may be placeholders of this very request, which stay.
    fn rendered(&mut self, text: &mut String) -> Result<(), Unredactable> {
        let own = self.own(text)?;
        let places = self.places(text)?;
        self.take(text, without(places, &own), own)
    }

    /// Where in a text something is to be taken out.
    fn places(&mut self, text: &str) -> Result<Vec<Place>, Unredactable> {
        let Some(lookalike) = &self.redactor.lookalike else {
            return Ok(Vec::new());
        };
        self.effort.spend(text.len())?;
        // No two of them overlap, and whoever has many has too many secrets.
        let found = lookalike.find_iter(text).take(find::PLACES_MAX + 1);
        let lookalikes = found.map(|found| Place {
            bytes: found.range(),
            rule: named(&self.redactor.labels, found.as_str()).map_or(0, |(rule, _)| rule),
        });
        let mut places = lookalikes.collect();
        let sought = Sought {
            expressions: &self.redactor.expressions,
            values: self.values.as_ref(),
        };
        sought.find(text, &mut self.effort, &mut places)?;
        Ok(find::merged(places))
    }

    /// Placeholders of secrets that were in a task's input: where, and of which.
    fn own(&mut self, text: &str) -> Result<Vec<(Range<usize>, usize)>, Unredactable> {
        let mut own = Vec::new();
        if self.of_input == 0 {
            return Ok(own);
        }
        let found = self.redactor.lookalike.iter();
        for found in found.flat_map(|lookalike| lookalike.find_iter(text)) {
            self.effort.spend(found.len())?;
            let Some((rule, number)) = named(&self.redactor.labels, found.as_str()) else {
                continue;
            };
            let index = number.checked_sub(1);
            let index = index.and_then(|index| self.numbers[rule].get(index));
            if let Some(index) = index.copied().filter(|index| *index < self.of_input) {
                own.push((found.range(), index));
            }
        }
        self.effort.spend(text.len())?;
        Ok(own)
    }

    /// Puts placeholders in these places of a text, and in those of the secrets beside them. None overlap.
    fn take(
        &mut self,
        text: &mut String,
        places: Vec<Place>,
        own: Vec<(Range<usize>, usize)>,
    ) -> Result<(), Unredactable> {
        if places.is_empty() && own.is_empty() {
            return Ok(());
        }
        let mut own = own.into_iter().peekable();
        let mut left = String::with_capacity(text.len());
        let mut end = 0;
        for place in places {
            while let Some((bytes, index)) =
                own.next_if(|(bytes, _)| bytes.start < place.bytes.start)
            {
                left.push_str(&text[end..bytes.start]);
                left.push_str(&self.secrets[index].placeholder());
                end = bytes.end;
            }
            let index = self.secret(place.rule, &text[place.bytes.clone()])?;
            left.push_str(&text[end..place.bytes.start]);
            left.push_str(&self.secrets[index].placeholder());
            end = place.bytes.end;
        }
        for (bytes, index) in own {
            left.push_str(&text[end..bytes.start]);
            left.push_str(&self.secrets[index].placeholder());
            end = bytes.end;
        }
        left.push_str(&text[end..]);
        *text = left;
        Ok(())
    }

    /// The index of a secret, a new one if it was not seen before.
    fn secret(&mut self, rule: usize, value: &str) -> Result<usize, Unredactable> {
        self.effort.spend(value.len())?;
        let name = (rule, value.to_owned());
        if let Some(&index) = self.known.get(&name) {
            return Ok(index);
        }
        if self.secrets.len() >= SECRETS_MAX {
            return Err(Unredactable::TooMany);
        }
        let index = self.secrets.len();
        self.numbers[rule].push(index);
        self.secrets.push(Secret {
            label: Arc::clone(&self.redactor.labels[rule]),
            rule,
            number: self.numbers[rule].len(),
            value: value.to_owned(),
        });
        self.known.insert(name, index);
        Ok(index)
    }
}

/// The rule and the number of what looks like a placeholder.
fn named(labels: &[Arc<str>], lookalike: &str) -> Option<(usize, usize)> {
    let name = lookalike.trim_matches(['[', ']', ' ']);
    let of_label = name.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (label, number) = (&name[..of_label], &name[name.len() - digits..]);
    let rule = labels
        .iter()
        .position(|other| other.eq_ignore_ascii_case(label))?;
    let number = number.parse().ok().filter(|_| !number.starts_with('0'));
    Some((rule, number.unwrap_or(0)))
}

/// Places with nothing of what is beside them.
fn without(places: Vec<Place>, beside: &[(Range<usize>, usize)]) -> Vec<Place> {
    let mut rest = Vec::with_capacity(places.len());
    let mut beside = beside.iter().map(|(bytes, _)| bytes).peekable();
    for Place { bytes, rule } in places {
        let Range { mut start, end } = bytes;
        while beside.next_if(|other| other.end <= start).is_some() {}
        while let Some(other) = beside.peek().filter(|other| other.start < end) {
            if start < other.start {
                let bytes = start..other.start;
                rest.push(Place { bytes, rule });
            }
            start = other.end;
            if other.end > end {
                break;
            }
            beside.next();
        }
        if start < end {
            let bytes = start..end;
            rest.push(Place { bytes, rule });
        }
    }
    rest
}
