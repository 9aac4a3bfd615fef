//! SentencePiece's byte-pair encoding: characters are merged as long as the text of two neighbours is a token, always
//! the pair whose token has the best score, the leftmost first among equals. What is no token in the end is spelled
//! in byte tokens.
//!
//! Spaces are kept as spaces here; in files they are U+2581, which in a text means a space as well. A text is merged
//! word by word where no token goes on behind a space, else as a whole, in `n log n` time.

use super::error::TokenizerError;
use super::merge::{Merge, NO_MERGE, NO_TOKEN, Pairs, Symbols};
use super::vocabulary::{self, SPACE_MARK, Vocabulary};
use crate::gguf::Gguf;

/// Bytes in a token that is made by merging. Each merge looks at all bytes of its token, so this keeps hostile
/// vocabularies from making that long; the longest in use have about a hundred.
const TOKEN_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Spm {
    /// Lower is better.
    ranks: Box<[u32]>,
    byte_tokens: [u32; 256],
    unknown: Option<u32>,
    /// The longest token.
    token_bytes_max: usize,
    /// Whether some token has a space behind another character.
    crosses_spaces: bool,
}

/// Working memory of [`Spm::encode`].
#[derive(Debug, Default)]
pub(super) struct Scratch {
    text: String,
    symbols: Symbols<Span>,
}

/// A part of a word.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Spm {
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let scores = vocabulary::scores(gguf, vocabulary.count())?;
        let mut token_bytes_max = 0;
        let mut crosses_spaces = false;
        for id in vocabulary.spelled() {
            let bytes = vocabulary.bytes(id);
            token_bytes_max = token_bytes_max.max(bytes.len());
            let letters = bytes.iter().position(|&byte| byte != b' ');
            crosses_spaces |= letters.is_some_and(|at| bytes[at..].contains(&b' '));
            if bytes.len() > TOKEN_BYTES_MAX {
                return Err(TokenizerError::TokenLength {
                    id,
                    bytes: bytes.len(),
                    max: TOKEN_BYTES_MAX,
                });
            }
        }
        Ok(Self {
            ranks: scores.iter().map(|&score| rank(score)).collect(),
            byte_tokens: vocabulary.byte_tokens(),
            unknown,
            token_bytes_max,
            crosses_spaces,
        })
    }

    /// Appends the tokens of a text, with a space before it if `space` says so.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        space: bool,
        scratch: &mut Scratch,
        tokens: &mut Vec<u32>,
    ) {
        scratch.text.clear();
        scratch.text.extend(space.then_some(' '));
        let mut parts = text.split(SPACE_MARK);
        scratch.text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            scratch.text.push(' ');
            scratch.text.push_str(part);
        }
        let mut rest = scratch.text.as_str();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(self.word_bytes(rest));
            self.encode_word(vocabulary, word, &mut scratch.symbols, tokens);
            rest = after;
        }
    }

    /// Bytes of the first part of a text that can be merged by itself.
    fn word_bytes(&self, text: &str) -> usize {
        let mut end = text.len();
        if !self.crosses_spaces {
            let spaces = text.len() - text.trim_start_matches(' ').len();
            let word = text.get(spaces..).and_then(|word| word.find(' '));
            end = word.map_or(end, |word| spaces + word);
        }
        // Positions have 31 bits; a cut there is no worse than no answer.
        end = end.min(1 << 31);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        end
    }

    fn encode_word(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        symbols: &mut Symbols<Span>,
        tokens: &mut Vec<u32>,
    ) {
        symbols.clear();
        for (start, character) in word.char_indices() {
            let end = start + character.len_utf8();
            let token = word
                .get(start..end)
                .and_then(|character| vocabulary.find_spelled(character.as_bytes()));
            // `word_bytes` keeps positions in 32 bits.
            let span = Span {
                start: start as u32,
                end: end as u32,
            };
            symbols.push(token.unwrap_or(NO_TOKEN), span);
        }
        let words = Word {
            spm: self,
            vocabulary,
            word,
        };
        symbols.merge(&words, |token, span| {
            if token != NO_TOKEN {
                tokens.push(token);
                return;
            }
            let bytes = word.as_bytes().get(span.start as usize..span.end as usize);
            let bytes = bytes.unwrap_or_default();
            let known = |byte: &u8| self.byte_tokens[usize::from(*byte)] != NO_TOKEN;
            if bytes.iter().all(known) {
                tokens.extend(
                    bytes
                        .iter()
                        .map(|&byte| self.byte_tokens[usize::from(byte)]),
                );
            } else {
                tokens.extend(self.unknown);
            }
        });
    }
}

/// The pairs of one word.
struct Word<'a> {
    spm: &'a Spm,
    vocabulary: &'a Vocabulary,
    word: &'a str,
}

impl Pairs for Word<'_> {
    type Part = Span;

    fn merge(&self, (_, left): (u32, Span), (_, right): (u32, Span)) -> Merge {
        let span = Self::join(left, right);
        let (start, end) = (span.start as usize, span.end as usize);
        if end - start > self.spm.token_bytes_max {
            return NO_MERGE;
        }
        let bytes = self.word.as_bytes().get(start..end).unwrap_or_default();
        let token = self.vocabulary.find_spelled(bytes);
        let rank = token.and_then(|token| self.spm.ranks.get(token as usize));
        match (token, rank) {
            (Some(token), Some(&rank)) => Merge { rank, token },
            _ => NO_MERGE,
        }
    }

    fn join(left: Span, right: Span) -> Span {
        Span {
            start: left.start,
            end: right.end,
        }
    }
}

/// Numbers in the reverse order of finite scores; none of them is [`super::merge::NO_RANK`].
fn rank(score: f32) -> u32 {
    // Minus zero is zero.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_turn_the_order_of_scores_around() {
        let scores = [
            f32::MAX,
            1e9,
            1.0,
            f32::MIN_POSITIVE,
            0.0,
            -1e-30,
            -1.0,
            -1e9,
            f32::MIN,
        ];
        let ranks = scores.map(rank);
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        assert_eq!(rank(-0.0), rank(0.0));
        assert!(
            ranks
                .iter()
                .all(|&rank| rank != super::super::merge::NO_RANK)
        );
    }
}
