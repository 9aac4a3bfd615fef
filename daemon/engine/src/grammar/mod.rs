//! Answers of a given shape: JSON of a schema, a regular expression, a grammar.
//!
//! A [`Constraint`] is checked and compiled once ([`Grammar`]), for the [`Vocabulary`] of a model; each answer has a
//! [`State`] that says which tokens may come next and which must. `llguidance` does the parsing; ours is what it is given:
//!
//! - [`schema`]: which schemas are taken, and the bounds they get;
//! - [`calls`]: calls of tools, in the format that a model writes them, and [`arguments`] of them;
//! - [`json`]: texts of JSON in which an object has a name twice are refused;
//! - [`gbnf`]: grammars of llama.cpp, written anew for it;
//! - [`closing`]: how an answer of JSON ends within its limit of tokens;
//! - [`tidy`]: no object has a name twice;
//! - [`guard`]: a panic in the library is an error here;
//! - [`vocabulary`]: the bytes of the tokens, and our tokenizer for what is forced.
//!
//! Invariant: fail closed. What is not enforced is refused by its name before the first token, and no text comes out that
//! the constraint does not allow; only the limit of tokens can cut an answer short, and it says so.

mod arguments;
mod calls;
mod closing;
mod constraint;
mod error;
mod gbnf;
mod guard;
mod json;
pub mod limits;
pub mod schema;
mod state;
mod tidy;
mod vocabulary;

pub use calls::{Calls, Tool};
pub use constraint::{Constraint, Grammar};
pub use error::{GrammarError, StateError};
pub use guard::{guarded, panics_are_errors};
pub use json::{Unique, parse_json};
pub use state::{Allowed, State};
pub use vocabulary::Vocabulary;
