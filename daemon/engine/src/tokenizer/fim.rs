//! The tokens of filling in the middle: a model that knows them is given what stands before and behind a gap.
//!
//! Files name them by keys, or not at all; then they are known by their text.

use super::vocabulary::{Kind, Vocabulary};
use super::{TokenizerError, token_id};
use crate::gguf::Gguf;

/// The tokens of filling in the middle, those that the vocabulary has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FimTokens {
    /// What stands before the gap follows.
    pub prefix: Option<u32>,
    /// What stands behind it follows.
    pub suffix: Option<u32>,
    /// What fills it follows.
    pub middle: Option<u32>,
    /// Fills up an example; ends an answer.
    pub pad: Option<u32>,
    /// The name of a repository follows.
    pub repository: Option<u32>,
    /// The name of another file follows.
    pub separator: Option<u32>,
}

const PREFIX: [&str; 8] = [
    "<PRE>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<|code_prefix|>",
    "<|fim_prefix|>",
    "<|prefix|>",
    "<｜fim▁begin｜>",
    "▁<PRE>",
];
const SUFFIX: [&str; 8] = [
    "<SUF>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<|code_suffix|>",
    "<|fim_suffix|>",
    "<|suffix|>",
    "<｜fim▁hole｜>",
    "▁<SUF>",
];
const MIDDLE: [&str; 8] = [
    "<MID>",
    "<fim-middle>",
    "<fim_middle>",
    "<|code_middle|>",
    "<|fim_middle|>",
    "<|middle|>",
    "<｜fim▁end｜>",
    "▁<MID>",
];
const PAD: [&str; 4] = ["<PAD>", "<fim-pad>", "<fim_pad>", "<|fim_pad|>"];
const REPOSITORY: [&str; 5] = [
    "<REPO>",
    "<fim-repo>",
    "<reponame>",
    "<|fim_repo|>",
    "<|repo_name|>",
];
const SEPARATOR: [&str; 1] = ["<|file_sep|>"];

/// Whether a text is that of a token around a gap, which no other text should become.
pub(super) fn is_gap_text(text: &str) -> bool {
    // Nearly no token of a vocabulary begins like this.
    (text.starts_with('<') || text.starts_with("▁<"))
        && [PREFIX, SUFFIX, MIDDLE]
            .iter()
            .any(|texts| texts.binary_search(&text).is_ok())
}

impl FimTokens {
    /// Those that the file names, else those of known text. Of what is not around a gap, text says little by itself.
    pub(super) fn new(gguf: &Gguf<'_>, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        let count = vocabulary.count();
        let known = |texts: &[&str]| {
            texts.iter().find_map(|text| {
                vocabulary.find(text.as_bytes(), |id| {
                    vocabulary.kind(id) == Some(Kind::Control)
                })
            })
        };
        let token = |keys: [&'static str; 2], texts: &[&str]| {
            for key in keys {
                if let Some(id) = token_id(gguf, key, count, None)? {
                    return Ok(Some(id));
                }
            }
            Ok::<_, TokenizerError>(known(texts))
        };
        let around = Self {
            prefix: token(
                [
                    "tokenizer.ggml.fim_pre_token_id",
                    "tokenizer.ggml.prefix_token_id",
                ],
                &PREFIX,
            )?,
            suffix: token(
                [
                    "tokenizer.ggml.fim_suf_token_id",
                    "tokenizer.ggml.suffix_token_id",
                ],
                &SUFFIX,
            )?,
            middle: token(
                [
                    "tokenizer.ggml.fim_mid_token_id",
                    "tokenizer.ggml.middle_token_id",
                ],
                &MIDDLE,
            )?,
            ..Self::default()
        };
        let fills = around.prefix.is_some() && around.suffix.is_some();
        let other = |key, texts: &[&str]| {
            let named = token_id(gguf, key, count, None)?;
            Ok::<_, TokenizerError>(named.or_else(|| known(texts).filter(|_| fills)))
        };
        Ok(Self {
            pad: other("tokenizer.ggml.fim_pad_token_id", &PAD)?,
            repository: other("tokenizer.ggml.fim_rep_token_id", &REPOSITORY)?,
            separator: other("tokenizer.ggml.fim_sep_token_id", &SEPARATOR)?,
            ..around
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_sorted() {
        assert!(
            [PREFIX, SUFFIX, MIDDLE]
                .iter()
                .all(|texts| texts.is_sorted())
        );
        assert!(is_gap_text("▁<PRE>") && is_gap_text("<fim_middle>") && !is_gap_text("<PAD>"));
    }
}
