//! What is open, and what waits with what it waits for, under one lock. Who goes next is the scheduler's to say.
//!
//! Invariant: a job is in `open` from its submission until just before its terminal event, so a client that
//! has read the end of one request may use its id for the next. A job is in `waiting` exactly as long as the scheduler
//! has it waiting.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use andon_engine::generate::GenerationRequest;
use andon_policy::admission::{self, Refuses};
use andon_policy::scheduler::{Config, Scheduler, Ticket};
use andon_policy::throttle::{Restraint, Throttle};
use andon_wire::Priority;

use super::account::Account;
use super::embed::EmbeddingRequest;
use super::job::Mailbox;
use super::prepare::Lane;
use super::terms::Terms;
use crate::request::{Origin, Part, Request};

/// What an open request is known by.
///
/// Clients over MQTT choose their names, so theirs are kept apart from those of local programs: none
/// takes up a user's places, or is taken for a user, by its name alone. A draft is known by nobody but who asked for it: the
/// request that it is for goes on under the same id, and may have ended, while the worker is still at it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) local: bool,
    pub(super) client: String,
    pub(super) id: String,
    draft: Option<u64>,
}

/// The number of the next draft.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

impl Key {
    pub(super) fn new(origin: Origin, client: &str, id: &str) -> Key {
        Key {
            local: is_local(origin),
            client: client.to_owned(),
            id: id.to_owned(),
            draft: None,
        }
    }

    /// The key of a request that comes now.
    pub(super) fn of(request: &Request) -> Key {
        let is_draft = request.part == Part::Draft;
        Key {
            draft: is_draft.then(|| DRAFTS.fetch_add(1, Ordering::Relaxed)),
            ..Key::new(request.origin, &request.client, &request.id)
        }
    }

    /// Whether it is one of this client's.
    pub(super) fn is_by(&self, origin: Origin, client: &str) -> bool {
        self.local == is_local(origin) && self.client == client
    }
}

fn is_local(origin: Origin) -> bool {
    origin != Origin::Mqtt
}

/// An open request's identity and mailbox.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) ticket: Ticket,
    pub(super) origin: Origin,
    pub(super) priority: Priority,
    pub(super) submitted: Instant,
    /// What it was taken under.
    pub(super) terms: Arc<Terms>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) account: Account,
}

/// A job that waits, and what for.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) job: Arc<Job>,
    /// What it asks, for another worker if this one goes.
    pub(super) request: Arc<Request>,
    pub(super) stage: Stage,
}

/// How far a job that waits has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Submitted.
    Submitted,
    /// One of the threads that render has it.
    Rendering,
    /// Rendered and tokenized.
    Ready(Box<Prepared>),
    /// The same of a request for embeddings.
    Embedding(EmbeddingRequest),
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
    /// Nothing new; what was taken is answered.
    Draining,
    /// Nothing new; what runs may go on until the instant.
    Stopping(Instant),
    Failed,
}

#[derive(Debug)]
pub(super) struct Board {
    pub(super) phase: Phase,
    pub(super) scheduler: Scheduler,
    pub(super) waiting: BTreeMap<Ticket, Waiting>,
    /// Which of the threads that render have a job in hand.
    pub(super) rendering: [bool; Lane::COUNT],
    /// Whether one of them gets ready, beside which nothing is to be measured.
    pub(super) readying: bool,
    pub(super) open: HashMap<Key, Arc<Job>>,
    /// How far work is to give way, as it was last told.
    told: Restraint,
}

impl Board {
    /// One of a model that is being loaded; requests may wait for that.
    pub(super) fn new(config: Config) -> Board {
        let mut scheduler = Scheduler::new(config, 0);
        scheduler.set_phase(admission::Phase::Serving);
        Board {
            phase: Phase::Loading,
            scheduler,
            waiting: BTreeMap::new(),
            rendering: [false; Lane::COUNT],
            readying: false,
            open: HashMap::new(),
            told: Restraint::default(),
        }
    }

    /// Goes on to the next part of the daemon's life.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.restrain(self.told);
        self.scheduler.set_phase(match phase {
            // While it drains, what was taken is still prepared. Nothing else is handed over.
            Phase::Loading | Phase::Serving | Phase::Draining => admission::Phase::Serving,
            Phase::Stopping(_) | Phase::Failed => admission::Phase::Draining,
        });
    }

    /// Has work give way so far, as long as the model is to stay.
    pub(super) fn restrain(&mut self, told: Restraint) {
        self.told = told;
        let restraint = match self.phase {
            Phase::Loading | Phase::Serving | Phase::Failed => told,
            // Its memory comes free when all is answered, which may be what memory is short for.
            Phase::Draining => Restraint {
                batch: told.batch.min(Throttle::Slow),
                refuses: Refuses::Nothing,
            },
            // What would end it is no longer looked at, and what runs is to come to its end.
            Phase::Stopping(_) => Restraint::default(),
        };
        self.scheduler.restrain(restraint);
    }

    /// Jobs that the engine has begun to work on.
    pub(super) fn running(&self) -> usize {
        self.scheduler.resident()
    }

    /// Whether all is done that there was to be done before the end.
    pub(super) fn is_over(&self) -> bool {
        let drained = match self.phase {
            Phase::Stopping(_) | Phase::Failed => true,
            Phase::Draining => self.waiting.is_empty(),
            Phase::Loading | Phase::Serving => false,
        };
        drained && self.renders_nothing()
    }

    /// Whether nothing is being rendered, or got ready for that.
    pub(super) fn renders_nothing(&self) -> bool {
        !self.readying && !self.rendering.contains(&true)
    }

    /// Takes out the submitted job that goes next among those that `chosen` is for.
    pub(super) fn take_submitted(
        &mut self,
        now_ms: u64,
        chosen: impl Fn(&Job, &Request) -> bool,
    ) -> Option<(Arc<Job>, Arc<Request>)> {
        let waiting = &self.waiting;
        let mine = |ticket: Ticket| {
            waiting.get(&ticket).is_some_and(|waiting| {
                matches!(waiting.stage, Stage::Submitted) && chosen(&waiting.job, &waiting.request)
            })
        };
        let ticket = self.scheduler.prepare_next(now_ms, mine)?;
        let waiting = self.waiting.get_mut(&ticket)?;
        waiting.stage = Stage::Rendering;
        Some((Arc::clone(&waiting.job), Arc::clone(&waiting.request)))
    }
}
