//! What comes back for a request: acceptance, chunks, the end, or a fault.
//!
//! For each accepted request a server sends one [`Accepted`], any number of [`Chunk`]s and then
//! exactly one [`Done`] or [`Fault`] with the request's id; after that the id is free again.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::name::{ModelName, RequestId};

/// First frame of a server on a connection, in answer to the client's hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome<'a> {
    /// Version of the protocol that the server speaks on this connection.
    pub version: u16,
    /// Name and version of the program that serves, such as `andond 0.1.0`.
    pub software: &'a str,
    /// Name of the gateway.
    pub gateway: &'a str,
    /// Most bytes in a frame that this server takes, its length prefix not counted.
    pub frame_bytes_max: u32,
    /// Most requests that may be open at once on this connection.
    pub requests_max: u16,
}

/// The request was taken and will be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Id of the request.
    pub id: RequestId,
    /// How many requests are before it; 0 when it starts at once.
    pub queue_position: u32,
}

/// A piece of the answer. The answer is the chunks' texts joined in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk<'a> {
    /// Id of the request.
    pub id: RequestId,
    /// Which attempt at answering this is, from 1. A higher one replaces everything before it.
    pub attempt: u16,
    /// Number of the chunk in its attempt, from 0 without gaps.
    pub sequence: u32,
    /// The text; always whole characters.
    pub text: &'a str,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its answer, or a stop string was reached.
    Stop,
    /// The token limit, or the end of the context, was reached.
    Length,
    /// The client cancelled it; the chunks hold what was made until then.
    Cancelled,
}

impl Finish {
    /// The word for this reason in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where an answer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// On the gateway.
    Local,
    /// Upstream.
    Cloud,
    /// On the gateway, because upstream did not answer.
    LocalFallback,
    /// Upstream, after the request waited for that to be there.
    CloudLate,
    /// On the gateway, after the request waited for upstream in vain.
    LocalFallbackLate,
}

impl Origin {
    /// Every origin.
    pub const ALL: [Self; 5] = [
        Self::Local,
        Self::Cloud,
        Self::LocalFallback,
        Self::CloudLate,
        Self::LocalFallbackLate,
    ];

    /// The word for this origin in JSON; [`Origin::is_late`] is said beside it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Cloud | Self::CloudLate => "cloud",
            Self::LocalFallback | Self::LocalFallbackLate => "local-fallback",
        }
    }

    /// Whether the request waited for upstream to be there.
    #[must_use]
    pub const fn is_late(self) -> bool {
        matches!(self, Self::CloudLate | Self::LocalFallbackLate)
    }
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that needed no computing.
    pub cached_tokens: u32,
    /// Tokens made.
    pub completion_tokens: u32,
}

/// Where a request's time went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From acceptance to the start of its work.
    pub queue_us: u64,
    /// Computing the prompt.
    pub prefill_us: u64,
    /// Making the answer's tokens after the first.
    pub decode_us: u64,
    /// From acceptance to the first token.
    pub first_token_us: u64,
}

impl Timings {
    /// Tokens per second while decoding, or `None` when fewer than two tokens were made.
    #[must_use]
    pub fn decode_tokens_per_s(&self, completion_tokens: u32) -> Option<f64> {
        let tokens = completion_tokens.checked_sub(1).filter(|&n| n > 0)?;
        if self.decode_us == 0 {
            return None;
        }
        Some(f64::from(tokens) * 1e6 / self.decode_us as f64)
    }
}

