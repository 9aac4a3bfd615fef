//! Answers that may call tools, as a grammar: text up to what calls begin with, then calls in the model's format, whose
//! arguments are JSON of their tool's schema.
//!
//! Invariant: what [`crate::calls::CallReader`] takes for a call is one here, and text never says what calls begin with.

use std::fmt::Write as _;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::closing::{Between, Context, Exit, Lead, Reserve};
use super::constraint::{Constraint, Grammar, Source};
use super::error::GrammarError;
use super::vocabulary::Vocabulary;
use super::{arguments, gbnf, limits, schema};
use crate::calls::{CallFormat, ID_CHARACTERS, Opener, Piece, is_name};

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The schema of its arguments, an object; `None` for a tool without.
    pub parameters: Option<Value>,
}

/// What an answer may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// How calls are written.
    pub format: CallFormat,
    /// The tools, one at least.
    pub tools: Vec<Tool>,
    /// Whether it has to call one; else it may be text, or text and calls behind it.
    pub required: bool,
    /// Whether it may call several, where the format takes several.
    pub several: bool,
}

pub(super) fn source(calls: &Calls, tokens_max: usize) -> Result<Source, GrammarError> {
    let Calls { format, tools, .. } = calls;
    check(tools)?;
    let mut reserve = Reserve {
        tokens: 0,
        nests: false,
        open: false,
        between: between(format).filter(|_| calls.several),
    };
    let mut lark = String::new();
    let mut bytes = 0usize;
    for (index, tool) in tools.iter().enumerate() {
        let of_tool = |error| GrammarError::Tool {
            name: tool.name.clone(),
            error: Box::new(error),
        };
        let parameters = arguments::schema(tool.parameters.as_ref()).map_err(of_tool)?;
        let (parameters, needs) =
            schema::prepare(&parameters, tokens_max, format.is_spaced()).map_err(of_tool)?;
        reserve.tokens = reserve
            .tokens
            .max(needs.tokens.saturating_add(tool.name.len()));
        reserve.nests |= needs.nests;
        reserve.open |= needs.open;
        let parameters = parameters.to_string();
        bytes = bytes.saturating_add(parameters.len());
        if bytes > limits::TOOLS_BYTES_MAX {
            return Err(GrammarError::TooLarge {
                what: "the schemas of the tools have bytes:",
                count: bytes,
                max: limits::TOOLS_BYTES_MAX,
            });
        }
        let _ = write!(lark, "c{index}: ");
        let name = Piece::Text(tool.name.clone());
        write_pieces(std::iter::once(&name).chain(format.between()), &mut lark);
        let _ = writeln!(lark, "a{index}\na{index}: %json {parameters}");
    }
    lark.push_str("call: ");
    let names: Vec<String> = (0..tools.len()).map(|index| format!("c{index}")).collect();
    lark.push_str(&names.join(" | "));
    lark.push_str("\ncalls: ");
    write_pieces(format.begin().iter(), &mut lark);
    lark.push_str("call ");
    let next = format.next().filter(|_| calls.several);
    if let Some(next) = next {
        let _ = write!(lark, "(");
        write_pieces(next.iter(), &mut lark);
        let _ = write!(lark, "call){{0,{}}} ", limits::CALLS_MAX - 1);
    }
    write_pieces(format.end().iter(), &mut lark);
    lark.push('\n');
    write_start(format.opener(), calls.required, &mut lark);
    for pieces in [format.begin(), format.between(), format.end()]
        .into_iter()
        .chain(next)
    {
        let lengths = pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Control { .. } => 1,
            Piece::Id => ID_CHARACTERS,
        });
        reserve.tokens = reserve.tokens.saturating_add(lengths.sum());
    }
    Ok(Source {
        grammar: TopLevelGrammar::from_lark(lark),
        reserve: Some(reserve),
        lead: (!calls.required).then(|| lead(format.opener())),
    })
}

/// Which of the tools does not compile even alone, and why.
pub(super) fn blamed(
    calls: &Calls,
    vocabulary: &Arc<Vocabulary>,
    tokens_max: usize,
) -> Option<GrammarError> {
    calls.tools.iter().find_map(|tool| {
        let parameters = arguments::schema(tool.parameters.as_ref()).ok()?;
        let alone = Constraint::JsonSchema(parameters);
        let error = Grammar::compile(vocabulary, &alone, tokens_max).err()?;
        Some(GrammarError::Tool {
            name: tool.name.clone(),
            error: Box::new(error),
        })
    })
}

