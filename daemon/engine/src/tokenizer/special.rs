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
use super::vocabulary::{Kind, Vocabulary};

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'t> {
    /// Text to be encoded.
    Text(&'t str),
    /// The text of a special token.
    Token(u32),
}

#[derive(Debug)]
struct Searcher {
    automaton: AhoCorasick,
    tokens: Box<[u32]>,
}

impl Searcher {
    /// `None` if there is nothing to search for.
    fn new(
        vocabulary: &Vocabulary,
        wanted: impl Fn(Kind) -> bool,
    ) -> Result<Option<Self>, TokenizerError> {
        // The number of tokens fits 32 bits.
        let tokens: Box<[u32]> = (0..vocabulary.count() as u32)
            .filter(|&id| vocabulary.kind(id).is_some_and(&wanted))
            .filter(|&id| !vocabulary.bytes(id).is_empty())
            .collect();
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            // A table of all transitions would take a kilobyte a state.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|&id| vocabulary.bytes(id)))
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
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        Ok(Self {
            all: Searcher::new(vocabulary, |kind| kind != Kind::Normal)?,
            user_defined: Searcher::new(vocabulary, |kind| kind == Kind::UserDefined)?,
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
        if let Some(searcher) = searcher {
            for found in searcher.automaton.find_iter(text) {
                let token = searcher.tokens.get(found.pattern().as_usize());
                let before = text.get(done..found.start());
                // Both are there: patterns are tokens, and whole characters match whole characters. If a
                // pattern were not UTF-8 its match might not be cut out; then it stays text.
                let (Some(&token), Some(before)) = (token, before) else {
                    continue;
                };
                if !text.is_char_boundary(found.end()) {
                    continue;
                }
                if !before.is_empty() {
                    visit(Part::Text(before));
                }
                visit(Part::Token(token));
                done = found.end();
            }
        }
        match text.get(done..) {
            Some("") | None => {}
            Some(rest) => visit(Part::Text(rest)),
        }
    }
}
