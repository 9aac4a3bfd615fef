//! Calls of tools: a byte of flags, one for the limit of tokens, and up to bytes that no text has a chat template, the tools
//! as a list of names and parameters, a text, then the draws of an answer.
//!
//! Whatever the template does, a format is found; a text is read the same whole and in pieces; and an answer that is held to
//! the tools is read back as calls of them, each complete where the answer is.

use std::sync::{Arc, OnceLock};

use crate::vocabulary::{TEXTS, tokenizer_with};
use andon_engine::calls::{CallEvent, CallFormat, CallReader, Opener, ToolStyle};
use andon_engine::grammar::{
    Allowed, Calls, Constraint, Grammar, State, StateError, Tool, Vocabulary, parse_json,
};
use andon_engine::tokenizer::{ChatTemplate, Special, Tokenizer};
use andon_os::heap;
use serde_json::Value;

/// A grammar has the bounded states of an answer twice, and a template may build some texts.
const HEAP_BYTES_MAX: usize = 1 << 30;
/// Most choices of an answer here.
const STEPS_MAX: usize = 96;
const BREAK: u8 = 0xff;
/// A draw from here on says what calls begin with.
const OPENS: u8 = 240;
const END: u32 = TEXTS as u32;

pub(crate) fn run(data: &[u8]) {
    let [flags, limit, rest @ ..] = data else {
        return;
    };
    let mut parts = rest.splitn(4, |&byte| byte == BREAK);
    let mut next = || parts.next().unwrap_or_default();
    let (template, tools, text, draws) = (next(), next(), next(), next());
    let (Ok(template), Ok(text)) = (core::str::from_utf8(template), core::str::from_utf8(text))
    else {
        return;
    };
    let tools = tools_of(tools);
    // Made outside of what is measured.
    let vocabulary = vocabulary();
    let tokens_max = 1 + usize::from(*limit) * 4;
    let knows = (flags & 1 == 0).then(|| &**tokenizer());
    heap::measure(HEAP_BYTES_MAX, data.len() as u64, || {
        let format = match ChatTemplate::from_source(template, "", "<|end|>") {
            Ok(found) if !template.is_empty() => ToolStyle::of(&found, knows).format().clone(),
            _ => CallFormat::plain(knows),
        };
        let whole = read(&format, [text]);
        assert_eq!(whole, read(&format, pieces(text, draws)), "{text:?}");
        let Some(tools) = tools else {
            return;
        };
        let calls = Calls {
            format,
            tools,
            required: flags & 2 != 0,
            several: flags & 4 != 0,
        };
        let constraint = Constraint::Calls(calls.clone());
        let checked = constraint.check(tokens_max);
        match Grammar::compile(vocabulary, &constraint, tokens_max) {
            Ok(grammar) => {
                assert!(checked.is_ok());
                if let Err(error) = answer(&grammar, &calls, tokens_max, draws) {
                    sound(&error.to_string());
                }
            }
            Err(error) => sound(&error.to_string()),
        }
    });
}

/// An error says something, and none of the library's panics.
fn sound(error: &str) {
    assert!(!error.is_empty() && !error.contains("panic:"), "{error}");
}

fn tools_of(bytes: &[u8]) -> Option<Vec<Tool>> {
    let Ok(Value::Array(all)) = parse_json(bytes) else {
        return None;
    };
    let tools = all.into_iter().map(|tool| {
        Some(Tool {
            name: tool.get("name")?.as_str()?.to_owned(),
            parameters: tool.get("parameters").cloned(),
        })
    });
    tools.collect()
}

/// A text cut as the draws say.
fn pieces<'a>(text: &'a str, draws: &[u8]) -> Vec<&'a str> {
    let mut cuts: Vec<usize> = draws
        .iter()
        .map(|&draw| usize::from(draw) * (text.len() + 1) / 256)
        .chain([text.len() / 2])
        .map(|at| text.floor_char_boundary(at))
        .collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
    pieces.collect()
}

