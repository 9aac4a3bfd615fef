//! Calls of tools: how a model's template writes them, and how they are told of, enforced and read back.
//!
//! Every family of models writes calls in its own way, and a model calls tools well only in the way that it was tuned for.
//! So a [`ToolStyle`] is found out by rendering short conversations with a known call through the model's own template
//! ([`detect`]), not by names of models: what stands around the name and the arguments is the [`CallFormat`]. A template
//! that writes no calls, or writes them in another way than as JSON behind a name, gets one of ours
//! ([`CallFormat::plain`]), which is then described to the model in what the system says ([`prompt`]).
//!
//! An answer that may have calls is held to a [`crate::grammar::Constraint::Calls`], and [`CallReader`] takes its text
//! apart again. Invariant: grammar and reader follow the same format, so what is enforced is what is read.

mod detect;
mod format;
mod prompt;
mod read;

pub use detect::ToolStyle;
pub(crate) use format::Piece;
pub use format::{CallFormat, Opener};
pub use read::{CallEvent, CallReader};

/// Longest name of a tool, as OpenAI has it.
pub const NAME_BYTES_MAX: usize = 64;

/// Characters of an id that a format wants written beside each call: what the strictest templates ask for.
pub const ID_CHARACTERS: usize = 9;

/// Whether a byte may stand in a tool's name.
#[must_use]
pub const fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Whether a tool may have this name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_of_name)
}
