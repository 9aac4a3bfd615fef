//! Why a constraint is refused, or an answer under one cannot go on.

use thiserror::Error;

/// Why an answer cannot be constrained as asked. All of them come before the first token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrammarError {
    /// More of something than is taken.
    #[error("{what} {count}, at most {max} are taken")]
    TooLarge {
        /// What there is too much of, with its verb: "the schema has values:".
        what: &'static str,
        /// How much was given.
        count: usize,
        /// How much is taken.
        max: usize,
    },
    /// A keyword of a schema that is not enforced.
    #[error("the schema has `{keyword}` at `{pointer}`, which is not supported{reason}")]
    Unsupported {
        /// The keyword.
        keyword: String,
        /// Where the schema stands that has it, as a JSON pointer.
        pointer: String,
        /// What about it, with a leading separator; empty if nothing of it is supported.
        reason: &'static str,
    },
    /// A value in a schema that cannot stand there.
    #[error("the schema is not valid at `{pointer}`: {problem}")]
    InvalidSchema {
        /// Where, as a JSON pointer.
        pointer: String,
        /// What is wrong.
        problem: String,
    },
    /// No answer could satisfy it.
    #[error("nothing satisfies {what}: {reason}")]
    Unsatisfiable {
        /// What was given.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Every answer has more tokens than it may have.
    #[error("no answer has at most {limit} tokens: each begins with the same {needed}")]
    LimitTooSmall {
        /// Tokens that every answer begins with.
        needed: usize,
        /// The limit.
        limit: usize,
    },
    /// The source does not parse.
    #[error("{what} is not valid: {problem}")]
    Invalid {
        /// What was given.
        what: &'static str,
        /// What is wrong, and where.
        problem: String,
    },
    /// It would take more work or memory than one answer may.
    #[error("{what} is too complex: {reason}")]
    TooComplex {
        /// What was given.
        what: &'static str,
        /// Which bound it would break.
        reason: String,
    },
    /// What is wrong with one of several tools.
    #[error("tool `{name}`: {error}")]
    Tool {
        /// The tool's name.
        name: String,
        /// What is wrong.
        error: Box<GrammarError>,
    },
    /// The vocabulary cannot be used with any constraint.
    #[error("answers of this model cannot be constrained: {reason}")]
    Vocabulary {
        /// Why.
        reason: &'static str,
    },
}

/// An answer cannot go on: its state needs more than its bounds allow, or a token was taken that was not allowed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the constraint of the answer cannot be followed: {0}")]
pub struct StateError(pub(super) String);

impl StateError {
    /// Whoever had the state is gone.
    pub(crate) fn lost() -> Self {
        Self("its state was lost".to_owned())
    }
}

/// Most of a message of the library that goes into ours: it may quote what it was given.
const MESSAGE_BYTES_MAX: usize = 300;

/// The first lines of an error of the library, which is many lines of state at times.
pub(super) fn message(error: &impl core::fmt::Display) -> String {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut line: String = text[..end]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if end < text.len() {
        line.push('…');
    }
    line
}

impl GrammarError {
    /// Sorts an error of the library.
    pub(super) fn of(what: &'static str, error: &impl core::fmt::Display) -> Self {
        let reason = message(error);
        let lower = reason.to_ascii_lowercase();
        let any = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
        if any(&[
            "unsatisfiable",
            "no tokens allowed",
            "is empty:",
            "noextension",
        ]) {
            Self::Unsatisfiable { what, reason }
        } else if any(&[
            "too large",
            "too big",
            "too complex",
            "fuel",
            "limit",
            "exceeded",
        ]) {
            Self::TooComplex { what, reason }
        } else {
            Self::Invalid {
                what,
                problem: reason,
            }
        }
    }
}