/// The events of an answer, those of one kind joined.
fn read<'a>(format: &CallFormat, pieces: impl IntoIterator<Item = &'a str>) -> Vec<CallEvent> {
    let mut reader = CallReader::new(format.clone());
    let mut all: Vec<CallEvent> = pieces
        .into_iter()
        .flat_map(|piece| reader.push(piece))
        .collect();
    all.extend(reader.finish());
    let mut joined: Vec<CallEvent> = Vec::new();
    for event in all {
        match (joined.last_mut(), event) {
            (Some(CallEvent::Text(last)), CallEvent::Text(next))
            | (Some(CallEvent::Arguments(last)), CallEvent::Arguments(next)) => {
                last.push_str(&next);
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}

fn answer(
    grammar: &Grammar,
    calls: &Calls,
    tokens_max: usize,
    draws: &[u8],
) -> Result<(), StateError> {
    let mut state = grammar.state();
    state.begin(draws.len() % 2 == 1, tokens_max)?;
    let (mut ids, mut rest) = (Vec::new(), draws.iter().copied());
    let mut steps = 0;
    while steps < STEPS_MAX && !state.is_finished() && ids.last() != Some(&END) {
        if let Some(&id) = state.forced().first() {
            state.accept(id)?;
            ids.push(id);
            continue;
        }
        steps += 1;
        let draw = rest.next().unwrap_or(0);
        if draw >= OPENS {
            for id in opener(&calls.format) {
                if !one(&mut state, id, &mut ids)? {
                    break;
                }
            }
            continue;
        }
        let allowed: Vec<u32> = match state.allowed()? {
            Allowed::One(id) => vec![id],
            Allowed::Any(words) => (0..words.len() as u32 * 32)
                .filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1)
                .collect(),
        };
        assert!(!allowed.is_empty());
        one(
            &mut state,
            allowed[usize::from(draw) % allowed.len()],
            &mut ids,
        )?;
    }
    let over = state.is_finished() || ids.last() == Some(&END);
    let bytes: Vec<u8> = ids
        .iter()
        .filter(|&&id| id != END)
        .flat_map(|&id| tokenizer().token_bytes(id))
        .copied()
        .collect();
    let text = String::from_utf8_lossy(&bytes);
    let events = read(&calls.format, [&*text]);
    assert_eq!(events, read(&calls.format, pieces(&text, draws)), "{text}");
    told(&events, calls, over, &text);
    Ok(())
}

/// Says a token if it may come and stands; else what comes instead of it, if anything does.
fn one(state: &mut State, id: u32, ids: &mut Vec<u32>) -> Result<bool, StateError> {
    let may = match state.takes(id) {
        Some(may) => may,
        None => match state.allowed()? {
            Allowed::One(only) => only == id,
            Allowed::Any(words) => words
                .get(id as usize / 32)
                .is_some_and(|word| word >> (id % 32) & 1 == 1),
        },
    };
    if !may {
        return Ok(false);
    }
    let Some(stands) = state.settle(id)? else {
        assert_eq!(state.takes(id), Some(false));
        return Ok(false);
    };
    state.accept(stands)?;
    ids.push(stands);
    Ok(stands == id)
}

/// Text comes before calls of tools that there are, whose arguments are objects.
fn told(events: &[CallEvent], calls: &Calls, over: bool, text: &str) {
    let (mut begun, mut ended, mut arguments) = (0, 0, String::new());
    for event in events {
        match event {
            CallEvent::Text(_) => assert!(begun == 0 && !calls.required, "{text}"),
            CallEvent::Begin(name) => {
                assert_eq!(begun, ended, "{text}");
                assert!(calls.tools.iter().any(|tool| tool.name == *name), "{text}");
                begun += 1;
                arguments.clear();
            }
            CallEvent::Arguments(piece) => arguments.push_str(piece),
            CallEvent::End => {
                ended += 1;
                let read = parse_json(arguments.as_bytes());
                assert!(matches!(read, Ok(Value::Object(_))), "{text}");
            }
        }
    }
    if over {
        assert_eq!(begun, ended, "{text}");
        assert!(begun > 0 || !calls.required, "{text}");
    }
    assert!(begun <= 1 || calls.several, "{text}");
}

fn opener(format: &CallFormat) -> Vec<u32> {
    match format.opener() {
        Opener::Control { id, .. } => vec![*id],
        opener => tokenizer().encode(opener.text(), Special::Plain),
    }
}

fn vocabulary() -> &'static Arc<Vocabulary> {
    static VOCABULARY: OnceLock<Arc<Vocabulary>> = OnceLock::new();
    VOCABULARY.get_or_init(|| Arc::new(Vocabulary::new(tokenizer()).expect("a vocabulary")))
}

fn tokenizer() -> &'static Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        tokenizer_with(&[
            "<|end|>",
            "<|invoke|>",
            "<|name|>",
            "<|/call|>",
            "</tool_call>",
        ])
    })
}
