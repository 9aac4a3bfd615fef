//! Which of several requests goes first.
//!
//! By class, then by the earliest deadline, then whose client has been served least, then who has
//! waited longest. Who has waited for [`patience_ms`] counts as one whose deadline was then, and as
//! interactive work if it is batch work, so that nobody starves under a stream of others; nothing
//! ever counts as an alarm but an alarm.
//!
//! Invariant: for any one time the order is total, so exactly one request is first.

use core::cmp::Ordering;

use andon_wire::Priority;

/// How long a request of a class waits before it goes before others of the class that have time.
/// People give up on a page after half a minute; batch work has no reader.
#[must_use]
pub const fn patience_ms(priority: Priority) -> u64 {
    match priority {
        Priority::Alarm => 5_000,
        Priority::Interactive => 30_000,
        Priority::Batch => 60_000,
    }
}

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How urgent it is.
    pub priority: Priority,
    /// When its answer becomes worthless.
    pub deadline_ms: Option<u64>,
    /// Since when it waits.
    pub since_ms: u64,
    /// How much its client has been served.
    pub served: u64,
    /// A number that later arrivals have a higher one of; settles what is equal otherwise.
    pub ticket: u64,
}

/// Rank of a class: the lower goes first.
#[must_use]
pub const fn rank(priority: Priority) -> u8 {
    match priority {
        Priority::Alarm => 0,
        Priority::Interactive => 1,
        Priority::Batch => 2,
    }
}

impl Waiting {
    /// Whether the request's answer would be worthless by now.
    #[must_use]
    pub fn expired(&self, now_ms: u64) -> bool {
        self.deadline_ms.is_some_and(|deadline| deadline <= now_ms)
    }

    /// Whether it has waited for so long that it goes before others.
    #[must_use]
    pub const fn aged(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= patience_ms(self.priority)
    }

    /// Its rank at `now_ms`, and the deadline that it is ordered by.
    #[must_use]
    pub fn standing(&self, now_ms: u64) -> (u8, u64) {
        let deadline_ms = self.deadline_ms.unwrap_or(u64::MAX);
        if !self.aged(now_ms) {
            return (rank(self.priority), deadline_ms);
        }
        let aged_ms = self.since_ms.saturating_add(patience_ms(self.priority));
        let rank = rank(self.priority).min(rank(Priority::Interactive));
        (rank, deadline_ms.min(aged_ms))
    }

    /// What requests are ordered by at `now_ms`, smallest first.
    fn key(&self, now_ms: u64) -> (u8, u64, u64, u64, u64) {
        let (rank, deadline_ms) = self.standing(now_ms);
        (rank, deadline_ms, self.served, self.since_ms, self.ticket)
    }

    /// Which of two requests goes first at `now_ms`: `Less` when `self` does.
    #[must_use]
    pub fn order(&self, other: &Self, now_ms: u64) -> Ordering {
        self.key(now_ms).cmp(&other.key(now_ms))
    }
}
