//! Who is taken in, who computes, who steps aside, and who is told that it is too late.
//!
//! A [`Scheduler`] knows of each request what it needs to decide, and nothing else: it is told what
//! happens ([`Scheduler::arrived`], [`Scheduler::prepared`], [`Scheduler::stepped`], …) and asked
//! between two passes over the weights what to do ([`Scheduler::decide`]) and how much of which
//! prompts to read ([`Scheduler::pass`]). Times are milliseconds on any clock that does not run
//! backwards; what passes took is in microseconds.
//!
//! Requests wait (submitted, being prepared, ready) and then are resident: running, which takes a
//! place in every pass for each of their answers, or parked, which keeps what was computed and
//! takes none. The order is [`crate::queue`]'s. Between passes a request of a higher rank takes the
//! place of one of a lower rank, which is parked; within a rank nobody is displaced.
//!
//! - While an alarm's prompt is read, everything else is parked, so that it is read at full speed;
//!   until the alarm has ended, batch work is. That may go on for [`HOLD_MS_MAX`] at a time and
//!   half of the time at length; beyond it, others take part in the passes of alarms.
//! - Alarms have places of their own, in the queue and in passes, and may take all others but one.
//!   Where one finds no room, others are set aside: they give up what was computed, and compute it again.
//! - Batch work that is to be slow computes for [`DUTY_MS_MAX`] at a stretch, in anybody's company,
//!   and half of the time at length; held, not at all, unless others wait for room that it may
//!   have. It is parked meanwhile, and nobody waits behind it.
//! - Who computed for [`SLICE_MS`] since it began to wait has waited no longer. So who waits or is
//!   parked is computed again after its patience at the latest when those have had their turn that
//!   waited at least as long: within [`Scheduler::starved_ms_max`].
//!
//! Invariant: answers in passes never exceed [`Places::shared`] and [`Places::for_alarms`] together,
//! those of other requests than alarms never [`Places::shared`], answers resident never
//! [`Places::resident_max`], requests waiting never [`Bounds::waiting_max`]; each request that was
//! admitted leaves by exactly one of [`Scheduler::forget`], [`Scheduler::cancelled`],
//! [`Scheduler::finished`], [`Scheduler::clear`], a refusal by [`Scheduler::prepared`], and
//! [`Decision::Expire`].

mod assign;
mod entry;
mod estimate;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use andon_wire::Priority;

use self::assign::Candidate;
use self::entry::{Entry, Stage};
use crate::admission::{self, Bounds, Demand, Load, Phase, Reason, Refusal, Refuses};
use crate::client::{ClientId, Clients, Rates};
use crate::queue::patience_ms;
use crate::rate::{Bucket, Rate};
use crate::speed::{Speeds, Step};
use crate::stuck;
use crate::throttle::{Restraint, Throttle};

/// How long others may be parked for alarms without a break.
pub const HOLD_MS_MAX: u64 = 2 * HOLD.burst as u64;

/// Milliseconds that others are parked for alarms: half of the time, and this much at once.
const HOLD: Rate = Rate {
    per_minute: 30_000,
    burst: 10_000,
};

/// Longest that batch work which is to be slow computes at a stretch, but for the pass under way then.
pub const DUTY_MS_MAX: u64 = 2 * DUTY.burst as u64;

/// Milliseconds that such work computes: half of the time, and this much at once. Fewer would have it parked all the time,
/// more would let the machine become warm in between.
const DUTY: Rate = Rate {
    per_minute: 30_000,
    burst: 500,
};

/// For how long a request computes until it no longer counts as having waited.
pub const SLICE_MS: u64 = 10_000;

/// After so long without a pass, what passes took before is no reason to refuse one request at a time.
const TRY_MS: u64 = 10_000;

/// What a token of an answer costs, in tokens of a prompt: these share a pass over the weights.
const ANSWER_TOKEN_COST: u64 = 8;

