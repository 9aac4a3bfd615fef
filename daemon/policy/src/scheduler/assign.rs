//! Who takes part in the next pass.
//!
//! Everyone who could is put in order, and gets its places in that order. What follows from that is
//! what there is to do: whoever had places and has none is parked, whoever has some and had none is
//! resumed or started.

use alloc::vec::Vec;

use andon_wire::Priority;

use super::entry::{Entry, Stage};
use super::{DUTY, Decision, Expiry, HOLD, Scheduler, Ticket};
use crate::queue::{Waiting, rank};
use crate::throttle::{Restraint, Throttle};

/// A request that could take part. Those that run go before others of their rank: within a rank
/// nobody is displaced; and between equals those that were parked go before those that were not
/// begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    rank: u8,
    idle: bool,
    deadline_ms: u64,
    begins: bool,
    served: u64,
    since_ms: u64,
    pub(super) ticket: Ticket,
}

impl Candidate {
    pub(super) fn new(ticket: Ticket, entry: &Entry, waiting: &Waiting, now_ms: u64) -> Self {
        let (rank, deadline_ms) = waiting.standing(now_ms);
        Self {
            rank,
            idle: entry.stage != Stage::Running,
            deadline_ms,
            begins: entry.stage == Stage::Ready,
            served: waiting.served,
            since_ms: waiting.since_ms,
            ticket,
        }
    }
}

/// Places as they are given away.
#[derive(Default)]
struct Given {
    alarms: u32,
    others: u32,
    /// Answers that are resident, of others than alarms.
    resident: u32,
    /// Whether an alarm's prompt is read, and whether there is an alarm at all.
    reads_alarm: bool,
    alarm: bool,
    /// No more alarms begin, or nothing: who goes first does not fit.
    full_of_alarms: bool,
    full: bool,
}

impl Scheduler {
    /// Decides what is to be done before the next pass. [`Scheduler::no_room`] is to be said before
    /// this is asked again.
    pub fn decide(&mut self, now_ms: u64, decisions: &mut Vec<Decision>) {
        if self.overdue_ms <= now_ms {
            self.expire(now_ms, decisions);
        }
        self.choose(now_ms);
        self.holding = self.assign(now_ms);
        for (&ticket, entry) in &mut self.entries {
            if entry.stage == Stage::Running && !entry.chosen && !entry.ending {
                entry.stage = Stage::Parked;
                decisions.push(Decision::Park(ticket));
            }
        }
        for candidate in &self.candidates {
            let Some(entry) = self.entries.get_mut(&candidate.ticket) else {
                continue;
            };
            match entry.stage {
                Stage::Parked if entry.chosen => {
                    entry.stage = Stage::Running;
                    decisions.push(Decision::Resume(candidate.ticket));
                }
                Stage::Ready if entry.chosen => {
                    entry.stage = Stage::Running;
                    self.waiting = self.waiting.saturating_sub(1);
                    self.clients.started(entry.client);
                    decisions.push(Decision::Start(candidate.ticket));
                }
                _ => {}
            }
        }
        self.rested_ms = self.rested_ms(now_ms);
        let computes = |entry: &Entry| {
            entry.priority == Priority::Batch && entry.stage == Stage::Running && !entry.ending
        };
        self.batch_computes = self.entries.values().any(computes);
    }

    /// Gives up what is too late, and notes when to look again.
    fn expire(&mut self, now_ms: u64, decisions: &mut Vec<Decision>) {
        let first = decisions.len();
        let mut next_ms = u64::MAX;
        for (&ticket, entry) in &self.entries {
            let Some(deadline_ms) = entry.deadline_ms.filter(|_| !entry.ending) else {
                continue;
            };
            let latest_ms = self.latest_start_ms(entry);
            if !entry.stage.waits() && deadline_ms <= now_ms {
                decisions.push(Decision::Stop(ticket));
            } else if entry.stage.waits() && deadline_ms <= now_ms {
                decisions.push(Decision::Expire(ticket, Expiry::Passed));
            } else if entry.stage.waits() && latest_ms < now_ms {
                decisions.push(Decision::Expire(ticket, Expiry::CannotBeMet));
            } else {
                // Estimates change: what could not be met at this time may have become faster.
                next_ms = next_ms.min(latest_ms.max(now_ms + 1));
            }
        }
        self.overdue_ms = next_ms;
        for &decision in decisions.iter().skip(first) {
            match decision {
                Decision::Stop(ticket) => {
                    if let Some(entry) = self.entries.get_mut(&ticket) {
                        entry.ending = true;
                    }
                }
                Decision::Expire(ticket, _) => self.forget(now_ms, ticket),
                _ => {}
            }
        }
    }

