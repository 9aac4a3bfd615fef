//! Chat templates: messages to a prompt.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Tokenizer;
use crate::gguf::{Gguf, MetaError};

/// One message of a conversation, as templates see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else a template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Further fields a template may look at: `name`, `tool_calls`, `tool_call_id`, …
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Why a template cannot be used, or not for these messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A metadata entry is of the wrong kind.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The template refused the messages by calling `raise_exception`.
    #[error("the chat template refuses the messages: {message}")]
    Refused {
        /// What the template said.
        message: String,
    },
    /// The template failed to render.
    #[error("the chat template failed: {message}")]
    Render {
        /// What went wrong.
        message: String,
    },
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    _source: String,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of those tokens, empty where there are none.
    ///
    /// # Errors
    /// [`TemplateError`] if it does not parse.
    pub fn from_source(source: &str, _bos: &str, _eos: &str) -> Result<Self, TemplateError> {
        Ok(Self {
            _source: source.to_owned(),
        })
    }

    /// The template of a file, `None` if it has none.
    ///
    /// # Errors
    /// [`TemplateError`] if there is one that cannot be used.
    pub fn from_gguf(
        gguf: &Gguf<'_>,
        _tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, TemplateError> {
        match gguf.str("tokenizer.chat_template") {
            Ok(source) => Self::from_source(source, "", "").map(Some),
            Err(MetaError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The prompt for these messages. `extra` adds variables (`tools`, `documents`, …).
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses the messages or fails on them.
    pub fn render(
        &self,
        _messages: &[ChatMessage],
        _add_generation_prompt: bool,
        _extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        Err(TemplateError::Render {
            message: "no templates yet".to_owned(),
        })
    }
}