/// Names a request; later arrivals have higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Places for answers in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// For answers of any request.
    pub shared: u32,
    /// Beside them, for those of alarms only.
    pub for_alarms: u32,
}

impl Places {
    /// Most answers in a pass.
    #[must_use]
    pub const fn all(self) -> u32 {
        self.shared.saturating_add(self.for_alarms)
    }

    /// Most answers of alarms in a pass: one place is left to others.
    #[must_use]
    pub const fn alarms_max(self) -> u32 {
        let most = self.all().saturating_sub(1);
        if most == 0 { 1 } else { most }
    }

    /// Most answers of other requests, in passes and parked: batch work begins while there are no more
    /// than places, and as many that took these may be there beside it.
    const fn others_max(self) -> u32 {
        self.shared.saturating_mul(2)
    }

    /// Most answers in passes and parked.
    #[must_use]
    pub const fn resident_max(self) -> u32 {
        self.others_max().saturating_add(self.alarms_max())
    }
}

/// What does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How much is taken on.
    pub bounds: Bounds,
    /// Places in a pass.
    pub places: Places,
    /// Most tokens in a pass.
    pub pass_tokens_max: u32,
    /// How often one client may ask.
    pub rates: Rates,
}

/// A request that is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Who asks.
    pub client: ClientId,
    /// How urgent it is.
    pub priority: Priority,
    /// When the answer becomes worthless.
    pub deadline_ms: Option<u64>,
    /// The wish for at most so many tokens.
    pub tokens_max: Option<u32>,
    /// Answers to give, at least one; no more than [`Places::shared`].
    pub choices: u32,
    /// How often this client may ask, in place of [`Config::rates`] where it says so.
    pub rates: Rates,
}

/// What is known of a request once it is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens of an answer.
    pub tokens_max: u32,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Tell a waiting request that it is too late; it is forgotten already.
    Expire(Ticket, Expiry),
    /// End a resident request whose deadline has passed; it no longer has a place.
    /// [`Scheduler::finished`] is to follow.
    Stop(Ticket),
    /// Leave a request out of passes, and keep what was computed.
    Park(Ticket),
    /// Let a parked request take part again. [`Scheduler::no_room`] may be the answer of one that was
    /// set aside.
    Resume(Ticket),
    /// Begin to compute. [`Scheduler::no_room`] may be the answer, and is to be that of those that
    /// would be started behind it: nobody but an alarm goes before who finds no room.
    Start(Ticket),
}

/// Why a request that waits is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Its deadline has passed.
    Passed,
    /// Even if it began now, not one token would be there by its deadline.
    CannotBeMet,
}

/// What a cancelled request was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It waited, and is forgotten.
    Waiting,
    /// It is resident and has no place any more; [`Scheduler::finished`] is to follow.
    Resident,
    /// There is no such request.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
    phase: Phase,
    restraint: Restraint,
    /// For how long batch work may compute while it is to be slow, what of a step was too short for the clock, in
    /// microseconds, and whether it rests.
    duty: Bucket,
    duty_us: u64,
    resting: bool,
    /// Whether batch work is in the next pass, or was in the last one: what ended with it is not there any more.
    batch_computes: bool,
    /// When batch work that rests goes on.
    rested_ms: u64,
    entries: BTreeMap<Ticket, Entry>,
    next_ticket: u64,
    clients: Clients,
    speeds: Speeds,
    /// When a pass was last made.
    measured_ms: u64,
    waiting: u32,
    /// When to look for requests that are too late.
    overdue_ms: u64,
    /// How long others may still be parked for alarms, in milliseconds; and whether they are.
    hold: Bucket,
    holding: bool,
    /// What of a step was too short for the clock, in microseconds.
    held_us: u64,
    /// Whether a request found no room and nothing has ended since.
    blocked: bool,
    /// The memory of decisions.
    candidates: Vec<Candidate>,
    ready: Vec<Candidate>,
}

