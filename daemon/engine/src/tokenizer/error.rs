//! Why a file's tokenizer cannot be used.

use crate::gguf::MetaError;

/// Why a file's tokenizer cannot be used. Tokens and merges are named by their place in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A metadata entry is missing or of the wrong kind.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The kind of tokenizer is not supported.
    #[error(
        "tokenizer.ggml.model {model:?} is not supported; known are bert, gemma4, gpt2, llama, rwkv, t5"
    )]
    UnsupportedModel {
        /// The kind.
        model: String,
    },
    /// The pre-tokenizer is not known; without it, text would be cut wrongly.
    #[error(
        "tokenizer.ggml.pre {pre:?} is not known; if it cuts text like one that is, name that one with `pre-tokenizer`"
    )]
    UnknownPreTokenizer {
        /// Its name.
        pre: String,
    },
    /// The pre-tokenizer that was asked for is not known.
    #[error("there is no pre-tokenizer {pre:?}; known are {}", super::pre_tokenizers().join(", "))]
    NoSuchPreTokenizer {
        /// Its name.
        pre: String,
    },
    /// No tokens, or too many.
    #[error("tokenizer.ggml.tokens has {count} entries; 1 to {max} are read")]
    VocabularyCount {
        /// Entries.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The tokens are too long in all.
    #[error("the tokens of tokenizer.ggml.tokens are longer than {max} bytes in all")]
    VocabularyBytes {
        /// The limit.
        max: usize,
    },
    /// The types do not match the tokens.
    #[error("tokenizer.ggml.token_type has {types} entries for {tokens} tokens")]
    TokenTypeCount {
        /// Entries.
        types: usize,
        /// Tokens.
        tokens: usize,
    },
    /// A type number without a meaning.
    #[error("tokenizer.ggml.token_type: the type of token {id} does not exist")]
    TokenType {
        /// The token.
        id: usize,
    },
    /// The scores do not match the tokens.
    #[error("tokenizer.ggml.scores has {scores} entries for {tokens} tokens")]
    ScoreCount {
        /// Entries.
        scores: usize,
        /// Tokens.
        tokens: usize,
    },
    /// A score that orders nothing.
    #[error("tokenizer.ggml.scores: the score of token {id} is not a finite number")]
    Score {
        /// The token.
        id: usize,
    },
    /// A token that is too long to be looked for at every place of a text.
    #[error("tokenizer.ggml.tokens: token {id} has {bytes} bytes; up to {max} are read")]
    TokenLength {
        /// The token.
        id: u32,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The vocabulary cannot say what it does not know.
    #[error("the vocabulary has no unknown token ({key} is missing)")]
    NoUnknownToken {
        /// The metadata key that should name one.
        key: &'static str,
    },
    /// The normalization of text is broken.
    #[error("tokenizer.ggml.precompiled_charsmap {what}")]
    Charsmap {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two tokens with the same text.
    #[error("tokenizer.ggml.tokens: tokens {first} and {second} are the same")]
    DuplicateToken {
        /// The first one.
        first: u32,
        /// The second one.
        second: u32,
    },
    /// A merge that is not two texts with a space between.
    #[error(
        "tokenizer.ggml.merges: entry {index} is not two texts with a space between: {merge:?}"
    )]
    MalformedMerge {
        /// Its place.
        index: usize,
        /// The entry.
        merge: String,
    },
    /// A merge of or into a text that is no token.
    #[error(
        "tokenizer.ggml.merges: entry {index} ({merge:?}) has a part or a result that is no token"
    )]
    UnknownMerge {
        /// Its place.
        index: usize,
        /// The entry.
        merge: String,
    },
    /// A token number outside the vocabulary.
    #[error("{key} is {id}, but there are {count} tokens")]
    TokenId {
        /// The metadata key.
        key: &'static str,
        /// The number.
        id: u32,
        /// Tokens in the vocabulary.
        count: usize,
    },
    /// The file asks for a token at the start or end of prompts and does not say which.
    #[error("{wanted} is true, but {missing} is missing")]
    MissingToken {
        /// The key that asks.
        wanted: &'static str,
        /// The key that should say which.
        missing: &'static str,
    },
    /// The special tokens are too many to search for.
    #[error("{count} of the tokens are special; at most {max} are taken")]
    SpecialTokensCount {
        /// Special tokens.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The special tokens are too many and too long to search for.
    #[error("the special tokens have {states} different beginnings; at most {max} are taken")]
    SpecialTokensSize {
        /// Beginnings, the whole tokens included.
        states: usize,
        /// The limit.
        max: usize,
    },
    /// The special tokens cannot be searched for.
    #[error("the special tokens cannot be searched for: {message}")]
    SpecialTokens {
        /// What went wrong.
        message: String,
    },
}
