//! RWKV's vocabulary: a text is cut into the longest tokens that fit, from its start on.

use super::error::TokenizerError;
use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;

#[derive(Debug)]
pub(super) struct Greedy {
    prefixes: Prefixes,
    unknown: Option<u32>,
}

impl Greedy {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        Ok(Self {
            prefixes: Prefixes::new(vocabulary)?,
            unknown,
        })
    }

    /// Appends the tokens of a text. A byte that no token begins with becomes the unknown token, if there is one.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, tokens: &mut Vec<u32>) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (token, bytes) = match self.prefixes.longest(vocabulary, rest) {
                Some((token, bytes)) => (Some(token), bytes),
                None => (self.unknown, 1),
            };
            tokens.extend(token);
            rest = rest.get(bytes..).unwrap_or_default();
        }
    }
}
