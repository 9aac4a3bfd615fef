//! `[[redact]]`: what is taken out of a request before it leaves the gateway, a kind of secret each.

use serde::{Deserialize, Serialize};

use super::Problems;
use crate::router::redact::Redactor;

/// Most kinds.
pub const RULES_MAX: usize = 64;
/// Longest name, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 24;
/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 4096;
/// Most fields of a kind.
const FIELDS_MAX: usize = 64;
/// Longest name of a field with those that it is in, in bytes.
const FIELD_BYTES_MAX: usize = 256;

/// One `[[redact]]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedactConfig {
    /// What it is called in what is sent: a letter and then letters and digits.
    pub name: String,
    /// A regular expression of it; where it has a group, the first one is what is taken out.
    pub pattern: Option<String>,
    /// Fields of the inputs of tasks; `machine.serial` is one in another.
    pub fields: Vec<String>,
}

impl RedactConfig {
    /// `number` counts from 1, in the order of the file.
    pub(super) fn check(&self, number: usize, problems: &mut Problems) {
        let key = |field: &str| format!("redact[{number}].{field}");
        let mut letters = self.name.chars();
        problems.require(
            self.name.len() <= NAME_BYTES_MAX
                && letters
                    .next()
                    .is_some_and(|first| first.is_ascii_alphabetic())
                && letters.all(|other| other.is_ascii_alphanumeric()),
            &key("name"),
            "is not a name",
            "begin it with a letter, and go on with letters and digits, 24 at most",
        );
        problems.require(
            self.pattern.is_some() || !self.fields.is_empty(),
            &format!("redact[{number}]"),
            "takes nothing out",
            "give it a pattern, or name fields",
        );
        let is_field = |field: &String| {
            field.len() <= FIELD_BYTES_MAX && field.split('.').all(|part| !part.is_empty())
        };
        problems.require(
            self.fields.len() <= FIELDS_MAX && self.fields.iter().all(is_field),
            &key("fields"),
            "is not a list of fields",
            "name at most 64, each as \"serial\" or \"machine.serial\"",
        );
        let Some(pattern) = &self.pattern else { return };
        if pattern.len() > PATTERN_BYTES_MAX {
            let fix = format!("keep it to {PATTERN_BYTES_MAX} bytes");
            problems.add(key("pattern"), format!("has {} bytes", pattern.len()), fix);
        } else if let Err(error) = Redactor::check_pattern(pattern) {
            problems.add(key("pattern"), error, "mend the expression");
        }
    }

    /// Adds what is wrong with all of them together.
    pub(super) fn check_all(rules: &[RedactConfig], problems: &mut Problems) {
        problems.sections("redact", rules.len(), RULES_MAX);
        for (number, rule) in (1..).zip(rules) {
            rule.check(number, problems);
            let mut before = rules.iter().take(number - 1);
            let is_taken = before.any(|other| other.name.eq_ignore_ascii_case(&rule.name));
            problems.own_name("redact", number, is_taken);
        }
    }
}
