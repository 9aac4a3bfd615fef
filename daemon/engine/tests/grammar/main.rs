//! Answers under constraints: which texts a grammar reaches, what is refused, and that forced tokens change nothing.

#![forbid(unsafe_code)]

mod answers;
mod calls;
mod factory;
mod refusals;
mod state;
mod suite;
#[path = "../support/mod.rs"]
mod support;
mod vocabulary;

use andon_engine::grammar::{Allowed, Constraint, Grammar, GrammarError};
use serde_json::Value;

/// Compiles a constraint for long answers.
fn compile(constraint: &Constraint) -> Result<Grammar, GrammarError> {
    Grammar::compile(vocabulary::shared(), constraint, 4096)
}

fn schema(schema: &Value) -> Result<Grammar, GrammarError> {
    compile(&Constraint::JsonSchema(schema.clone()))
}

/// Whether an answer can be exactly this text.
fn reached(grammar: &Grammar, text: &str) -> bool {
    let mut rest = text.as_bytes();
    let mut state = grammar.state();
    if state.begin(false, 1 << 20).is_err() {
        return false;
    }
    loop {
        if rest.is_empty() && state.is_accepting() {
            return true;
        }
        if state.is_finished() {
            return false;
        }
        let id = match state.allowed() {
            Ok(Allowed::One(id)) => Some(id),
            // The longest token that goes on with the text: bytes alone would do, but are slower.
            Ok(Allowed::Any(words)) => (0..words.len() as u32 * 32)
                .filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1)
                .filter(|&id| {
                    let bytes = vocabulary::bytes(id);
                    !bytes.is_empty() && rest.starts_with(bytes)
                })
                .max_by_key(|&id| vocabulary::bytes(id).len()),
            Err(_) => None,
        };
        let Some(id) = id else {
            return false;
        };
        let Some(behind) = rest.strip_prefix(vocabulary::bytes(id)) else {
            return false;
        };
        rest = behind;
        if state.accept(id).is_err() {
            return false;
        }
    }
}