/// The answer is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Id of the request.
    pub id: RequestId,
    /// The attempt that holds.
    pub attempt: u16,
    /// How many chunks this attempt has; a client that counted fewer has lost some.
    pub chunks: u32,
    /// Why it ended.
    pub finish: Finish,
    /// The model that answered.
    pub model: ModelName,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// Where it was made.
    pub origin: Origin,
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is wrong and will be wrong again.
    InvalidRequest,
    /// The request, or the frame it came in, is larger than allowed.
    TooLarge,
    /// The protocol version is not spoken here.
    UnsupportedVersion,
    /// No model of that name is served.
    UnknownModel,
    /// No task of that name is configured.
    UnknownTask,
    /// The request needs something that this daemon or model cannot do.
    Unsupported,
    /// The prompt does not fit into the model's context.
    ContextFull,
    /// The client's id is already in use by another of its requests.
    DuplicateId,
    /// The caller may not ask this.
    Denied,
    /// The queue, or the client's share of it, is full.
    Busy,
    /// The deadline passed, or could not have been met.
    DeadlineExceeded,
    /// The client cancelled it before anything was made.
    Cancelled,
    /// The daemon is starting or stopping.
    Unavailable,
    /// The daemon failed; its journal says more.
    Internal,
    /// The model is damaged, or none that this daemon can serve.
    Rejected,
    /// There is another model of that name, or it is in use.
    Conflict,
    /// The daemon's disk has no room for it.
    NoSpace,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::InvalidRequest,
        Self::TooLarge,
        Self::UnsupportedVersion,
        Self::UnknownModel,
        Self::UnknownTask,
        Self::Unsupported,
        Self::ContextFull,
        Self::DuplicateId,
        Self::Denied,
        Self::Busy,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Unavailable,
        Self::Internal,
        Self::Rejected,
        Self::Conflict,
        Self::NoSpace,
    ];

    /// The word for this code in JSON, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::TooLarge => "too_large",
            Self::UnsupportedVersion => "unsupported_version",
            Self::UnknownModel => "unknown_model",
            Self::UnknownTask => "unknown_task",
            Self::Unsupported => "unsupported",
            Self::ContextFull => "context_full",
            Self::DuplicateId => "duplicate_id",
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Rejected => "rejected",
            Self::Conflict => "conflict",
            Self::NoSpace => "no_space",
        }
    }

    /// Whether the same request may succeed later without a change.
    #[must_use]
    pub const fn may_retry(self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable)
    }
}

/// A request, or the connection, failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault<'a> {
    /// Id of the request; `None` when the connection is at fault, which the server then closes.
    pub id: Option<RequestId>,
    /// What kind of thing went wrong.
    pub code: ErrorCode,
    /// What went wrong, for a person.
    pub message: &'a str,
    /// When trying again may help, in milliseconds from now.
    pub retry_after_ms: Option<u32>,
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends between two
/// characters. For messages of faults, labels, and for cutting an answer into chunks.
#[must_use]
pub fn shorten(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max))
        .unwrap_or_default()
}

/// The outcome of a cancel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Id of the request.
    pub id: RequestId,
    /// Whether the caller had an open request of that id.
    pub found: bool,
}

/// One model of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry<'a> {
    /// The name by which requests ask for it.
    pub name: ModelName,
    /// Its architecture, such as `llama`.
    pub architecture: &'a str,
    /// Most tokens of prompt and answer together.
    pub context_tokens_max: u32,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Whether it is loaded.
    pub loaded: bool,
    /// Whether requests that name no model get it.
    pub default: bool,
}

/// The models that are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Models<'a> {
    /// The models, the default one first.
    #[serde(borrow)]
    pub models: Vec<ModelEntry<'a>, { limits::MODELS_MAX }>,
}

#[cfg(test)]
mod tests {
    use super::{Timings, shorten};

    #[test]
    fn texts_are_cut_between_characters() {
        for (bytes_max, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (99, "aéb")] {
            assert_eq!(shorten("aéb", bytes_max), expected);
        }
    }

    #[test]
    fn a_speed_needs_two_tokens_and_some_time() {
        let timings = Timings {
            decode_us: 500_000,
            ..Timings::default()
        };
        assert_eq!(timings.decode_tokens_per_s(0), None);
        assert_eq!(timings.decode_tokens_per_s(1), None);
        assert_eq!(timings.decode_tokens_per_s(11), Some(20.0));
        assert_eq!(Timings::default().decode_tokens_per_s(11), None);
    }
}
