//! Why a file's tokenizer cannot be used.

use crate::gguf::MetaError;

/// Why a file's tokenizer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A metadata entry is missing or of the wrong kind.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The kind of tokenizer (`tokenizer.ggml.model`) is not supported.
    #[error("tokenizer.ggml.model {model:?} is not supported")]
    UnsupportedModel {
        /// The kind.
        model: String,
    },
}
