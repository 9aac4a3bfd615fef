//! What waits and what is open, under one lock.
//!
//! Invariant: a job is in `open` from its submission until just before its terminal event, so a client that
//! has read the end of one request may use its id for the next.

use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::generate::GenerationRequest;
use andon_policy::queue::{self, Waiting};

use super::embed::EmbeddingRequest;
use super::job::Mailbox;
use super::prepare::Lane;
use crate::request::{Origin, Request};

/// What an open request is known by.
///
/// Clients over MQTT choose their names, so theirs are kept apart from those of local programs: none
/// takes up a user's places, or is taken for a user, by its name alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) local: bool,
    pub(super) client: String,
    pub(super) id: String,
}

impl Key {
    pub(super) fn new(origin: Origin, client: &str, id: &str) -> Key {
        Key {
            local: origin != Origin::Mqtt,
            client: client.to_owned(),
            id: id.to_owned(),
        }
    }

    /// Whether both are requests of one client.
    pub(super) fn same_client(&self, other: &Key) -> bool {
        self.local == other.local && self.client == other.client
    }
}

/// An open request's identity and mailbox.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) origin: Origin,
    pub(super) submitted: Instant,
    pub(super) mailbox: Arc<Mailbox>,
}

/// A job that waits, with what orders it.
#[derive(Debug)]
pub(super) struct Queued<T> {
    pub(super) job: Arc<Job>,
    pub(super) order: Waiting,
    pub(super) payload: T,
}

/// What the engine is to do for a job.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) request: GenerationRequest,
    /// Answers to give.
    pub(super) choices: NonZero<u32>,
    /// The task it answers.
    pub(super) task: Option<Arc<str>>,
}

/// Where the daemon is in its life, as far as admission cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Loading,
    Serving,
    /// Nothing new; what runs may go on until the instant.
    Stopping(Instant),
    Failed,
}

#[derive(Debug)]
pub(super) struct Board {
    pub(super) phase: Phase,
    /// Submitted, not yet rendered.
    pub(super) raw: VecDeque<Queued<Request>>,
    /// Those that are being rendered are in neither list; each [`super::prepare::Lane`] has one at most.
    pub(super) rendering: [Option<Waiting>; Lane::COUNT],
    /// Whether one of the threads that render gets ready, beside which nothing is to be measured.
    pub(super) readying: bool,
    /// Rendered and tokenized.
    pub(super) ready: VecDeque<Queued<Prepared>>,
    /// Tokenized requests for embeddings.
    pub(super) embeddings: VecDeque<Queued<EmbeddingRequest>>,
    pub(super) running: usize,
    pub(super) open: HashMap<Key, Arc<Job>>,
    pub(super) ticket: u64,
    /// How long requests took of late, from their start; smoothed.
    pub(super) service: Option<Duration>,
}

impl Board {
    pub(super) fn new() -> Board {
        Board {
            phase: Phase::Loading,
            raw: VecDeque::new(),
            rendering: [const { None }; Lane::COUNT],
            readying: false,
            ready: VecDeque::new(),
            embeddings: VecDeque::new(),
            running: 0,
            open: HashMap::new(),
            ticket: 0,
            service: None,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.raw.len()
            + self.ready.len()
            + self.embeddings.len()
            + self.rendering.iter().flatten().count()
    }

    /// Whether nothing is being rendered, or got ready for that.
    pub(super) fn renders_nothing(&self) -> bool {
        !self.readying && self.rendering.iter().all(Option::is_none)
    }

    pub(super) fn orders(&self) -> impl Iterator<Item = &Waiting> {
        let raw = self.raw.iter().map(|queued| &queued.order);
        let ready = self.ready.iter().map(|queued| &queued.order);
        let embeddings = self.embeddings.iter().map(|queued| &queued.order);
        raw.chain(ready)
            .chain(embeddings)
            .chain(self.rendering.iter().flatten())
    }

    /// The job that goes next among `list`, left where it is.
    pub(super) fn next_of<T>(list: &VecDeque<Queued<T>>, now_ms: u64) -> Option<usize> {
        queue::next(list.iter().map(|queued| &queued.order), now_ms)
    }

    /// Takes out the submitted job that goes next among those that `chosen` is for.
    pub(super) fn take_raw(
        &mut self,
        now_ms: u64,
        chosen: impl Fn(&Request) -> bool,
    ) -> Option<Queued<Request>> {
        let raw = self.raw.iter().enumerate();
        let mine: Vec<_> = raw
            .filter(|(_, queued)| chosen(&queued.payload))
            .map(|(index, queued)| (index, &queued.order))
            .collect();
        let next = queue::next(mine.iter().map(|&(_, order)| order), now_ms)?;
        let index = mine.get(next)?.0;
        self.raw.remove(index)
    }

    /// Takes out every waiting job that is cancelled or expired.
    pub(super) fn sweep(&mut self, now_ms: u64) -> Vec<Arc<Job>> {
        let mut out = Vec::new();
        sweep(&mut self.raw, now_ms, &mut out);
        sweep(&mut self.ready, now_ms, &mut out);
        sweep(&mut self.embeddings, now_ms, &mut out);
        out
    }

    /// Takes out every waiting job.
    pub(super) fn clear(&mut self) -> Vec<Arc<Job>> {
        let raw = self.raw.drain(..).map(|queued| queued.job);
        let ready = self.ready.drain(..).map(|queued| queued.job);
        let embeddings = self.embeddings.drain(..).map(|queued| queued.job);
        raw.chain(ready).chain(embeddings).collect()
    }

    /// When the next waiting job expires, on the policy's clock.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.orders().filter_map(|order| order.deadline_ms).min()
    }

    /// Notes how long a request took.
    pub(super) fn took(&mut self, duration: Duration) {
        // An eighth of the way to the newest: a few requests of one kind set it, one outlier does not.
        self.service = Some(match self.service {
            None => duration,
            Some(before) => before.saturating_mul(7).saturating_add(duration) / 8,
        });
    }
}

fn sweep<T>(list: &mut VecDeque<Queued<T>>, now_ms: u64, out: &mut Vec<Arc<Job>>) {
    list.retain(|queued| {
        let over = queued.order.expired(now_ms) || queued.job.mailbox.cancelled();
        if over {
            out.push(Arc::clone(&queued.job));
        }
        !over
    });
}
