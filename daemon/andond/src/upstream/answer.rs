//! What an upstream answers, piece by piece, or why it does not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use andon_policy::budget::Spend;
use tokio::sync::mpsc;

use crate::fault::{Fault, FaultCode};
use crate::worker::Finish;

/// A call of a tool that an answer makes. The tool is one of the question's, and the arguments are JSON of its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The upstream's name of it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// Tokens that an upstream says it has spent; counted here where it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer, those that reasoning took among them.
    pub completion_tokens: u32,
    /// Whether the upstream said so. If not, both are estimates that rather are too large.
    pub is_exact: bool,
}

/// An answer's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens spent on it.
    pub spent: Spent,
    /// The model, as the configuration names it.
    pub model: Arc<str>,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// How many times an upstream was asked, this one among them.
    pub attempts: u32,
    /// What all of these came to, each by the price of who was asked: what is not known of one that failed is all that it may
    /// have come to.
    pub cost: Spend,
}

/// What comes of an answer: `First`, any number of `Text`s, perhaps `ToolCalls`, then `Done`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The first token is there. It may be long until text follows: an answer with a shape comes as a whole, when it is known
    /// to have it.
    First {
        /// Who answers. Where it fails with nothing said, another may answer in its place.
        upstream: Arc<str>,
    },
    /// Text: whole characters, never empty.
    Text(String),
    /// All calls of the answer, checked.
    ToolCalls(Vec<ToolCall>),
    /// The answer is complete and what was asked for.
    Done(Answered),
}

/// Kinds of what goes wrong with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// There is none that may be asked now: none is configured, all are avoided, or all failed too often of late.
    Unavailable,
    /// All that may be asked have as much to do as they take, or as the configuration gives them.
    Busy,
    /// The connection cannot be made: its name is not known, nobody listens, the proxy refuses.
    Unreachable,
    /// Whoever answers cannot show to be the one that is meant, or does not speak TLS.
    Untrusted,
    /// It takes too long: to connect, to begin, to go on, or in all.
    Slow,
    /// The request's own deadline passes.
    Deadline,
    /// The connection breaks off.
    Broken,
    /// What it says is not understood, or contradicts itself.
    Garbled,
    /// It says more than it was asked for, or than is read.
    Endless,
    /// It sends elsewhere; nobody follows.
    Redirected,
    /// It does not take the key, or the key cannot be read.
    Denied,
    /// It does not take the question.
    Rejected,
    /// It says that it has failed.
    Failed,
    /// The answer is not of the shape, or calls what it may not.
    Misshapen,
    /// It withholds the answer.
    Withheld,
}

impl FaultKind {
    /// The word for it in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FaultKind::Unavailable => "unavailable",
            FaultKind::Busy => "busy",
            FaultKind::Unreachable => "unreachable",
            FaultKind::Untrusted => "untrusted",
            FaultKind::Slow => "slow",
            FaultKind::Deadline => "deadline",
            FaultKind::Broken => "broken",
            FaultKind::Garbled => "garbled",
            FaultKind::Endless => "endless",
            FaultKind::Redirected => "redirected",
            FaultKind::Denied => "denied",
            FaultKind::Rejected => "rejected",
            FaultKind::Failed => "failed",
            FaultKind::Misshapen => "misshapen",
            FaultKind::Withheld => "withheld",
        }
    }
}

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamFault {
    /// What went wrong.
    pub kind: FaultKind,
    /// With which upstream, unless none was asked.
    pub upstream: Option<Arc<str>>,
    /// When it may be asked again, as it says itself.
    pub retry_after: Option<Duration>,
    /// Whether a part of the answer was handed over before: whoever goes on with another has to begin anew, and to say so.
    pub sent_text: bool,
    /// What the attempts came to, as [`Answered::cost`] has it.
    pub cost: Spend,
    /// One sentence of the daemon's own words: nothing of the question, of the answer, or of keys.
    pub message: String,
}

impl UpstreamFault {
    /// One that concerns no upstream in particular.
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> UpstreamFault {
        UpstreamFault {
            kind,
            upstream: None,
            retry_after: None,
            sent_text: false,
            cost: Spend::default(),
            message: message.into(),
        }
    }

    /// What the client is told where nobody else answers.
    #[must_use]
    pub fn into_fault(self) -> Fault {
        let code = match self.kind {
            FaultKind::Busy => FaultCode::Busy,
            FaultKind::Deadline => FaultCode::DeadlineExceeded,
            FaultKind::Rejected | FaultKind::Withheld => FaultCode::Unsupported,
            _ => FaultCode::UpstreamUnavailable,
        };
        Fault {
            retry_after: self.retry_after,
            ..Fault::new(code, self.to_string())
        }
    }
}

impl fmt::Display for UpstreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.upstream {
            Some(name) => write!(f, "upstream {name}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for UpstreamFault {}

/// An answer on its way. Dropping it ends the question, and the connection's part in it.
#[derive(Debug)]
pub struct Answering {
    pieces: mpsc::Receiver<Result<Piece, UpstreamFault>>,
    ended: bool,
}

impl Answering {
    /// One that is fed from the other end.
    pub(super) fn new(pieces: mpsc::Receiver<Result<Piece, UpstreamFault>>) -> Answering {
        Answering {
            pieces,
            ended: false,
        }
    }

    /// The next piece; `None` after [`Piece::Done`] or a fault. Nothing is lost where the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Result<Piece, UpstreamFault>> {
        if self.ended {
            return None;
        }
        let next = self.pieces.recv().await;
        // Who feeds it always says how it ends, unless the runtime has ended.
        self.ended = matches!(next, None | Some(Ok(Piece::Done(_)) | Err(_)));
        next
    }
}
