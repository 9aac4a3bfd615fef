//! Which of the waiting requests goes next.
//!
//! By class, then by the earliest deadline, then by arrival. Batch work that has waited for
//! [`BATCH_AGES_MS`] counts as interactive work whose deadline has come, so that it does not
//! starve under a stream of interactive requests; nothing ever counts as an alarm but an alarm.
//!
//! Invariant: for any one time the order is total, so exactly one request is next.

use core::cmp::Ordering;

use andon_wire::Priority;

/// How long batch work waits before it counts as interactive work.
pub const BATCH_AGES_MS: u64 = 60_000;

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How urgent it is.
    pub priority: Priority,
    /// When its answer becomes worthless.
    pub deadline_ms: Option<u64>,
    /// When it arrived.
    pub arrival_ms: u64,
    /// A number that later arrivals have a higher one of; settles what arrived in one millisecond.
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

    /// What requests are ordered by at `now_ms`, smallest first.
    fn key(&self, now_ms: u64) -> (u8, u64, u64, u64) {
        let aged_ms = self.arrival_ms.saturating_add(BATCH_AGES_MS);
        let deadline_ms = self.deadline_ms.unwrap_or(u64::MAX);
        let (priority, deadline_ms) = match self.priority {
            Priority::Batch if now_ms.saturating_sub(self.arrival_ms) >= BATCH_AGES_MS => {
                (Priority::Interactive, deadline_ms.min(aged_ms))
            }
            priority => (priority, deadline_ms),
        };
        (rank(priority), deadline_ms, self.arrival_ms, self.ticket)
    }

    /// Which of two requests goes first at `now_ms`: `Less` when `self` does.
    #[must_use]
    pub fn order(&self, other: &Self, now_ms: u64) -> Ordering {
        self.key(now_ms).cmp(&other.key(now_ms))
    }
}

/// Position in `waiting` of the request that goes next at `now_ms`, or `None` when there is none.
/// Looks at each once: the order shifts with time, which a heap could not follow, and the queue is
/// bounded to a size at which looking is cheaper than keeping order.
pub fn next<'a>(waiting: impl IntoIterator<Item = &'a Waiting>, now_ms: u64) -> Option<usize> {
    waiting
        .into_iter()
        .enumerate()
        .min_by(|(_, a), (_, b)| a.order(b, now_ms))
        .map(|(index, _)| index)
}

/// How many of `waiting` go before `new` at `now_ms`.
pub fn ahead<'a>(
    waiting: impl IntoIterator<Item = &'a Waiting>,
    new: &Waiting,
    now_ms: u64,
) -> usize {
    waiting
        .into_iter()
        .filter(|one| one.order(new, now_ms) == Ordering::Less)
        .count()
}
