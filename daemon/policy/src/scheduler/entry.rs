//! What is known of one request.

use andon_wire::Priority;

use super::{Arrival, SLICE_MS, Ticket};
use crate::client::{ClientId, Clients};
use crate::queue::Waiting;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Submitted,
    Preparing,
    Ready,
    Running,
    Parked,
}

impl Stage {
    pub(super) const fn waits(self) -> bool {
        matches!(self, Self::Submitted | Self::Preparing | Self::Ready)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) client: ClientId,
    pub(super) priority: Priority,
    pub(super) deadline_ms: Option<u64>,
    /// Answers that are not complete, at least one until all are; and those asked for.
    pub(super) choices: u32,
    pub(super) choices_asked: u32,
    pub(super) stage: Stage,
    /// Known from `Ready` on; before, nothing and as many as are asked for.
    pub(super) prompt_tokens: u32,
    pub(super) tokens_max: u32,
    /// Whether the prompt is read; and, while it is not, whether the last pass read some of it.
    pub(super) read: bool,
    pub(super) took_part: bool,
    /// It is computed to see how fast that goes, whatever is expected.
    pub(super) tries: bool,
    /// Tokens of all its answers so far.
    pub(super) tokens: u32,
    /// Since when it waits: it has not computed for [`SLICE_MS`] since.
    since_ms: u64,
    /// What it computed since.
    computed_us: u64,
    /// It is over, but for the engine's saying so.
    pub(super) ending: bool,
    /// Its memory was given to an alarm, and it has not come again to where it was; and whether its prompt was read then.
    pub(super) aside: bool,
    pub(super) was_read: bool,
    /// It found no room, and nothing has ended since.
    pub(super) blocked: bool,
    /// Whether it is to take part in the next pass.
    pub(super) chosen: bool,
}

impl Entry {
    pub(super) fn new(arrival: &Arrival, now_ms: u64) -> Self {
        let choices = arrival.choices.max(1);
        Self {
            client: arrival.client,
            priority: arrival.priority,
            deadline_ms: arrival.deadline_ms,
            choices,
            choices_asked: choices,
            stage: Stage::Submitted,
            prompt_tokens: 0,
            tokens_max: arrival.tokens_max.unwrap_or(u32::MAX),
            read: false,
            took_part: false,
            tries: false,
            tokens: 0,
            since_ms: now_ms,
            computed_us: 0,
            ending: false,
            aside: false,
            was_read: false,
            blocked: false,
            chosen: false,
        }
    }

    /// What orders it.
    pub(super) fn waiting(&self, ticket: Ticket, clients: &Clients) -> Waiting {
        Waiting {
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            since_ms: self.since_ms,
            served: clients.served(self.client),
            ticket: ticket.0,
        }
    }

    /// Notes that it was in a pass.
    pub(super) const fn computed(&mut self, now_ms: u64, took_us: u64) {
        self.computed_us = self.computed_us.saturating_add(took_us);
        if self.computed_us >= SLICE_MS * 1000 {
            self.computed_us = 0;
            self.since_ms = now_ms;
        }
    }
}