impl Scheduler {
    /// A scheduler without requests, at `now_ms`; it takes none until its phase is set.
    #[must_use]
    pub const fn new(config: Config, now_ms: u64) -> Self {
        Self {
            config,
            phase: Phase::Starting,
            restraint: Restraint {
                batch: Throttle::None,
                refuses: Refuses::Nothing,
            },
            duty: Bucket::full(DUTY, now_ms),
            duty_us: 0,
            resting: false,
            batch_computes: false,
            rested_ms: u64::MAX,
            entries: BTreeMap::new(),
            next_ticket: 0,
            clients: Clients::new(config.rates),
            speeds: Speeds::new(),
            measured_ms: now_ms,
            waiting: 0,
            overdue_ms: u64::MAX,
            hold: Bucket::full(HOLD, now_ms),
            holding: false,
            held_us: 0,
            blocked: false,
            candidates: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Says whether requests are taken.
    pub const fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Has other bounds hold for what arrives from now on, and other rates for every client. What was taken in stays.
    pub const fn set_bounds(&mut self, bounds: Bounds, rates: Rates) {
        self.config.bounds = bounds;
        self.config.rates = rates;
        self.clients.set_rates(rates);
    }

    /// Says what work is to give way, and how far.
    pub const fn restrain(&mut self, restraint: Restraint) {
        self.restraint = restraint;
    }

    /// What work is giving way, and how far.
    #[must_use]
    pub const fn restraint(&self) -> Restraint {
        self.restraint
    }

    /// How long passes may take that bring a request in them nothing, by what passes took of late.
    #[must_use]
    pub fn stuck_us(&self) -> u64 {
        let (mut prompts_us, mut answers) = (0u64, 0u32);
        for entry in self.entries.values() {
            if entry.stage == Stage::Running {
                let prompt_us = self.speeds.prompt_us(entry.prompt_tokens).unwrap_or(0);
                prompts_us = prompts_us.saturating_add(prompt_us);
                answers = answers.saturating_add(entry.choices);
            }
        }
        stuck::bound_us(prompts_us, self.speeds.step_us(answers).unwrap_or(0))
    }

    /// What was measured.
    #[must_use]
    pub const fn speeds(&self) -> &Speeds {
        &self.speeds
    }

    /// Requests that wait.
    #[must_use]
    pub const fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Requests that run or are parked.
    #[must_use]
    pub fn resident(&self) -> usize {
        self.entries.len() - usize::try_from(self.waiting).unwrap_or(0)
    }

    /// When [`Scheduler::decide`] is to be called if nothing happens before.
    #[must_use]
    pub const fn wake_ms(&self) -> Option<u64> {
        let wake_ms = if self.overdue_ms < self.rested_ms {
            self.overdue_ms
        } else {
            self.rested_ms
        };
        if wake_ms == u64::MAX {
            None
        } else {
            Some(wake_ms)
        }
    }

    /// How long a request other than an alarm waits, or is parked, at most until it computes, if it
    /// does not end before and nothing restrains it: where no request computes for longer than `longest_ms`
    /// from its start to its end.
    #[must_use]
    pub fn starved_ms_max(config: &Config, priority: Priority, longest_ms: u64) -> u64 {
        // Each that waited longer, or is resident, may compute once before, in the one place that
        // alarms leave; and half of the time may be theirs.
        let others = config
            .bounds
            .waiting_max
            .saturating_add(config.places.resident_max());
        let turns = u64::from(others).saturating_mul(longest_ms.max(SLICE_MS));
        patience_ms(priority)
            .saturating_add(HOLD_MS_MAX)
            .saturating_add(turns.saturating_mul(2))
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// Why it is turned away.
    pub fn arrived(&mut self, now_ms: u64, arrival: &Arrival) -> Result<Ticket, Refusal> {
        let ticket = Ticket(self.next_ticket);
        let entry = Entry::new(arrival, now_ms);
        let client = arrival.client;
        let demand = Demand {
            priority: arrival.priority,
            tokens_max: arrival.tokens_max,
            deadline_ms: arrival.deadline_ms,
        };
        let load = Load {
            phase: self.phase,
            waiting: self.waiting,
            client_open: self.clients.open(client),
            throttled: self
                .clients
                .throttled(client, arrival.rates, arrival.priority, now_ms),
            refuses: self.restraint.refuses,
            wait_ms: self.wait_ms(ticket, &entry, now_ms),
            turn_ms: self.turn_ms(),
        };
        admission::admit(&self.config.bounds, &load, &demand, now_ms)?;
        self.next_ticket += 1;
        self.clients
            .opened(client, arrival.rates, arrival.priority, now_ms);
        self.waiting += 1;
        self.overdue_ms = self.overdue_ms.min(arrival.deadline_ms.unwrap_or(u64::MAX));
        self.entries.insert(ticket, entry);
        Ok(ticket)
    }

    /// The submitted request that is to be prepared next, of those that are `mine`; it is taken to
    /// be under way.
    pub fn prepare_next(&mut self, now_ms: u64, mine: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        let raw = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.stage == Stage::Submitted);
        let next = raw
            .filter(|(ticket, _)| mine(**ticket))
            .map(|(ticket, entry)| (entry.waiting(*ticket, &self.clients), *ticket))
            .min_by(|(a, _), (b, _)| a.order(b, now_ms))
            .map(|(_, ticket)| ticket)?;
        self.entries.get_mut(&next)?.stage = Stage::Preparing;
        Some(next)
    }

    /// Takes in that a request is prepared. Nothing happens if it was forgotten meanwhile.
    ///
    /// # Errors
    /// Why it is turned away after all; it is forgotten.
    pub fn prepared(&mut self, now_ms: u64, ticket: Ticket, size: Size) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get_mut(&ticket) else {
            return Ok(());
        };
        if entry.stage != Stage::Preparing {
            return Ok(());
        }
        entry.stage = Stage::Ready;
        entry.prompt_tokens = size.prompt_tokens;
        entry.tokens_max = size.tokens_max;
        let entry = *entry;
        self.overdue_ms = self.overdue_ms.min(self.latest_start_ms(&entry));
        let mut refusal = self.cannot_be_met(ticket, &entry, now_ms);
        let too_slow = |refusal: &Refusal| refusal.reason == Reason::TooSlow;
        if refusal.as_ref().is_some_and(too_slow) && self.may_try(now_ms) {
            // Nobody is held up by it, and without anyone computed it would never be seen that it is faster again.
            refusal = None;
            if let Some(entry) = self.entries.get_mut(&ticket) {
                entry.tries = true;
            }
        }
        if refusal.is_some() {
            self.forget(now_ms, ticket);
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Whether a request may be computed to see how fast that goes: there is no other, and it was not seen of late.
    fn may_try(&self, now_ms: u64) -> bool {
        self.entries.len() == 1 && now_ms.saturating_sub(self.measured_ms) >= TRY_MS
    }

    /// Why the answer to a request that is ready cannot be there in time.
    fn cannot_be_met(&self, ticket: Ticket, entry: &Entry, now_ms: u64) -> Option<Refusal> {
        let deadline_ms = entry.deadline_ms?;
        if deadline_ms <= now_ms {
            return Some(Refusal::of(Reason::DeadlinePassed));
        }
        let late = |ms: u64| now_ms.saturating_add(ms) >= deadline_ms;
        // An alarm is answered even if an estimate says that it comes late.
        if entry.priority == Priority::Alarm {
            return None;
        }
        let own_ms = self.service_us(entry, self.answers_with(entry))? / 1000;
        if late(own_ms) {
            return Some(Refusal::of(Reason::TooSlow));
        }
        let wait_ms = self.wait_ms(ticket, entry, now_ms)?;
        late(wait_ms.saturating_add(own_ms))
            .then(|| Refusal::until(Reason::DeadlineTooShort, wait_ms))
    }

    /// Takes in that a request ended while it waited.
    pub fn forget(&mut self, now_ms: u64, ticket: Ticket) {
        let waits = |entry: &Entry| entry.stage.waits();
        if self.entries.get(&ticket).is_some_and(waits) {
            self.remove(now_ms, ticket);
        }
    }

    /// Takes in that a client has given a request up, or is gone.
    pub fn cancelled(&mut self, now_ms: u64, ticket: Ticket) -> Cancelled {
        match self.entries.get_mut(&ticket) {
            None => Cancelled::Unknown,
            Some(entry) if entry.stage.waits() => {
                self.remove(now_ms, ticket);
                Cancelled::Waiting
            }
            Some(entry) => {
                entry.ending = true;
                Cancelled::Resident
            }
        }
    }

    /// Forgets every request that waits, and says which.
    pub fn clear(&mut self, now_ms: u64) -> Vec<Ticket> {
        let waits = |(ticket, entry): (&Ticket, &Entry)| entry.stage.waits().then_some(*ticket);
        let all: Vec<Ticket> = self.entries.iter().filter_map(waits).collect();
        for &ticket in &all {
            self.remove(now_ms, ticket);
        }
        all
    }

    /// Takes in that a request that was to be started, or to have its memory again, found no room. It waits until something has
    /// ended, and nothing but alarms goes before it meanwhile.
    pub fn no_room(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket)
            && entry.stage == Stage::Running
        {
            if entry.aside {
                entry.stage = Stage::Parked;
            } else {
                entry.stage = Stage::Ready;
                self.waiting += 1;
            }
            entry.blocked = true;
            self.blocked = true;
        }
    }

    /// Takes in that the memory of a resident request was given to an alarm which found no room. It is
    /// parked until something has ended. [`Decision::Resume`] then says that it is to have memory again,
    /// to which [`Scheduler::no_room`] may be the answer too, and [`Scheduler::read_again`] that it is
    /// where it was.
    pub fn set_aside(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket)
            && !entry.stage.waits()
        {
            entry.stage = Stage::Parked;
            entry.was_read |= entry.read;
            entry.read = false;
            entry.aside = true;
            entry.blocked = true;
            self.blocked = true;
        }
    }

    /// Takes in that what was computed for a resident request is gone, and not its room: where it is running, it reads it again
    /// now, and [`Scheduler::read_again`] says that it is where it was.
    pub fn lost(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket)
            && !entry.stage.waits()
        {
            entry.was_read |= entry.read;
            entry.read = false;
            entry.aside = true;
        }
    }

