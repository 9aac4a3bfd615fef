//! Text to tokens and back, as a model's file defines it.
//!
//! A text is cut at special tokens (`special`), what is between them into pieces (`pretokenize`), and
//! each piece is encoded by itself (`bpe`). Text is taken as it comes: no Unicode normalization, since files do
//! not say whether their model had any. Encoding takes time linear in the text, and `n log n` in its
//! longest piece.

mod bpe;
mod byte_level;
mod chat;
mod end;
mod error;
mod index;
mod pretokenize;
mod special;
mod stream;
mod vocabulary;

pub use chat::{ChatMessage, ChatTemplate, TemplateError};
pub use error::TokenizerError;
pub use stream::StreamDecoder;

use crate::gguf::{Gguf, MetaError};
use bpe::{Bpe, Scratch};
use end::EndTokens;
use pretokenize::PreTokenizer;
use special::{Part, SpecialTokens};
use vocabulary::{Kind, Vocabulary};

/// Whether the text of control tokens (`<|im_end|>` and the like) inside a text becomes those tokens.
/// User-defined tokens are found either way: they are text, only always in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// It does: for prompts that a chat template made.
    Parse,
    /// It stays text: for what users wrote.
    Plain,
}

/// How text that has no special tokens in it is encoded.
#[derive(Debug)]
enum Encoder {
    /// `gpt2`: pieces by a pre-tokenizer, bytes merged by rank.
    ByteLevel { pre: PreTokenizer, bpe: Bpe },
}

/// A vocabulary and the rules that turn text into its tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    encoder: Encoder,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    /// The token that prompts start with.
    prefix: Option<u32>,
    /// The token that prompts end with.
    suffix: Option<u32>,
    ends: EndTokens,
    warnings: Vec<String>,
}

