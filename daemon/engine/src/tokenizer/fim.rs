//! The tokens of filling in the middle: a model that knows them is given what stands before and behind a gap.
//!
//! Files name them by keys, or not at all; then they are known by their text.

use super::rules::token_id;
use super::vocabulary::{Kind, Vocabulary};
use super::{Special, Tokenizer, TokenizerError};
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

/// A gap and what stands around it. None of it is searched for special tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gap<'a> {
    /// Other files that may help, in order: name and text.
    pub files: &'a [(&'a str, &'a str)],
    /// What stands before the gap.
    pub before: &'a str,
    /// What stands behind it.
    pub after: &'a str,
}

/// Names where none is known, the same that llama-server puts there.
const REPOSITORY_NAME: &str = "myproject";
const FILE_NAME: &str = "filename";

impl Tokenizer {
    /// The tokens of a prompt to fill a gap: first what prompts begin with, then other files, then what stands before
    /// and behind the gap, each behind its own token. `None` if the vocabulary lacks one of those around a gap.
    pub fn encode_gap(&self, gap: &Gap<'_>) -> Option<Vec<u32>> {
        let (before, after, fills) = (self.fim.prefix?, self.fim.suffix?, self.fim.middle?);
        let mut tokens = Vec::with_capacity((gap.before.len() + gap.after.len()) / 4 + 8);
        let put = |text: &str, first: bool, tokens: &mut Vec<u32>| {
            self.encode_into(text, Special::Plain, first, tokens);
        };
        tokens.extend(self.prefix);
        if !gap.files.is_empty() {
            if let Some(repository) = self.fim.repository {
                tokens.push(repository);
                put(&format!("{REPOSITORY_NAME}\n"), true, &mut tokens);
            }
            let mut first = true;
            for (name, text) in gap.files {
                // Where no token says that another file begins, its name and an empty line before it do.
                let end = match self.fim.separator {
                    Some(separator) => {
                        tokens.push(separator);
                        first = true;
                        ""
                    }
                    None => "\n\n",
                };
                put(&format!("{name}\n{text}{end}"), first, &mut tokens);
                first = false;
            }
            if let Some(separator) = self.fim.separator {
                tokens.push(separator);
                put(&format!("{FILE_NAME}\n"), true, &mut tokens);
            }
        }
        tokens.push(before);
        put(gap.before, true, &mut tokens);
        tokens.push(after);
        // What stands behind a gap goes on in the middle of a text, so no space is put before it.
        put(gap.after, false, &mut tokens);
        tokens.push(fills);
        Some(tokens)
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
