//! Finding the text of special tokens inside a text, in one pass: the leftmost first, and the longest of
//! those that start at the same place.
//!
//! Which tokens count depends on who wrote the text. User-defined tokens are one token wherever their
//! text stands; control tokens (and the unknown token) only where [`Special::Parse`] says that structure
//! is meant. So text encoded as [`Special::Plain`] can never end a turn or start a role; a rendered chat prompt, which
//! is parsed as a whole, gives no such promise for the messages in it.

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind, MatchKind};

use super::Special;
use super::error::TokenizerError;
use super::vocabulary::{Kind, SpecialText};

/// Special tokens. Vocabularies of images and sounds have up to 65,536; the time to build a searcher grows with the
/// square, and is half a second for as many as this.
const SPECIAL_COUNT_MAX: usize = 1 << 17;
/// Beginnings of special tokens, each of which takes some 60 bytes while the searchers are built. Numbered tokens share
/// theirs: there are some four for each token.
const STATES_MAX: usize = 1 << 19;

/// Different beginnings of the special tokens, the whole ones included.
fn states(special: &[SpecialText]) -> usize {
    let mut texts: Vec<&[u8]> = special.iter().map(|token| token.text.as_bytes()).collect();
    texts.sort_unstable();
    let mut previous: &[u8] = &[];
    let mut states = 0_usize;
    for text in texts {
        let shared = text
            .iter()
            .zip(previous)
            .take_while(|(one, other)| one == other);
        states += text.len() - shared.count();
        previous = text;
    }
    states
}

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'t> {
    /// Text to be encoded.
    Text(&'t str),
    /// The text of a special token.
    Token(u32),
}

/// White space beside a token that goes with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Strip {
    pub(super) before: bool,
    pub(super) after: bool,
}

#[derive(Debug)]
struct Searcher {
    automaton: AhoCorasick,
    tokens: Box<[(u32, Strip)]>,
}

impl Searcher {
    /// `None` if there is nothing to search for.
    fn new<'a>(
        special: impl Iterator<Item = &'a SpecialText> + Clone,
        strip: impl Fn(&SpecialText) -> Strip,
    ) -> Result<Option<Self>, TokenizerError> {
        let tokens: Box<[_]> = special
            .clone()
            .map(|token| (token.id, strip(token)))
            .collect();
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            // Tables take a kilobyte a state; the one of the first state is worth it.
            .dense_depth(1)
            // A table of all transitions would take a kilobyte a state.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(special.map(|token| token.text.as_bytes()))
            .map_err(|error| TokenizerError::SpecialTokens {
                message: error.to_string(),
            })?;
        Ok(Some(Self { automaton, tokens }))
    }
}

#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// Control, unknown and user-defined tokens.
    all: Option<Searcher>,
    user_defined: Option<Searcher>,
}

impl SpecialTokens {
    pub(super) fn new(
        special: &[SpecialText],
        strip: impl Fn(&SpecialText) -> Strip + Copy,
    ) -> Result<Self, TokenizerError> {
        if special.len() > SPECIAL_COUNT_MAX {
            return Err(TokenizerError::SpecialTokensCount {
                count: special.len(),
                max: SPECIAL_COUNT_MAX,
            });
        }
        let states = states(special);
        if states > STATES_MAX {
            return Err(TokenizerError::SpecialTokensSize {
                states,
                max: STATES_MAX,
            });
        }
        let user_defined = |token: &&SpecialText| token.kind == Kind::UserDefined;
        Ok(Self {
            all: Searcher::new(special.iter(), strip)?,
            user_defined: Searcher::new(special.iter().filter(user_defined), strip)?,
        })
    }

    /// Cuts a text at the special tokens in it and hands the parts over in order; no text is empty.
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        special: Special,
        mut visit: impl FnMut(Part<'t>),
    ) {
        let searcher = match special {
            Special::Parse => &self.all,
            Special::Plain => &self.user_defined,
        };
        let mut done = 0;
        let mut after = Strip::default();
        if let Some(searcher) = searcher {
            for found in searcher.automaton.find_iter(text) {
                let token = searcher.tokens.get(found.pattern().as_usize());
                let before = text.get(done..found.start());
                // Both are there: patterns are tokens, and whole characters match whole characters.
                let (Some(&(token, strip)), Some(mut before)) = (token, before) else {
                    continue;
                };
                if after.after {
                    before = before.trim_start_matches(is_space);
                }
                if strip.before {
                    before = before.trim_end_matches(is_space);
                }
                if !before.is_empty() {
                    visit(Part::Text(before));
                }
                visit(Part::Token(token));
                done = found.end();
                after = strip;
            }
        }
        let mut rest = text.get(done..).unwrap_or_default();
        if after.after {
            rest = rest.trim_start_matches(is_space);
        }
        if !rest.is_empty() {
            visit(Part::Text(rest));
        }
    }
}

/// What C calls space.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}
