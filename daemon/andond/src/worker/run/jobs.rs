//! Jobs that the engine works on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use andon_engine::generate::{Forward, GenerationId, Generator};
use andon_policy::scheduler::{Scheduler, Ticket};
use andon_policy::stuck::Progress;
use andon_wire::Priority;

use super::super::Shared;
use super::super::board::{Board, Job, Phase};
use super::super::job::{Finish, Timings, Usage};
use super::super::machine::most_urgent;
use super::super::schedule::cancelled;
use crate::fault::{Fault, FaultCode};

/// A job the engine works on.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: Arc<Job>,
    pub(super) started: Instant,
    pub(super) task: Option<Arc<str>>,
    /// Why it is given up, once it is; and whether the engine and the scheduler know.
    pub(super) fault: Option<Fault>,
    pub(super) given_up: bool,
    /// Its generations, one for each answer, and how those ended that did.
    pub(super) choices: Vec<(GenerationId, Option<Finish>)>,
    /// Tokens of its prompt that were computed, and of its answers, that the scheduler is yet to be told of.
    pub(super) read: Option<u32>,
    pub(super) decoded: u32,
    /// Whether its prompt is read, so that it is in every pass.
    pub(super) answers: bool,
    /// Its pages were given to an alarm, and it is not where it was, be it that it has pages again; how often they were; and
    /// whether its prompt was read.
    pub(super) reads_again: bool,
    pub(super) asides: u32,
    pub(super) was_read: bool,
    /// Whether passes bring it anything.
    pub(super) progress: Progress,
    /// What the answers that ended took.
    pub(super) usage: Usage,
    pub(super) timings: Timings,
}

impl Running {
    /// Its answers that are not over.
    pub(super) fn open(&self) -> impl Iterator<Item = GenerationId> + '_ {
        let open = |&(id, finish): &(_, Option<Finish>)| finish.is_none().then_some(id);
        self.choices.iter().filter_map(open)
    }

    /// Tells the scheduler what was computed.
    pub(super) fn note(&mut self, scheduler: &mut Scheduler, now_ms: u64) {
        if let Some(computed) = self.read.take() {
            scheduler.prompt_read(now_ms, self.job.ticket, computed);
        }
        let decoded = std::mem::take(&mut self.decoded);
        if decoded > 0 {
            scheduler.decoded(now_ms, self.job.ticket, decoded);
        }
    }
}

impl Running {
    /// What its answers have made, in tokens; `None` if it is parked.
    pub(super) fn made<F: Forward>(&self, generator: &Generator<F>) -> Option<usize> {
        let made = self.open().filter_map(|id| generator.progress(id));
        made.reduce(usize::saturating_add)
    }

    /// Gives it up if passes that were for it have brought it nothing for longer than they may. It is ended before the next
    /// one.
    pub(super) fn look_after(&mut self, shared: &Shared, made: usize, took_us: u64, stuck_us: u64) {
        if !self.progress.passed(made as u64, took_us, stuck_us) || self.fault.is_some() {
            return;
        }
        let idle_ms = self.progress.idle_us() / 1000;
        crate::event!(
            RequestStuck,
            origin = self.job.origin.name(),
            client = self.job.key.client,
            request_id = self.job.key.id,
            idle_ms,
            tokens = made,
            "a request is stuck: passes bring it nothing; it is ended"
        );
        shared.telemetry.stuck.inc();
        self.fault = Some(Fault::new(
            FaultCode::Internal,
            format!("the request got stuck: it made no progress in {idle_ms} ms of passes"),
        ));
    }
}

/// What the engine works on: jobs, and the job of each generation with its place there.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub(super) running: BTreeMap<Ticket, Running>,
    pub(super) owners: HashMap<GenerationId, (Ticket, u32)>,
}

impl Jobs {
    pub(super) fn insert(&mut self, running: Running) {
        let ticket = running.job.ticket;
        for (place, &(id, _)) in (0..).zip(&running.choices) {
            self.owners.insert(id, (ticket, place));
        }
        self.running.insert(ticket, running);
    }

    /// How urgent the most urgent of them is.
    pub(super) fn urgency(&self) -> Priority {
        let jobs = self.running.values();
        most_urgent(jobs.map(|running| running.job.priority))
    }

    /// Whether others than this one have room, which they give back when they end. Who reads again what it lost has.
    pub(super) fn others_have_pages<F: Forward>(
        &self,
        generator: &Generator<F>,
        ticket: Ticket,
    ) -> bool {
        let mut others = self.running.iter().filter(|&(&other, _)| other != ticket);
        others.any(|(_, running)| running.open().any(|id| generator.kv_tokens_of(id) > 0))
    }

    /// The job of a generation, and which of its answers that is.
    pub(super) fn of(&mut self, id: GenerationId) -> Option<(&mut Running, u32)> {
        let &(ticket, place) = self.owners.get(&id)?;
        Some((self.running.get_mut(&ticket)?, place))
    }

    /// Takes a job out, all of whose answers are over.
    pub(super) fn remove(&mut self, id: GenerationId) -> Option<Running> {
        let (ticket, _) = self.owners.get(&id).copied()?;
        let running = self.running.remove(&ticket)?;
        for (id, _) in &running.choices {
            self.owners.remove(id);
        }
        Some(running)
    }

    /// Notes who is to be ended: whose client is gone, who was found at fault while delivering (a reader too slow for its
    /// answer), and, once the grace is over, everyone. Says whether there is someone new.
    pub(super) fn give_up(&mut self, board: &mut Board, now_ms: u64) -> bool {
        let grace_over = matches!(board.phase, Phase::Stopping(until) if Instant::now() >= until);
        let mut any = false;
        for running in self
            .running
            .values_mut()
            .filter(|running| !running.given_up)
        {
            if running.fault.is_none() {
                running.fault = if running.job.mailbox.cancelled() {
                    Some(cancelled())
                } else {
                    grace_over.then(Shared::stopping)
                };
            }
            if running.fault.is_some() {
                board.scheduler.cancelled(now_ms, running.job.ticket);
                running.given_up = true;
                any = true;
            }
        }
        any
    }
}
