//! Which JSON schemas are taken, and what they become before `llguidance` compiles them.
//!
//! A schema is walked once with every keyword of drafts 2020-12, 2019-09 and 7 in mind ([`keyword`]): annotations are left
//! out, what is enforced is checked and kept ([`walk`]), and everything else is refused by its name. References are
//! resolved here, into the schema itself only. `format` is an assertion, as in OpenAI's strict mode: formats that are
//! enforced are taken and others refused.
//!
//! What has no bound gets one from the answer's limit of T tokens ([`bounds`]), so that no answer is all one string:
//! the arrays share T / 16 items, at least 4 each; the strings share 2 T characters, at least 32 each, where one in an
//! array counts as often as it may stand there; numbers have at most 15 digits before the point and 6 behind it. Objects
//! whose declared properties are all required take as many other properties as an array takes items.
//!
//! A schema that nothing finite satisfies is found by the size of its smallest instance ([`size`]).

mod bounds;
mod dates;
pub mod keyword;
mod size;
mod walk;

use llguidance::JsonCompileOptions;
use serde_json::{Map, Value};

use super::closing::Reserve;
use super::error::GrammarError;
use super::limits;
use bounds::Bounds;
use walk::Walk;
pub use walk::referred;

/// Escapes of strings: what must be escaped in them, and nothing else, so that one text has one spelling. Control
/// characters without a letter of their own cannot be said.
const ESCAPES: &str = "nrbtf\\\"";

/// A schema as the compiler takes it, for answers of at most `tokens_max` tokens.
/// And what closing an answer of it may need. `spaced` has a space behind commas and colons.
pub(super) fn prepare(
    schema: &Value,
    tokens_max: usize,
    spaced: bool,
) -> Result<(Value, Reserve), GrammarError> {
    measure(schema)?;
    // What has no bound is counted first, arrays before the strings in them.
    let mut bounds = Bounds::counting(tokens_max);
    bounds.share_items(Walk::new(schema, bounds)?.run()?.unbounded);
    bounds.share_characters(Walk::new(schema, bounds)?.run()?.unbounded);
    let walked = Walk::new(schema, bounds)?.run()?;
    let smallest = size::smallest(&walked.root, &walked.definitions);
    let smallest = smallest.ok_or_else(|| GrammarError::Unsatisfiable {
        what: "the schema",
        reason: "its smallest instance would be endless, or there is none".to_owned(),
    })?;
    let mut reserve = size::reserve(&walked.root, &walked.definitions);
    // What arrays have to have counts as often as it is there.
    reserve.tokens = reserve.tokens.max(smallest);
    let mut root = match walked.root {
        Value::Object(root) => root,
        // Only `true` has instances.
        _ => Map::new(),
    };
    if !walked.definitions.is_empty() {
        let definitions = walked.definitions.into_iter().enumerate();
        let named = definitions.map(|(index, value)| (walk::definition_name(index), value));
        root.insert("$defs".to_owned(), Value::Object(named.collect()));
    }
    let mut root = Value::Object(root);
    let separator = |sign: &str| format!("{sign}{}", if spaced { " " } else { "" });
    JsonCompileOptions {
        whitespace_flexible: false,
        json_allowed_escapes: Some(ESCAPES.to_owned()),
        item_separator: separator(","),
        key_separator: separator(":"),
        ..JsonCompileOptions::default()
    }
    .apply_to(&mut root);
    Ok((root, reserve))
}

/// Whether a keyword says something about instances, or is to be refused.
pub(super) fn says(keyword: &str) -> bool {
    !matches!(
        keyword::of(keyword),
        keyword::Keyword::Annotation | keyword::Keyword::Definitions
    )
}

/// Holds a schema to its bounds before anything recurses over it.
fn measure(schema: &Value) -> Result<(), GrammarError> {
    let refused = |what, count, max| Err(GrammarError::TooLarge { what, count, max });
    let (mut values, mut bytes) = (0usize, 0usize);
    let mut waiting = vec![(schema, 0usize)];
    while let Some((value, depth)) = waiting.pop() {
        values += 1;
        if depth > limits::SCHEMA_DEPTH_MAX {
            let what = "the schema nests in levels:";
            return refused(what, depth, limits::SCHEMA_DEPTH_MAX);
        }
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => waiting.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => {
                bytes += map.keys().map(String::len).sum::<usize>();
                waiting.extend(map.values().map(|value| (value, depth + 1)));
            }
            _ => {}
        }
        if values > limits::SCHEMA_VALUES_MAX {
            let what = "the schema has values:";
            return refused(what, values, limits::SCHEMA_VALUES_MAX);
        }
        if bytes > limits::SOURCE_BYTES_MAX {
            let what = "the schema has bytes of text:";
            return refused(what, bytes, limits::SOURCE_BYTES_MAX);
        }
    }
    Ok(())
}