fn check(tools: &[Tool]) -> Result<(), GrammarError> {
    let what = "the list of tools";
    let invalid = |problem| Err(GrammarError::Invalid { what, problem });
    if tools.is_empty() {
        return invalid("it is empty".to_owned());
    }
    if tools.len() > limits::TOOLS_MAX {
        return Err(GrammarError::TooLarge {
            what: "the list of tools has:",
            count: tools.len(),
            max: limits::TOOLS_MAX,
        });
    }
    for (index, tool) in tools.iter().enumerate() {
        if !is_name(&tool.name) {
            return invalid(format!("the name of tool {index} is not one"));
        }
        if tools[..index].iter().any(|other| other.name == tool.name) {
            return invalid(format!("`{}` is in it twice", tool.name));
        }
    }
    Ok(())
}

/// What is between calls, if there may be several.
fn between(format: &CallFormat) -> Option<Between> {
    let next = format.next()?;
    let mut context = Context::default().after(format.opener().text().as_bytes(), None);
    for piece in format.begin().iter().chain(format.between()) {
        context = context.after(piece.text().as_bytes(), None);
    }
    let (next, end) = (symbols(next), symbols(format.end()));
    let same = next.iter().zip(&end).take_while(|(next, end)| next == end);
    let exit = end.get(same.count()).copied().flatten();
    Some(Between {
        levels: context.levels(),
        exit,
    })
}

/// Pieces as bytes and control tokens; `None` is a part of an id.
fn symbols(pieces: &[Piece]) -> Vec<Option<Exit>> {
    let mut symbols = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => symbols.extend(text.bytes().map(|byte| Some(Exit::Byte(byte)))),
            Piece::Control { id, .. } => symbols.push(Some(Exit::Token(*id))),
            Piece::Id => symbols.extend([None; ID_CHARACTERS]),
        }
    }
    symbols
}

/// What leads to calls. Of a control token it is the text, which nothing else says.
fn lead(opener: &Opener) -> Lead {
    Lead::new(opener.text().as_bytes(), matches!(opener, Opener::Start(_)))
}

fn write_text(text: &str, out: &mut String) {
    text.chars().for_each(|c| gbnf::write_char(c, out));
}

/// Writes pieces; texts that follow each other are one lexeme.
fn write_pieces<'a>(pieces: impl Iterator<Item = &'a Piece>, out: &mut String) {
    let mut open = false;
    for piece in pieces {
        if let Piece::Text(text) = piece {
            if !open {
                out.push('/');
            }
            open = true;
            write_text(text, out);
            continue;
        }
        if std::mem::take(&mut open) {
            out.push_str("/ ");
        }
        let _ = match piece {
            Piece::Control { id, .. } => write!(out, "<[{id}]> "),
            _ => write!(out, "/[a-zA-Z0-9]{{{ID_CHARACTERS}}}/ "),
        };
    }
    if open {
        out.push_str("/ ");
    }
}

fn write_start(opener: &Opener, required: bool, out: &mut String) {
    let mut text = String::new();
    write_text(opener.text(), &mut text);
    let open = match opener {
        Opener::Control { id, .. } => format!("<[{id}]>"),
        Opener::Text(_) | Opener::Start(_) => format!("/{text}/"),
    };
    if required {
        let _ = writeln!(out, "start: {open} calls");
        return;
    }
    // What is text never says what calls begin with.
    let never = match opener {
        Opener::Start(_) => format!("/{text}(?s:.*)/"),
        Opener::Text(_) | Opener::Control { .. } => format!("/(?s:.*){text}(?s:.*)/"),
    };
    let _ = writeln!(out, "TEXT: /(?s:.+)/ & ~{never}");
    let _ = match opener {
        Opener::Text(_) => writeln!(
            out,
            "said[lazy]: /(?s:.*){text}/\nstart: TEXT? | said calls"
        ),
        Opener::Start(_) => writeln!(out, "start: TEXT? | {open} calls"),
        Opener::Control { .. } => writeln!(out, "start: TEXT? | TEXT? {open} calls"),
    };
}
