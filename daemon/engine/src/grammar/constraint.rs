//! From what a caller asks for to a grammar that answers can be held to.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::calls::{self, Calls};
use super::closing::{Lead, Reserve};
use super::error::{GrammarError, StateError};
use super::guard::guarded;
use super::state::State;
use super::vocabulary::Vocabulary;
use super::{gbnf, limits, schema};
use crate::calls::Opener;

/// What an answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// JSON that a schema describes, without white space between its tokens, its properties in the schema's order.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// Text that an expression describes from its start to its end, in the syntax of Rust's `regex`, without assertions.
    Regex(String),
    /// A grammar in the dialect of Lark that `llguidance` reads, without its `%` directives for schemas and options.
    Lark(String),
    /// A grammar in llama.cpp's GBNF.
    Gbnf(String),
    /// Calls of tools, or text.
    Calls(Calls),
}

/// What a constraint becomes.
pub(super) struct Source {
    /// What the compiler is given.
    pub(super) grammar: TopLevelGrammar,
    /// What closing an answer of JSON may need.
    pub(super) reserve: Option<Reserve>,
    /// What stands before the JSON of an answer that begins with text.
    pub(super) lead: Option<Lead>,
}

impl Constraint {
    /// Checks all that does not depend on a vocabulary, as [`Grammar::compile`] does.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, tokens_max: usize) -> Result<(), GrammarError> {
        self.source(tokens_max).map(drop)
    }

    fn source(&self, tokens_max: usize) -> Result<Source, GrammarError> {
        let json = |value: &Value| {
            let (value, reserve) = schema::prepare(value, tokens_max, false)?;
            Ok(Source {
                grammar: TopLevelGrammar::from_json_schema(value),
                reserve: Some(reserve),
                lead: None,
            })
        };
        let plain = |grammar| {
            Ok(Source {
                grammar,
                reserve: None,
                lead: None,
            })
        };
        match self {
            Self::JsonSchema(value) => json(value),
            Self::JsonObject => json(&serde_json::json!({ "type": "object" })),
            Self::Regex(expression) => {
                check_source("the regular expression has bytes:", expression)?;
                plain(TopLevelGrammar::from_regex(expression))
            }
            Self::Lark(grammar) => {
                check_source("the grammar has bytes:", grammar)?;
                check_directives(grammar)?;
                plain(TopLevelGrammar::from_lark(grammar.clone()))
            }
            Self::Gbnf(grammar) => {
                check_source("the grammar has bytes:", grammar)?;
                plain(TopLevelGrammar::from_lark(gbnf::to_lark(grammar)?))
            }
            Self::Calls(calls) => calls::source(calls, tokens_max),
        }
    }

    /// What it is, for messages.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "the schema",
            Self::JsonObject => "a JSON object",
            Self::Regex(_) => "the regular expression",
            Self::Lark(_) | Self::Gbnf(_) => "the grammar",
            Self::Calls(_) => "calls of these tools",
        }
    }
}

/// A constraint that was compiled for one vocabulary. Any number of answers can follow it at once.
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    matcher: Matcher,
    /// Whether `matcher` has what was found out for a first mask, and the bounds that masks set.
    warm: bool,
    reserve: Option<Reserve>,
    lead: Option<Lead>,
    calls: Option<(Opener, bool)>,
    tokens_max: usize,
}

impl core::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Grammar {
    /// Compiles a constraint for answers of at most `tokens_max` tokens, from which strings and arrays whose schema has no
    /// bound get one ([`super::schema`]).
    ///
    /// # Errors
    /// [`GrammarError`] that says what is wrong with it and where.
    pub fn compile(
        vocabulary: &Arc<Vocabulary>,
        constraint: &Constraint,
        tokens_max: usize,
    ) -> Result<Self, GrammarError> {
        let what = constraint.name();
        let source = constraint.source(tokens_max)?;
        let parse = || {
            let parser = vocabulary.factory().create_parser(source.grammar);
            parser.map(|parser| Matcher::new(Ok(parser)))
        };
        // Of several tools one is to be named.
        let of_tools = |error: GrammarError| match constraint {
            Constraint::Calls(all) => calls::blamed(all, vocabulary, tokens_max).unwrap_or(error),
            _ => error,
        };
        let matcher = guarded(parse)
            .map_err(|error| of_tools(GrammarError::of(what, &error)))?
            .map_err(|error| of_tools(GrammarError::of(what, &error)))?;
        let mut grammar = Self {
            vocabulary: Arc::clone(vocabulary),
            matcher,
            warm: false,
            reserve: source.reserve,
            lead: source.lead,
            calls: match constraint {
                Constraint::Calls(calls) => Some((calls.format.opener().clone(), calls.required)),
                _ => None,
            },
            tokens_max,
        };
        // What cannot begin would fail at the first token, and what is over at once says nothing.
        let mut state = grammar.state();
        state
            .begin(false, tokens_max)
            .and_then(|()| state.prepare())
            .map_err(|error| GrammarError::of(what, &error.0))?;
        let needed = state.forced().len();
        // With a limit of none, nothing is to be said at all.
        if tokens_max > 0 && needed > tokens_max {
            return Err(GrammarError::LimitTooSmall {
                needed,
                limit: tokens_max,
            });
        }
        // Much of the work for the first mask is the same in every answer.
        if let Some(matcher) = state.warmed() {
            grammar.matcher = matcher;
            grammar.warm = true;
        }
        Ok(grammar)
    }

    /// The limit of tokens that it was compiled for.
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// What calls of tools begin with, if answers may have some, and whether they have to.
    pub(crate) fn calls(&self) -> Option<(&Opener, bool)> {
        let (opener, required) = self.calls.as_ref()?;
        Some((opener, *required))
    }

    /// The state of an answer that has not begun.
    #[must_use]
    pub fn state(&self) -> State {
        State::new(
            copy(&self.matcher),
            Arc::clone(self.vocabulary.tokens()),
            self.reserve,
            self.lead.clone(),
            self.warm,
        )
    }
}

/// A matcher of its own; one that failed where that fails.
pub(super) fn copy(matcher: &Matcher) -> Matcher {
    guarded(|| matcher.deep_clone())
        .unwrap_or_else(|error| Matcher::new(Err(StateError(error).into())))
}

/// Bounds what a parser by recursion is given.
fn check_source(what: &'static str, source: &str) -> Result<(), GrammarError> {
    let max = limits::SOURCE_BYTES_MAX;
    if source.len() > max {
        let count = source.len();
        return Err(GrammarError::TooLarge { what, count, max });
    }
    // Brackets in strings and classes count too, so this is strict; what is refused for it can be written shorter.
    let mut depth = 0usize;
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limits::NESTING_MAX {
            return Err(GrammarError::TooLarge {
                what: "brackets nest in levels:",
                count: depth,
                max: limits::NESTING_MAX,
            });
        }
    }
    Ok(())
}

/// Refuses what would go round the checks of schemas.
fn check_directives(grammar: &str) -> Result<(), GrammarError> {
    match ["%json", "%llguidance"]
        .into_iter()
        .find(|directive| grammar.contains(directive))
    {
        Some(directive) => Err(GrammarError::Invalid {
            what: "the grammar",
            problem: format!("`{directive}` is not supported"),
        }),
        None => Ok(()),
    }
}