/// The names of pre-tokenizers (`tokenizer.ggml.pre`) that are known, sorted.
pub fn pre_tokenizers() -> Vec<&'static str> {
    PreTokenizer::names().collect()
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata of a file describes.
    ///
    /// # Errors
    /// [`TokenizerError`] if the metadata describes none, a broken one, or one that is not supported.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, TokenizerError> {
        Self::from_gguf_with(gguf, None)
    }

    /// [`Tokenizer::from_gguf`] with another pre-tokenizer than the file names, by its name. Vocabularies of a
    /// kind that has no pre-tokenizer are not changed by it.
    ///
    /// # Errors
    /// [`TokenizerError`] as there, and if the name is not known.
    pub fn from_gguf_with(
        gguf: &Gguf<'_>,
        pre_tokenizer: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let asked = match pre_tokenizer {
            None => None,
            Some(name) => Some(PreTokenizer::from_name(name).ok_or_else(|| {
                TokenizerError::NoSuchPreTokenizer {
                    pre: name.to_owned(),
                }
            })?),
        };
        let model = gguf.str("tokenizer.ggml.model")?;
        match model {
            "gpt2" => Self::byte_level(gguf, asked),
            _ => Err(TokenizerError::UnsupportedModel {
                model: model.to_owned(),
            }),
        }
    }

    fn byte_level(gguf: &Gguf<'_>, asked: Option<PreTokenizer>) -> Result<Self, TokenizerError> {
        let mut warnings = Vec::new();
        let pre = match asked {
            Some(pre) => pre,
            None => file_pre_tokenizer(gguf, &mut warnings)?,
        };
        // Files are seen that call an end token normal text; then a prompt could not end a turn.
        let vocabulary = Vocabulary::byte_level(gguf, end::is_end_text)?;
        let bpe = Bpe::from_gguf(gguf, &vocabulary, pre.ignores_merges())?;
        let special = SpecialTokens::new(&vocabulary)?;
        let count = vocabulary.count();
        let bos = token_id(gguf, BOS, count)?;
        let eos = token_id(gguf, EOS, count)?;
        let prefix = added(
            gguf,
            "tokenizer.ggml.add_bos_token",
            pre.adds_bos(),
            BOS,
            bos,
        )?;
        let suffix = added(gguf, "tokenizer.ggml.add_eos_token", false, EOS, eos)?;
        let named = [
            eos,
            token_id(gguf, "tokenizer.ggml.eot_token_id", count)?,
            token_id(gguf, "tokenizer.ggml.eom_token_id", count)?,
        ];
        let ends = EndTokens::new(&vocabulary, &named);
        Ok(Self {
            vocabulary,
            encoder: Encoder::ByteLevel { pre, bpe },
            special,
            bos,
            eos,
            prefix,
            suffix,
            ends,
            warnings,
        })
    }

    /// The tokens of a text, without those that prompts have at start and end.
    ///
    /// Bytes that the vocabulary has no token for are left out; most vocabularies have all 256.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 4);
        self.encode_into(text, special, &mut tokens);
        tokens
    }

    /// The tokens of a prompt: those of the text, and at start and end those that the file asks for. One
    /// that a template has already written there is not repeated.
    pub fn encode_prompt(&self, text: &str, special: Special) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 4 + 2);
        tokens.extend(self.prefix);
        self.encode_into(text, special, &mut tokens);
        if self.prefix.is_some() && tokens.get(1).copied() == self.prefix {
            tokens.remove(0);
        }
        if self.suffix.is_some() && tokens.last().copied() != self.suffix {
            tokens.extend(self.suffix);
        }
        tokens
    }

    fn encode_into(&self, text: &str, special: Special, tokens: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.special.split(text, special, |part| match part {
            Part::Token(token) => tokens.push(token),
            Part::Text(text) => match &self.encoder {
                Encoder::ByteLevel { pre, bpe } => pre.split(text, |piece| {
                    bpe.encode(&self.vocabulary, piece, &mut scratch, tokens);
                }),
            },
        });
    }

    /// What the file did not say and had to be assumed, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary_count(&self) -> usize {
        self.vocabulary.count()
    }

    /// The token at the beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token at the end of a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether this token ends an answer: end of sequence, of turn, of message, as the file names them
    /// or as their text is known from models in use.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.ends.contains(id)
    }

    /// The bytes a token stands for: of control and user-defined tokens their text. Empty for an id
    /// outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Whether a token is a control token, which is not meant to be shown.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == Some(Kind::Control)
    }

    /// The text of a sequence of tokens, control tokens included; invalid bytes become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect();
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// The token whose bytes are exactly this text; a special token before a normal one.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let special = |id| self.vocabulary.kind(id) != Some(Kind::Normal);
        self.vocabulary
            .find(text.as_bytes(), special)
            .or_else(|| self.vocabulary.find(text.as_bytes(), |_| true))
    }
}

/// The pre-tokenizer that the file names. Files from before there were names mean the default one, or not: the
/// first to write names found that most older files were made for another.
fn file_pre_tokenizer(
    gguf: &Gguf<'_>,
    warnings: &mut Vec<String>,
) -> Result<PreTokenizer, TokenizerError> {
    let pre = match gguf.str("tokenizer.ggml.pre") {
        Ok(pre) => pre,
        Err(MetaError::Missing { .. }) => {
            warnings.push(
                "tokenizer.ggml.pre is missing, so text is cut as \"default\" does; if answers are poor, name the model's own with `pre-tokenizer`"
                    .to_owned(),
            );
            "default"
        }
        Err(error) => return Err(error.into()),
    };
    PreTokenizer::from_name(pre).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
        pre: pre.to_owned(),
    })
}

const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";

/// The token that a key names, if the file has the key.
fn token_id(
    gguf: &Gguf<'_>,
    key: &'static str,
    count: usize,
) -> Result<Option<u32>, TokenizerError> {
    let id = match gguf.u32(key) {
        Ok(id) => id,
        Err(MetaError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if (id as usize) < count {
        Ok(Some(id))
    } else {
        Err(TokenizerError::TokenId { key, id, count })
    }
}

/// The token to add, if the key `wanted` asks for it.
fn added(
    gguf: &Gguf<'_>,
    wanted: &'static str,
    default: bool,
    key: &'static str,
    token: Option<u32>,
) -> Result<Option<u32>, TokenizerError> {
    if !gguf.bool_or(wanted, default)? {
        return Ok(None);
    }
    if token.is_none() {
        return Err(TokenizerError::MissingToken {
            wanted,
            missing: key,
        });
    }
    Ok(token)
}
