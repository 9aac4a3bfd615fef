//! What an answer is held to, and an answer: a byte for the kind of source, one for the limit of tokens, the source up to
//! a byte that no text has, then the draws of its tokens.
//!
//! It is refused by what is wrong with it, or answers go on under it within their bounds: what it allows it takes, taking
//! back changes nothing, and a complete answer to a schema is JSON. The library never panics: the
//! daemon would survive it, but not the answer.

use std::sync::{Arc, OnceLock};

use crate::vocabulary::{TEXTS, tokenizer_with};
use andon_engine::grammar::parse_json;
use andon_engine::grammar::{Allowed, Constraint, Grammar, State, StateError, Vocabulary};
use andon_engine::tokenizer::Tokenizer;
use andon_os::heap;

/// The states of an answer's lexer and the items of its parser have bounds, some 40 MB together; a grammar has them twice.
const HEAP_BYTES_MAX: usize = 256 << 20;
const KINDS: u8 = 5;
/// Most tokens of an answer here.
const STEPS_MAX: usize = 48;
const BREAK: u8 = 0xff;

pub(crate) fn run(data: &[u8]) {
    let [kind, limit, rest @ ..] = data else {
        return;
    };
    let end = rest.iter().position(|&byte| byte == BREAK);
    let (source, draws) = rest.split_at(end.unwrap_or(rest.len()));
    let Ok(source) = core::str::from_utf8(source) else {
        return;
    };
    let constraint = match kind % KINDS {
        0 => match parse_json(source.as_bytes()) {
            Ok(schema) => Constraint::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Constraint::JsonObject,
        2 => Constraint::Regex(source.to_owned()),
        3 => Constraint::Lark(source.to_owned()),
        _ => Constraint::Gbnf(source.to_owned()),
    };
    // Made outside of what is measured.
    let vocabulary = vocabulary();
    let tokens_max = 1 + usize::from(*limit) * 8;
    heap::measure(HEAP_BYTES_MAX, source.len() as u64, || {
        let checked = constraint.check(tokens_max);
        match Grammar::compile(vocabulary, &constraint, tokens_max) {
            Ok(grammar) => {
                assert!(checked.is_ok());
                let json = matches!(
                    constraint,
                    Constraint::JsonSchema(_) | Constraint::JsonObject
                );
                if let Err(error) = answer(&grammar, tokens_max, draws, json) {
                    sound(&error.to_string());
                }
            }
            Err(error) => sound(&error.to_string()),
        }
        if let Err(error) = checked {
            sound(&error.to_string());
        }
    });
}

/// An error says something, and none of the library's panics.
fn sound(error: &str) {
    assert!(!error.is_empty() && !error.contains("panic:"), "{error}");
}

fn answer(
    grammar: &Grammar,
    tokens_max: usize,
    draws: &[u8],
    json: bool,
) -> Result<(), StateError> {
    let mut state = grammar.state();
    state.begin(draws.len() % 2 == 1, tokens_max)?;
    let (mut text, mut draws) = (Vec::new(), draws.iter().copied());
    for _ in 0..STEPS_MAX {
        if state.is_finished() {
            break;
        }
        let draw = usize::from(draws.next().unwrap_or(0));
        let Some(id) = choose(&mut state, draw)? else {
            continue;
        };
        state.accept(id)?;
        if draw.is_multiple_of(3) {
            state.rollback(1)?;
            state.accept(id)?;
        }
        text.extend_from_slice(word(id));
    }
    if state.is_finished() && json {
        let read = serde_json::from_slice::<serde_json::Value>(&text);
        assert!(read.is_ok(), "{}", String::from_utf8_lossy(&text));
    }
    Ok(())
}

fn choose(state: &mut State, draw: usize) -> Result<Option<u32>, StateError> {
    // One token at a time is told without the mask of all, and the same.
    let one = (draw * 7) as u32 % (TEXTS as u32 + 2);
    let takes = state.takes(one);
    let id = match state.allowed()? {
        Allowed::One(id) => {
            assert!(takes.is_none_or(|takes| takes == (one == id)));
            return Ok(Some(id));
        }
        Allowed::Any(words) => {
            let allowed: Vec<u32> = (0..words.len() as u32 * 32)
                .filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1)
                .collect();
            assert!(!allowed.is_empty());
            assert!(takes.is_none_or(|takes| takes == allowed.contains(&one)));
            allowed[draw % allowed.len()]
        }
    };
    state.settle(id)
}

/// Every byte, some pairs, the end of an answer.
fn vocabulary() -> &'static Arc<Vocabulary> {
    static VOCABULARY: OnceLock<Arc<Vocabulary>> = OnceLock::new();
    VOCABULARY.get_or_init(|| Arc::new(Vocabulary::new(tokenizer()).expect("a vocabulary")))
}

fn word(id: u32) -> &'static [u8] {
    if id as usize >= TEXTS {
        return &[];
    }
    tokenizer().token_bytes(id)
}

fn tokenizer() -> &'static Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| tokenizer_with(&["<|end|>"]))
}
