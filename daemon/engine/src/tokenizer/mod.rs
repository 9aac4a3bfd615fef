//! Text to tokens and back, as a model's file defines it.

mod chat;
mod error;
mod stream;

pub use chat::{ChatMessage, ChatTemplate, TemplateError};
pub use error::TokenizerError;
pub use stream::StreamDecoder;

use crate::gguf::Gguf;

/// Whether the text of control tokens (`<|im_end|>` and the like) inside a text becomes those tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// It does: for prompts that a chat template made.
    Parse,
    /// It stays text: for what users wrote.
    Plain,
}

/// A vocabulary and the rules that turn text into its tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata of a file describes.
    ///
    /// # Errors
    /// [`TokenizerError`] if the metadata describes none, or one that is not supported.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, TokenizerError> {
        let model = gguf.str("tokenizer.ggml.model")?;
        Err(TokenizerError::UnsupportedModel {
            model: model.to_owned(),
        })
    }

    /// The tokens of a text, without any at its start or end that the model's prompts have.
    pub fn encode(&self, _text: &str, _special: Special) -> Vec<u32> {
        Vec::new()
    }

    /// The tokens of a prompt: those of the text, and at start and end those that the file asks for.
    pub fn encode_prompt(&self, text: &str, special: Special) -> Vec<u32> {
        self.encode(text, special)
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary_count(&self) -> usize {
        0
    }

    /// The token at the beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token at the end of a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether this token ends an answer: end of sequence, of turn, of message.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.eos == Some(id)
    }

    /// The bytes a token stands for; empty for an id outside the vocabulary.
    pub fn token_bytes(&self, _id: u32) -> &[u8] {
        &[]
    }

    /// Whether a token is a control token, which is not meant to be shown.
    pub fn is_control(&self, _id: u32) -> bool {
        false
    }

    /// The text of a sequence of tokens; invalid bytes become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The token whose bytes are exactly this text.
    pub fn id_of(&self, _text: &str) -> Option<u32> {
        None
    }
}
