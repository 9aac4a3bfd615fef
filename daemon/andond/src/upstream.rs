//! Servers elsewhere that answer in this one's place, each speaking OpenAI's chat completions.
//!
//! Whether a request goes there at all is [`crate::router`]'s to decide. Here it is decided which of them is asked, how long it
//! may take, whether another is asked when it fails, and what of its answer is believed.
//!
//! Invariant: a question is asked with a [`Permit`] only; its answer ends with exactly one [`Piece::Done`] or [`UpstreamFault`],
//! by the deadline; nothing that an upstream sends grows a buffer without a named bound; and no key is in a log or an error.

mod answer;
mod question;

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::budget::Price;
use tokio::sync::{mpsc, watch};

pub use crate::router::egress::Permit;
pub use answer::{Answered, Answering, FaultKind, Piece, Spent, ToolCall, UpstreamFault};
pub use question::{Question, Shape, Unsuited};

/// How one upstream is, as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Whether it may be asked.
    pub state: State,
}

/// Whether an upstream may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is asked.
    Closed,
    /// It failed too often and is not asked.
    Open,
    /// It failed and is tried with one question at a time.
    HalfOpen,
    /// It has said that it takes no more for a while.
    Limited,
}

impl State {
    /// The word for it in metrics and in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
            State::Limited => "limited",
        }
    }
}

/// What is known of the way to the upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Whether some upstream may be asked now.
    pub up: bool,
    /// All of them, in the order of the configuration.
    pub upstreams: Arc<[Standing]>,
}

/// How long an answer is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Until its first token; three of four answers are faster.
    pub first: Duration,
    /// Until its end.
    pub whole: Duration,
}

/// All upstreams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: watch::Sender<Link>,
}

impl Default for Upstreams {
    fn default() -> Upstreams {
        Upstreams::new()
    }
}

impl Upstreams {
    /// None at all.
    #[must_use]
    pub fn new() -> Upstreams {
        let link = watch::Sender::new(Link::default());
        Upstreams {
            inner: Arc::new(Inner { link }),
        }
    }

    /// Whether none is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.link.borrow().upstreams.is_empty()
    }

    /// What is known of the way to them, and every change of it.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.inner.link.subscribe()
    }

    /// How long an answer of so many tokens is expected to take with the upstream that would be asked now, if there is one and
    /// it has answered before.
    #[must_use]
    pub fn expected(&self, _tokens: u32) -> Option<Expected> {
        None
    }

    /// What tokens cost with the upstream of this name, if there is one.
    #[must_use]
    pub fn price(&self, _name: &str) -> Option<Price> {
        None
    }

    /// What tokens cost where they cost most.
    #[must_use]
    pub fn dearest(&self) -> Price {
        Price::default()
    }

    /// Asks one of the upstreams, and others where it fails before it has said anything. Has to be called where tokio runs.
    #[must_use]
    pub fn ask(
        &self,
        _permit: Permit,
        _question: Question,
        _deadline: Option<Instant>,
    ) -> Answering {
        let (sender, receiver) = mpsc::channel(1);
        let fault = UpstreamFault::new(FaultKind::Unavailable, "no upstream is configured");
        // There is room for one.
        drop(sender.try_send(Err(fault)));
        Answering::new(receiver)
    }
}