    /// Takes in that a request that was set aside, or lost what it had, has read it again.
    pub fn read_again(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket)
            && entry.aside
        {
            entry.aside = false;
            entry.read = core::mem::take(&mut entry.was_read);
        }
    }

    /// Takes in that the prompt of a request has been read, of which `computed` of all tokens were
    /// not known already.
    pub fn prompt_read(&mut self, now_ms: u64, ticket: Ticket, computed: u32) {
        let Some(entry) = self.entries.get_mut(&ticket).filter(|entry| !entry.read) else {
            return;
        };
        entry.read = true;
        self.speeds.prompt_read(computed, entry.prompt_tokens);
        self.clients
            .computed(entry.client, computed, u64::from(computed), now_ms);
    }

    /// Takes in that an answer of a request got `tokens` more.
    pub fn decoded(&mut self, now_ms: u64, ticket: Ticket, tokens: u32) {
        let Some(entry) = self.entries.get_mut(&ticket) else {
            return;
        };
        entry.read = true;
        entry.tokens = entry.tokens.saturating_add(tokens);
        let cost = u64::from(tokens).saturating_mul(ANSWER_TOKEN_COST);
        self.clients.computed(entry.client, tokens, cost, now_ms);
    }

    /// Takes in that one of several answers of a request is complete.
    pub fn choice_ended(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.choices = entry.choices.saturating_sub(1).max(1);
        }
        self.unblock();
    }

    /// Takes in that a request ended, and says whether that was in time.
    pub fn finished(&mut self, now_ms: u64, ticket: Ticket) -> bool {
        let Some(entry) = self.remove(now_ms, ticket) else {
            return true;
        };
        if !entry.ending && entry.tokens > 0 {
            let each = entry.tokens / entry.choices_asked.max(1);
            self.speeds.answered(entry.priority, each);
        }
        entry.deadline_ms.is_none_or(|deadline| now_ms < deadline)
    }

    /// Lets those that found no room try again.
    fn unblock(&mut self) {
        if core::mem::take(&mut self.blocked) {
            for entry in self.entries.values_mut() {
                entry.blocked = false;
            }
        }
    }

    /// Takes in that the pass of which [`Scheduler::stepped`] is told next read something of a request's prompt. Those whose
    /// prompts it did not come to have waited meanwhile.
    pub fn took_part(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.took_part = true;
        }
    }

    /// Takes in that a pass was made, and what it took; not one that was given up.
    pub fn stepped(&mut self, now_ms: u64, step: &Step) {
        self.speeds.stepped(step);
        self.measured_ms = now_ms;
        for entry in self.entries.values_mut() {
            let took_part = core::mem::take(&mut entry.took_part) || entry.read;
            if entry.stage == Stage::Running && took_part {
                entry.computed(now_ms, step.took_us);
            }
        }
        if self.batch_computes && self.restraint.batch != Throttle::None {
            self.duty_us = self.duty_us.saturating_add(step.took_us);
            let ms = u32::try_from(self.duty_us / 1000).unwrap_or(u32::MAX);
            self.duty_us %= 1000;
            self.duty.take(DUTY, ms, now_ms);
        }
        if self.holding {
            self.held_us = self.held_us.saturating_add(step.took_us);
            let held_ms = u32::try_from(self.held_us / 1000).unwrap_or(u32::MAX);
            self.held_us %= 1000;
            self.hold.take(HOLD, held_ms, now_ms);
        }
    }

    /// Which prompts the next pass reads, in this order, and how many tokens of them at most.
    pub fn pass(&mut self, now_ms: u64, readers: &mut Vec<Ticket>) -> u32 {
        readers.clear();
        self.candidates.clear();
        let mut answers = 0u32;
        for (&ticket, entry) in &self.entries {
            if entry.stage != Stage::Running || entry.ending {
            } else if entry.read {
                answers = answers.saturating_add(entry.choices);
            } else {
                let waiting = entry.waiting(ticket, &self.clients);
                self.candidates
                    .push(Candidate::new(ticket, entry, &waiting, now_ms));
            }
        }
        self.candidates.sort_unstable();
        readers.extend(self.candidates.iter().map(|candidate| candidate.ticket));
        self.speeds
            .chunk_tokens(answers, self.config.pass_tokens_max)
    }

    /// Whether there is a request for the next pass.
    #[must_use]
    pub fn computes(&self) -> bool {
        let mut entries = self.entries.values();
        entries.any(|entry| entry.stage == Stage::Running && !entry.ending)
    }

    /// The running request that goes first, where one at a time is computed.
    #[must_use]
    pub fn first(&self, now_ms: u64) -> Option<Ticket> {
        let running =
            |(_, entry): &(&Ticket, &Entry)| entry.stage == Stage::Running && !entry.ending;
        self.entries
            .iter()
            .filter(running)
            .map(|(ticket, entry)| (entry.waiting(*ticket, &self.clients), *ticket))
            .min_by(|(a, _), (b, _)| a.order(b, now_ms))
            .map(|(_, ticket)| ticket)
    }

    fn remove(&mut self, now_ms: u64, ticket: Ticket) -> Option<Entry> {
        let entry = self.entries.remove(&ticket)?;
        if entry.stage.waits() {
            self.waiting = self.waiting.saturating_sub(1);
        }
        self.clients.closed(entry.client, now_ms);
        self.unblock();
        Some(entry)
    }
}
