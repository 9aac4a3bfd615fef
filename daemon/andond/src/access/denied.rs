//! What is denied: what was asked, and what may be.

use std::fmt;

use crate::fault::{Fault, FaultCode};
use crate::request::Priority;

/// Most names of what may be asked that are told.
const NAMES_SHOWN_MAX: usize = 8;
/// Most characters of a name that are told.
const NAME_CHARS_MAX: usize = 64;

/// What a caller may not ask. Texts are short, whatever was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// It may ask nothing.
    Caller(String),
    /// The class is more urgent than it may be.
    Priority {
        /// What was asked.
        asked: Priority,
        /// What may be.
        most: Priority,
    },
    /// The model is none of those that may be asked.
    Model {
        /// What was asked.
        asked: String,
        /// What may be.
        allowed: String,
    },
    /// The task is none of those that may be asked, or it is no task at all.
    Task {
        /// What was asked.
        asked: Option<String>,
        /// What may be.
        allowed: String,
    },
    /// The request is not to leave the gateway.
    Egress,
}

impl Denied {
    pub(super) fn model(asked: &str, allowed: &[String]) -> Denied {
        Denied::Model {
            asked: shown(asked),
            allowed: list(allowed),
        }
    }

    pub(super) fn task(asked: Option<&str>, allowed: &[String]) -> Denied {
        Denied::Task {
            asked: asked.map(shown),
            allowed: list(allowed),
        }
    }

    /// The request's field that asks for it.
    fn param(&self) -> Option<&'static str> {
        match self {
            Denied::Caller(_) => None,
            Denied::Priority { .. } => Some("priority"),
            Denied::Model { .. } => Some("model"),
            Denied::Task { asked, .. } => asked.as_ref().map(|_| "task"),
            Denied::Egress => Some("egress"),
        }
    }
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let some = names.iter().take(NAMES_SHOWN_MAX).map(|name| shown(name));
    let mut list = some.collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(NAMES_SHOWN_MAX).filter(|&n| n > 0) {
        list.push_str(&format!(" and {more} more"));
    }
    list
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Caller(who) => write!(f, "{who} may ask nothing here"),
            Denied::Priority { asked, most } => write!(
                f,
                "the priority is {}; this caller may ask at most {}",
                asked.name(),
                most.name()
            ),
            Denied::Model { asked, allowed } => {
                write!(f, "the model is {asked}; this caller may ask: {allowed}")
            }
            Denied::Task { asked, allowed } => {
                match asked {
                    Some(asked) => write!(f, "the task is {asked}")?,
                    None => f.write_str("this is no task")?,
                }
                write!(f, "; this caller may ask the tasks: {allowed}")
            }
            Denied::Egress => f.write_str(
                "the egress is any; what this caller asks stays on the gateway: ask with egress local",
            ),
        }
    }
}

impl std::error::Error for Denied {}

impl From<Denied> for Fault {
    fn from(denied: Denied) -> Fault {
        Fault {
            param: denied.param(),
            ..Fault::new(FaultCode::Denied, denied.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_short_whatever_was_asked() {
        let names: Vec<String> = (0..100).map(|name| format!("{name}").repeat(100)).collect();
        let text = Denied::task(Some(&"x".repeat(10_000)), &names).to_string();
        assert!(
            text.len() < 1_000 && text.ends_with(" and 92 more"),
            "{text}"
        );
        let text = Denied::model("m", &[]).to_string();
        assert!(text.ends_with("none"), "{text}");
    }
}
