//! WordPiece, the vocabulary of BERT and of the encoders made from it: a text becomes words, each punctuation mark and
//! each Chinese character a word of its own, without controls and, if the file says so, without accents and capitals.
//! A word is cut into the longest tokens that fit, from its start on; one that cannot be cut is the unknown token.
//!
//! Files write a space mark before the tokens that start a word, and leave out the `##` of those that do not.

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::char::decompose_canonical;

use super::error::TokenizerError;
use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;
use crate::gguf::Gguf;

#[derive(Debug)]
pub(super) struct WordPiece {
    prefixes: Prefixes,
    unknown: u32,
    lowercase: bool,
    strip_accents: bool,
}

impl WordPiece {
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        vocabulary: &Vocabulary,
        unknown: u32,
    ) -> Result<Self, TokenizerError> {
        let lowercase = gguf.bool_or("tokenizer.ggml.normalizer.lowercase", true)?;
        Ok(Self {
            prefixes: Prefixes::new(vocabulary)?,
            unknown,
            lowercase,
            strip_accents: gguf.bool_or("tokenizer.ggml.normalizer.strip_accents", lowercase)?,
        })
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        word: &mut String,
        tokens: &mut Vec<u32>,
    ) {
        word.clear();
        for character in text.chars() {
            if self.strip_accents {
                decompose_canonical(character, |part| {
                    self.push(vocabulary, part, word, tokens);
                });
            } else {
                self.push(vocabulary, character, word, tokens);
            }
        }
        self.end_word(vocabulary, word, tokens);
    }

    fn push(
        &self,
        vocabulary: &Vocabulary,
        character: char,
        word: &mut String,
        tokens: &mut Vec<u32>,
    ) {
        if character.is_whitespace() {
            self.end_word(vocabulary, word, tokens);
            return;
        }
        let category = get_general_category(character);
        let dropped = match category {
            GeneralCategory::Control | GeneralCategory::Format | GeneralCategory::PrivateUse => {
                true
            }
            GeneralCategory::NonspacingMark => self.strip_accents,
            _ => character == '\u{fffd}',
        };
        if dropped {
            return;
        }
        let alone =
            is_punctuation(category) || character.is_ascii_punctuation() || is_chinese(character);
        if alone {
            self.end_word(vocabulary, word, tokens);
        }
        if self.lowercase {
            word.extend(character.to_lowercase());
        } else {
            word.push(character);
        }
        if alone {
            self.end_word(vocabulary, word, tokens);
        }
    }

    /// Cuts the word into tokens, if there is one.
    fn end_word(&self, vocabulary: &Vocabulary, word: &mut String, tokens: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        word.insert(0, ' ');
        let before = tokens.len();
        let mut rest = word.as_bytes();
        while !rest.is_empty() {
            let longest = self.prefixes.longest(vocabulary, rest);
            let after = longest.and_then(|(_, bytes)| rest.get(bytes..));
            let (Some((token, _)), Some(after)) = (longest, after) else {
                tokens.truncate(before);
                tokens.push(self.unknown);
                break;
            };
            tokens.push(token);
            rest = after;
        }
        word.clear();
    }
}

fn is_punctuation(category: GeneralCategory) -> bool {
    matches!(
        category,
        GeneralCategory::ConnectorPunctuation
            | GeneralCategory::DashPunctuation
            | GeneralCategory::OpenPunctuation
            | GeneralCategory::ClosePunctuation
            | GeneralCategory::InitialPunctuation
            | GeneralCategory::FinalPunctuation
            | GeneralCategory::OtherPunctuation
    )
}

/// The blocks that BERT takes for Chinese; the gap at U+2B820 is that of the implementation in use.
fn is_chinese(character: char) -> bool {
    matches!(
        character,
        '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}'
            | '\u{2b740}'..='\u{2b81f}'
            | '\u{2b920}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}'
            | '\u{2f800}'..='\u{2fa1f}'
    )
}