    /// Gathers those that could take part, in order. Of those that are ready and no alarms no more
    /// than could begin: there may be many.
    fn choose(&mut self, now_ms: u64) {
        self.candidates.clear();
        self.ready.clear();
        for (&ticket, entry) in &mut self.entries {
            entry.chosen = false;
            if entry.ending || matches!(entry.stage, Stage::Submitted | Stage::Preparing) {
                continue;
            }
            let waiting = entry.waiting(ticket, &self.clients);
            let candidate = Candidate::new(ticket, entry, &waiting, now_ms);
            if entry.stage == Stage::Ready && entry.priority != Priority::Alarm {
                self.ready.push(candidate);
            } else {
                self.candidates.push(candidate);
            }
        }
        // Those that go first may have to wait nevertheless if they are restrained.
        let most = if self.restraint == Restraint::default() {
            usize::try_from(self.config.places.all()).unwrap_or(usize::MAX)
        } else {
            usize::MAX
        };
        if self.ready.len() > most {
            self.ready.select_nth_unstable(most);
            self.ready.truncate(most);
        }
        self.candidates.append(&mut self.ready);
        self.candidates.sort_unstable();
    }

    /// Gives places away. Says whether somebody has none because of alarms.
    fn assign(&mut self, now_ms: u64) -> bool {
        let places = self.config.places;
        let may_hold = self.hold.wait_ms(HOLD, 1, now_ms) == 0;
        let mut held = false;
        let mut given = Given {
            resident: self
                .entries
                .values()
                .filter(|entry| !entry.stage.waits() && !entry.ending)
                .filter(|entry| entry.priority != Priority::Alarm)
                .map(|entry| entry.choices)
                .fold(0, u32::saturating_add),
            ..Given::default()
        };
        let batch_may = match self.batch() {
            Throttle::None => true,
            Throttle::Slow => self.on_duty(now_ms),
            Throttle::Hold => false,
        };
        let refuses = self.restraint.refuses;
        for candidate in &self.candidates {
            let Some(entry) = self.entries.get_mut(&candidate.ticket) else {
                continue;
            };
            let needed = entry.choices;
            let begins = entry.stage == Stage::Ready;
            let batch = entry.priority == Priority::Batch;
            // Nobody waits for those that are restrained.
            if (batch && !batch_may) || (begins && refuses.turns_away(entry.priority)) {
                continue;
            }
            if entry.blocked {
                given.full = true;
                continue;
            }
            if entry.priority == Priority::Alarm {
                let fit = given.alarms.saturating_add(needed) <= places.alarms_max();
                if fit && !(begins && given.full_of_alarms) {
                    entry.chosen = true;
                    given.alarms += needed;
                    given.alarm = true;
                    given.reads_alarm |= !entry.read;
                } else {
                    // The place that alarms leave is for others nevertheless.
                    given.full_of_alarms = true;
                }
                continue;
            }
            // What another lacks is not taken by those behind it. Alarms may: what is kept for them holds several.
            if begins && given.full {
                continue;
            }
            if may_hold && (given.reads_alarm || (given.alarm && batch)) {
                held = true;
                continue;
            }
            let beyond = given.alarms.saturating_sub(places.for_alarms);
            let free = places.shared.saturating_sub(beyond);
            let others = given.others.saturating_add(needed);
            let mut fit = others <= free;
            if begins {
                let fresh = batch && candidate.rank == rank(Priority::Batch);
                let resident_max = if fresh {
                    places.shared
                } else {
                    places.others_max()
                };
                fit &= given.resident.saturating_add(needed) <= resident_max;
            }
            if fit {
                entry.chosen = true;
                given.others += needed;
                if begins {
                    given.resident += needed;
                }
            } else if begins {
                given.full = true;
            }
        }
        held
    }

    /// How far batch work gives way. Where others wait for room that it may have, it is not held, so that it comes to an end.
    fn batch(&self) -> Throttle {
        let mut entries = self.entries.values();
        match self.restraint.batch {
            Throttle::Hold
                if entries.any(|entry| entry.blocked && entry.priority != Priority::Batch) =>
            {
                Throttle::Slow
            }
            throttle => throttle,
        }
    }

    /// Whether batch work that is to be slow may compute. When it has computed for as long as it may at once, it rests until
    /// it may for as long again.
    fn on_duty(&mut self, now_ms: u64) -> bool {
        let wanted = if self.resting { DUTY.burst } else { 1 };
        let wait_ms = self.duty.wait_ms(DUTY, wanted, now_ms);
        self.resting = wait_ms > 0;
        wait_ms == 0
    }

    /// When batch work that rests goes on, if there is any.
    fn rested_ms(&mut self, now_ms: u64) -> u64 {
        if self.batch() != Throttle::Slow || !self.resting {
            return u64::MAX;
        }
        let mut entries = self.entries.values();
        let waits = |entry: &Entry| {
            entry.priority == Priority::Batch
                && matches!(entry.stage, Stage::Parked | Stage::Ready)
                && !entry.ending
        };
        if !entries.any(waits) {
            return u64::MAX;
        }
        let wait_ms = self.duty.wait_ms(DUTY, DUTY.burst, now_ms);
        now_ms.saturating_add(wait_ms.max(1))
    }
}
