//! Why a template cannot be used, or not for these messages.

use std::path::PathBuf;

use crate::gguf::MetaError;

/// Why a template cannot be used, or not for these messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A metadata entry is of the wrong kind.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// There is no template of that name.
    #[error("there is no chat template {name:?}; known are {known}, or the path of a file")]
    UnknownName {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The file of a template cannot be read.
    #[error("the chat template `{}` cannot be read: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The source is too long.
    #[error("the chat template has {bytes} bytes; at most {max} are read")]
    SourceTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The source is no template.
    #[error("line {line} of the chat template: {message}")]
    Syntax {
        /// Where, from 1; 0 if not known.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Messages, tools, documents and variables are too long together.
    #[error("messages, tools and variables have {bytes} bytes; at most {max} are rendered")]
    InputTooLong {
        /// Their length as JSON.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Lists and objects of the input are nested too deeply.
    #[error("messages, tools and variables are nested deeper than {max} levels")]
    InputTooDeep {
        /// The limit.
        max: usize,
    },
    /// The template refused the messages by calling `raise_exception`. What it says is meant for whoever
    /// wrote the messages.
    #[error("the chat template refuses the messages: {message}")]
    Refused {
        /// What the template said.
        message: String,
    },
    /// The rendering cost more than it may.
    #[error("the chat template takes too much work for these messages")]
    OutOfFuel,
    /// Macros or loops of the template call each other too deeply.
    #[error("line {line} of the chat template: calls are nested too deeply")]
    TooDeep {
        /// Where, from 1; 0 if not known.
        line: usize,
    },
    /// A text, list or range that the template asks for is larger than any may be.
    #[error("line {line} of the chat template: {message}")]
    TooLarge {
        /// Where, from 1; 0 if not known.
        line: usize,
        /// What is too large.
        message: String,
    },
    /// The prompt is too long.
    #[error("the chat template makes a prompt of more than {max} bytes of these messages")]
    PromptTooLong {
        /// The limit.
        max: usize,
    },
    /// The template failed on these messages.
    #[error("line {line} of the chat template: {message}")]
    Render {
        /// Where, from 1; 0 if not known.
        line: usize,
        /// What went wrong.
        message: String,
    },
}
