//! What a file says of its special tokens beside their texts, and what holds where it does not say: which ones stand
//! around a prompt, and which take the white space beside them.
//!
//! Invariant: a number that comes out of here is that of a token.

use super::TokenizerError;
use super::special::Strip;
use super::vocabulary::{SpecialText, Vocabulary};
use crate::gguf::{Gguf, MetaError};

const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
pub(super) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
// The key is written like this.
const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";

/// What holds for a kind of vocabulary where its file does not say.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) separator: Option<u32>,
    pub(super) adds_bos: bool,
    /// Prompts start with the beginning-of-sequence token whatever the file says: some files of such models deny it.
    pub(super) needs_bos: bool,
    pub(super) adds_eos: bool,
    /// Prompts end with the separator whatever the file says: `tokenizer.ggml.add_sep_token` is about a second one
    /// between the texts of a pair, and files of models whose one text ends with the separator have it false.
    pub(super) needs_separator: bool,
    pub(super) reads_space: bool,
}

/// The tokens around a sequence.
pub(super) struct Ends {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// The token that prompts start with.
    pub(super) prefix: Option<u32>,
    /// The token that prompts end with.
    pub(super) suffix: Option<u32>,
}

impl Defaults {
    /// The tokens around a sequence, as the file says or as is usual for its kind.
    pub(super) fn ends(&self, gguf: &Gguf<'_>, count: usize) -> Result<Ends, TokenizerError> {
        let bos = token_id(gguf, BOS, count, self.bos)?;
        let eos = token_id(gguf, EOS, count, self.eos)?;
        let prefix = match self.needs_bos {
            true => bos,
            false => added(gguf, ADD_BOS, self.adds_bos, BOS, bos)?,
        };
        // Where a separator ends prompts, an end of sequence does not.
        let suffix = match self.needs_separator {
            true => token_id(gguf, SEPARATOR, count, self.separator)?,
            false => added(gguf, ADD_EOS, self.adds_eos, EOS, eos)?,
        };
        Ok(Ends {
            bos,
            eos,
            prefix,
            suffix,
        })
    }
}

/// Which special tokens take the white space beside them. Files do not say; it is known of models by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StripRule {
    None,
    /// What is masked was a word with its space.
    BeforeMask(&'static str),
    /// Roles and turns end in a line end that is not text.
    AfterTurns,
}

impl StripRule {
    pub(super) fn of(gguf: &Gguf<'_>) -> Result<Self, TokenizerError> {
        let pre = gguf.str_or("tokenizer.ggml.pre", "")?;
        let architecture = gguf.str_or("general.architecture", "")?;
        let name = gguf.str_or("general.name", "")?.to_ascii_lowercase();
        let any = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
        Ok(
            if any(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code"])
                || any(architecture, &["nomic-bert-moe", "jina-bert-v3"])
            {
                Self::BeforeMask("<mask>")
            } else if any(&name, &["phi-3", "phi3"]) {
                Self::AfterTurns
            } else if any(&name, &["modern-bert"]) {
                Self::BeforeMask("[MASK]")
            } else {
                Self::None
            },
        )
    }

    pub(super) fn strip(self, token: &SpecialText) -> Strip {
        Strip {
            before: matches!(self, Self::BeforeMask(mask) if *token.text == *mask),
            after: self == Self::AfterTurns
                && !matches!(&*token.text, "<unk>" | "<s>" | "<|endoftext|>"),
        }
    }
}

/// The token that a key names; if the file does not have the key, the default, if there is such a token.
pub(super) fn token_id(
    gguf: &Gguf<'_>,
    key: &'static str,
    count: usize,
    default: Option<u32>,
) -> Result<Option<u32>, TokenizerError> {
    let id = match gguf.u32(key) {
        Ok(id) => id,
        Err(MetaError::Missing { .. }) => {
            return Ok(default.filter(|&id| (id as usize) < count));
        }
        Err(error) => return Err(error.into()),
    };
    if (id as usize) < count {
        Ok(Some(id))
    } else {
        Err(TokenizerError::TokenId { key, id, count })
    }
}

/// The unknown token, which a vocabulary of this kind needs.
pub(super) fn unknown(
    gguf: &Gguf<'_>,
    vocabulary: &Vocabulary,
    default: u32,
) -> Result<u32, TokenizerError> {
    token_id(gguf, UNKNOWN, vocabulary.count(), Some(default))?
        .ok_or(TokenizerError::NoUnknownToken { key: UNKNOWN })
}

/// The token to add, if the key `wanted` asks for it.
fn added(
    gguf: &Gguf<'_>,
    wanted: &'static str,
    default: bool,
    key: &'static str,
    token: Option<u32>,
) -> Result<Option<u32>, TokenizerError> {
    let asked = match gguf.bool(wanted) {
        Ok(asked) => Some(asked),
        Err(MetaError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if !asked.unwrap_or(default) {
        return Ok(None);
    }
    // What only the kind of vocabulary asks for may be missing.
    if token.is_none() && asked.is_some() {
        return Err(TokenizerError::MissingToken {
            wanted,
            missing: key,
        });
    }
    Ok(token)
}
