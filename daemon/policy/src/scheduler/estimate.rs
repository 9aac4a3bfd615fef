//! How long things will take, by what passes took of late.

use alloc::collections::BinaryHeap;
use core::cmp::{Ordering, Reverse};

use andon_wire::Priority;

use super::entry::{Entry, Stage};
use super::{Scheduler, Ticket};

impl Scheduler {
    /// Answers that a pass has, with those of a request that is not in passes.
    pub(super) fn answers_with(&self, entry: &Entry) -> u32 {
        let running = self
            .entries
            .values()
            .filter(|other| other.stage == Stage::Running);
        let others: u32 = running
            .map(|other| other.choices)
            .fold(entry.choices, u32::saturating_add);
        others.min(self.config.places.all())
    }

    /// How long a request will still compute, in passes of so many answers.
    pub(super) fn service_us(&self, entry: &Entry, answers: u32) -> Option<u64> {
        let prompt_tokens = if entry.read { 0 } else { entry.prompt_tokens };
        let each = entry.tokens / entry.choices_asked.max(1);
        let left = entry.tokens_max.saturating_sub(each);
        self.speeds
            .service_us(entry.priority, prompt_tokens, left, answers)
    }

    /// When a request that waits has to begin, so that its first token is there in time.
    pub(super) fn latest_start_ms(&self, entry: &Entry) -> u64 {
        let Some(deadline_ms) = entry.deadline_ms else {
            return u64::MAX;
        };
        // An alarm is answered even if an estimate says that it comes late.
        if entry.stage != Stage::Ready || entry.priority == Priority::Alarm || entry.tries {
            return deadline_ms;
        }
        let needed_us = self.speeds.first_token_us(entry.prompt_tokens);
        deadline_ms.saturating_sub(needed_us.unwrap_or(0) / 1000)
    }

    /// How long a request would wait for its turn, if that matters.
    pub(super) fn wait_ms(&self, ticket: Ticket, new: &Entry, now_ms: u64) -> Option<u64> {
        if new.deadline_ms.is_none() || new.priority == Priority::Alarm {
            return None;
        }
        let order = new.waiting(ticket, &self.clients);
        let (rank, _) = order.standing(now_ms);
        let answers = self.answers_with(new);
        let mut turns = Turns::new(self.config.places.shared);
        // Those of a lower rank make room.
        let resident = self.entries.values().filter(|entry| {
            let rank_of = || entry.waiting(ticket, &self.clients).standing(now_ms).0;
            !entry.stage.waits() && !entry.ending && rank_of() <= rank
        });
        for entry in resident {
            turns.take(entry.choices, self.service_us(entry, answers)?);
        }
        for (&other, entry) in &self.entries {
            if entry.stage.waits()
                && other != ticket
                && entry.waiting(other, &self.clients).order(&order, now_ms) == Ordering::Less
            {
                turns.take(entry.choices, self.service_us(entry, answers)?);
            }
        }
        Some(turns.next_us() / 1000)
    }

    /// In how long one of the requests that compute will have ended; 0 if there is nothing to judge by.
    pub(super) fn turn_ms(&self) -> u64 {
        let running = || {
            let all = self.entries.values();
            all.filter(|entry| entry.stage == Stage::Running)
        };
        let answers = running()
            .map(|entry| entry.choices)
            .fold(0, u32::saturating_add);
        let left_us = running().filter_map(|entry| self.service_us(entry, answers));
        left_us.min().unwrap_or(0) / 1000
    }
}

/// When places come free.
struct Turns {
    places: usize,
    /// Of each place that is taken.
    free_us: BinaryHeap<Reverse<u64>>,
}

impl Turns {
    fn new(places: u32) -> Self {
        Self {
            places: usize::try_from(places).unwrap_or(usize::MAX),
            free_us: BinaryHeap::new(),
        }
    }

    /// Has `count` places taken for so long, each as soon as there is one.
    fn take(&mut self, count: u32, us: u64) {
        for _ in 0..count {
            let from_us = self.next_us();
            if self.free_us.len() >= self.places {
                self.free_us.pop();
            }
            self.free_us.push(Reverse(from_us.saturating_add(us)));
        }
    }

    /// When the next comes free.
    fn next_us(&self) -> u64 {
        if self.free_us.len() < self.places {
            return 0;
        }
        self.free_us.peek().map_or(0, |Reverse(us)| *us)
    }
}
