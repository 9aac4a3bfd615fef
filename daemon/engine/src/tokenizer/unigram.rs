//! SentencePiece's unigram vocabularies: of all ways to cut a text into tokens, the one with the best sum of scores.
//!
//! A text is normalized first, as the file says. Spaces are kept as spaces here; in files they are U+2581. What no
//! token has is the unknown token, one for a run of it.

use super::charsmap::Charsmap;
use super::error::TokenizerError;
use super::prefixes::Prefixes;
use super::vocabulary::{self, Kind, SPACE_MARK, Vocabulary};
use crate::gguf::Gguf;

/// What the unknown token costs beyond the worst score there is.
const UNKNOWN_PENALTY: f32 = 10.0;
/// From this many bytes on, a text is cut at the next word, so that memory stays within bounds; and at
/// [`TEXT_BYTES_MAX`] anywhere.
const TEXT_BYTES: usize = 1 << 16;
const TEXT_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Unigram {
    prefixes: Prefixes,
    scores: Box<[f32]>,
    unknown: u32,
    unknown_score: f64,
    charsmap: Option<Charsmap>,
    /// A text starts with a space.
    adds_space: bool,
    /// Spaces at both ends go, and several in a row become one.
    merges_spaces: bool,
}

/// Working memory of [`Unigram::encode`].
#[derive(Debug, Default)]
pub(super) struct Scratch {
    text: String,
    /// The best way to each place.
    best: Vec<Best>,
}

#[derive(Debug, Clone, Copy)]
struct Best {
    score: f64,
    token: u32,
    /// Where that token starts.
    start: u32,
}

impl Unigram {
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        vocabulary: &Vocabulary,
        unknown: u32,
    ) -> Result<Self, TokenizerError> {
        let mut scores = vocabulary::scores(gguf, vocabulary.count())?;
        let mut worst = f32::MAX;
        for (id, score) in (0..).zip(scores.iter_mut()) {
            match vocabulary.kind(id) {
                Some(Kind::Normal) => worst = worst.min(*score),
                // What someone defined is taken before anything else.
                Some(Kind::UserDefined) => *score = 0.0,
                _ => {}
            }
        }
        Ok(Self {
            prefixes: Prefixes::new(vocabulary)?,
            scores,
            unknown,
            unknown_score: f64::from(worst - UNKNOWN_PENALTY),
            charsmap: Charsmap::from_gguf(gguf)?,
            adds_space: gguf.bool_or("tokenizer.ggml.add_space_prefix", false)?,
            merges_spaces: gguf.bool_or("tokenizer.ggml.remove_extra_whitespaces", false)?,
        })
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        scratch: &mut Scratch,
        tokens: &mut Vec<u32>,
    ) {
        scratch.text.clear();
        let mut space_added = false;
        let mut in_word = false;
        let mut rest = text;
        let mut buffer = [0; 4];
        while let Some(first) = rest.chars().next() {
            let (unit, bytes) = match self.charsmap.as_ref().and_then(|map| map.replace(rest)) {
                Some(replaced) => replaced,
                None => (&*first.encode_utf8(&mut buffer), first.len_utf8()),
            };
            for character in unit.chars() {
                let length = scratch.text.len();
                if length >= TEXT_BYTES && (!in_word || length >= TEXT_BYTES_MAX) {
                    self.cut(vocabulary, scratch, tokens);
                }
                if character == ' ' {
                    in_word = false;
                    if !self.merges_spaces {
                        scratch.text.push(' ');
                    }
                    continue;
                }
                if !in_word {
                    in_word = true;
                    if self.adds_space && !space_added || self.merges_spaces {
                        scratch.text.push(' ');
                        space_added = true;
                    }
                }
                let is_mark = character == SPACE_MARK;
                scratch.text.push(if is_mark { ' ' } else { character });
            }
            rest = rest.get(bytes..).unwrap_or_default();
        }
        self.cut(vocabulary, scratch, tokens);
    }

    /// Cuts the normalized text into tokens and empties it.
    fn cut(&self, vocabulary: &Vocabulary, scratch: &mut Scratch, tokens: &mut Vec<u32>) {
        let text = scratch.text.as_bytes();
        if text.is_empty() {
            return;
        }
        let best = &mut scratch.best;
        best.clear();
        let nothing = Best {
            score: f64::MIN,
            token: self.unknown,
            start: 0,
        };
        best.resize(text.len() + 1, nothing);
        best[0].score = 0.0;
        for (at, character) in scratch.text.char_indices() {
            let score = best[at].score;
            // TEXT_BYTES_MAX and a character fit 32 bits.
            let start = at as u32;
            let mut offer = |end: usize, token: u32, more: f64| {
                let score = score + more;
                if let Some(best) = best.get_mut(end)
                    && score > best.score
                {
                    *best = Best {
                        score,
                        token,
                        start,
                    };
                }
            };
            let mut whole = false;
            let rest = text.get(at..).unwrap_or_default();
            self.prefixes.visit(vocabulary, rest, |token, bytes| {
                whole |= bytes == character.len_utf8();
                let score = self.scores.get(token as usize).copied();
                offer(at + bytes, token, f64::from(score.unwrap_or_default()));
            });
            if !whole {
                offer(at + character.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let before = tokens.len();
        let mut end = text.len();
        let mut after_unknown = false;
        while end > 0 {
            let Best { token, start, .. } = best[end];
            let is_unknown = token == self.unknown;
            if !(is_unknown && after_unknown) {
                tokens.push(token);
            }
            after_unknown = is_unknown;
            // A token is never empty.
            end = (start as usize).min(end - 1);
        }
        if let Some(new) = tokens.get_mut(before..) {
            new.reverse();
        }
        scratch.text.clear();
    }
}
