//! What can go wrong with one request, in the daemon's own words.
//!
//! Front ends translate a [`Fault`] into what their protocol calls it (an HTTP status, a wire error
//! code, an MQTT event). A fault never carries prompt text: messages may reach logs.

use std::fmt;
use std::time::Duration;

/// Kinds of failure a client can be told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultCode {
    /// The request breaks a rule of the protocol or a limit on one of its values.
    InvalidRequest,
    /// The request is larger than the daemon takes.
    TooLarge,
    /// The named model is not served here.
    UnknownModel,
    /// The named task is not configured.
    UnknownTask,
    /// The model cannot do what is asked.
    Unsupported,
    /// Prompt and answer do not fit the model's context.
    ContextFull,
    /// The caller may not ask this.
    Denied,
    /// Every place is taken; trying again later may help.
    Busy,
    /// The client has a request of this id in flight.
    DuplicateId,
    /// The deadline passed before the answer was complete.
    DeadlineExceeded,
    /// The client, or the loss of the client, ended the request.
    Cancelled,
    /// The client did not read its answer in time.
    SlowReader,
    /// The daemon is stopping, or what it keeps cannot be read or written now.
    Unavailable,
    /// The model is not there now: it is loaded, unloaded or broken, or there is no room for it. The daemon goes on, and the
    /// same request may be answered later.
    ModelUnavailable,
    /// Who was to answer upstream cannot be had, or has failed, and nobody here may answer in its place.
    UpstreamUnavailable,
    /// A fault of the daemon or of the model file.
    Internal,
}

impl FaultCode {
    /// Every code, in the order of declaration.
    pub const ALL: [FaultCode; 16] = [
        FaultCode::InvalidRequest,
        FaultCode::TooLarge,
        FaultCode::UnknownModel,
        FaultCode::UnknownTask,
        FaultCode::Unsupported,
        FaultCode::ContextFull,
        FaultCode::Denied,
        FaultCode::Busy,
        FaultCode::DuplicateId,
        FaultCode::DeadlineExceeded,
        FaultCode::Cancelled,
        FaultCode::SlowReader,
        FaultCode::Unavailable,
        FaultCode::ModelUnavailable,
        FaultCode::UpstreamUnavailable,
        FaultCode::Internal,
    ];

    /// The code's stable name, as seen in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            FaultCode::InvalidRequest => "invalid_request",
            FaultCode::TooLarge => "too_large",
            FaultCode::UnknownModel => "unknown_model",
            FaultCode::UnknownTask => "unknown_task",
            FaultCode::Unsupported => "unsupported",
            FaultCode::ContextFull => "context_full",
            FaultCode::Denied => "not_allowed",
            FaultCode::Busy => "busy",
            FaultCode::DuplicateId => "duplicate_id",
            FaultCode::DeadlineExceeded => "deadline_exceeded",
            FaultCode::Cancelled => "cancelled",
            FaultCode::SlowReader => "slow_reader",
            FaultCode::Unavailable => "unavailable",
            FaultCode::ModelUnavailable => "model_unavailable",
            FaultCode::UpstreamUnavailable => "upstream_unavailable",
            FaultCode::Internal => "internal",
        }
    }
}

/// Why a request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind of failure.
    pub code: FaultCode,
    /// One sentence for the person behind the client. No prompt text.
    pub message: String,
    /// The request's field that is at fault, where one is.
    pub param: Option<&'static str>,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// A fault without field and retry hint.
    pub fn new(code: FaultCode, message: impl Into<String>) -> Fault {
        Fault {
            code,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    /// An [`FaultCode::InvalidRequest`] in the given field.
    pub fn invalid(param: &'static str, message: impl Into<String>) -> Fault {
        Fault {
            param: Some(param),
            ..Fault::new(FaultCode::InvalidRequest, message)
        }
    }

    /// The same fault with a retry hint.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Fault {
        Fault {
            retry_after: Some(after),
            ..self
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.param {
            Some(param) => write!(f, "{} ({param}): {}", self.code.name(), self.message),
            None => write!(f, "{}: {}", self.code.name(), self.message),
        }
    }
}

impl std::error::Error for Fault {}
