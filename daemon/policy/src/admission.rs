//! Whether a request is taken in or turned away at the door.
//!
//! Invariant: what [`admit`] lets in never brings the queue over [`Bounds::waiting_max`] nor a
//! client over [`Bounds::client_open_max`], and requests that are no alarms never take the places
//! kept for alarms. A refusal says when trying again may help, whenever it may.

use andon_wire::{ErrorCode, Priority};

/// How much the daemon takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most requests that wait.
    pub waiting_max: u32,
    /// How many of those places only alarms may take.
    pub waiting_kept_for_alarms: u32,
    /// Most requests of one client that wait or run.
    pub client_open_max: u32,
    /// Most tokens that an answer may be asked to have.
    pub tokens_max: u32,
}

/// Whether the daemon takes requests at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The model is not loaded yet.
    Starting,
    /// Requests are answered.
    Serving,
    /// The daemon is about to stop.
    Draining,
}

/// What the daemon is doing when a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Whether requests are taken at all.
    pub phase: Phase,
    /// Requests that wait, of any class.
    pub waiting: u32,
    /// Requests that wait and go before the new one.
    pub ahead: u32,
    /// Requests answered at once, at most.
    pub active_max: u32,
    /// Requests of this client that wait or run.
    pub client_open: u32,
    /// How long a request took of late, from its start to its end; `None` when there is nothing to
    /// judge by, and then nothing is refused on an estimate.
    pub service_ms: Option<u32>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// How urgent it is.
    pub priority: Priority,
    /// The wish for at most so many tokens.
    pub tokens_max: Option<u32>,
    /// When the answer becomes worthless.
    pub deadline_ms: Option<u64>,
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The model is not loaded yet.
    #[error("the model is still being loaded")]
    Starting,
    /// The daemon is about to stop.
    #[error("the daemon is stopping")]
    Draining,
    /// More tokens are asked for than this gateway allows.
    #[error("more tokens are asked for than this gateway allows in one answer")]
    TokensMax,
    /// The deadline is over.
    #[error("the deadline passed before the request arrived")]
    DeadlinePassed,
    /// The deadline would be over before the request's turn comes.
    #[error("the deadline would pass while the request waits for its turn")]
    DeadlineTooShort,
    /// The client has too many open requests.
    #[error("this client has as many open requests as it may have")]
    ClientFull,
    /// The queue is full.
    #[error("the queue is full")]
    QueueFull,
}

impl Reason {
    /// The code that goes with it in a reply.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Starting | Self::Draining => ErrorCode::Unavailable,
            Self::TokensMax => ErrorCode::InvalidRequest,
            Self::DeadlinePassed | Self::DeadlineTooShort => ErrorCode::DeadlineExceeded,
            Self::ClientFull | Self::QueueFull => ErrorCode::Busy,
        }
    }
}

/// What is decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take it in.
    Admit,
    /// Turn it away.
    Refuse {
        /// The code of the reply.
        code: ErrorCode,
        /// Why; its text is the reply's message.
        reason: Reason,
        /// When trying again may help, in milliseconds from now; `None` when it will not.
        retry_after_ms: Option<u32>,
    },
}

/// Shortest and longest hint for another try. The shortest keeps a client from hammering, the
/// longest from giving up on a gateway that may have recovered.
pub const RETRY_AFTER_MS: core::ops::RangeInclusive<u32> = 100..=60_000;

/// A model maps in well under a second, and is then tried once.
const STARTING_RETRY_MS: u32 = 1_000;

/// Systemd restarts a service within a few seconds.
const DRAINING_RETRY_MS: u32 = 5_000;

/// Decides about a request that arrives at `now_ms`.
#[must_use]
pub fn admit(bounds: &Bounds, load: &Load, demand: &Demand, now_ms: u64) -> Decision {
    match load.phase {
        Phase::Starting => return refuse(Reason::Starting, Some(STARTING_RETRY_MS)),
        Phase::Draining => return refuse(Reason::Draining, Some(DRAINING_RETRY_MS)),
        Phase::Serving => {}
    }
    if demand
        .tokens_max
        .is_some_and(|tokens| tokens > bounds.tokens_max)
    {
        return refuse(Reason::TokensMax, None);
    }
    if demand
        .deadline_ms
        .is_some_and(|deadline| deadline <= now_ms)
    {
        return refuse(Reason::DeadlinePassed, None);
    }
    if load.client_open >= bounds.client_open_max {
        return refuse(Reason::ClientFull, retry_after(load, load.client_open));
    }
    let places = match demand.priority {
        Priority::Alarm => bounds.waiting_max,
        Priority::Interactive | Priority::Batch => bounds
            .waiting_max
            .saturating_sub(bounds.waiting_kept_for_alarms),
    };
    if load.waiting >= places {
        return refuse(Reason::QueueFull, retry_after(load, load.waiting));
    }
    // An alarm is answered even if an estimate says that it comes late.
    if demand.priority != Priority::Alarm
        && let Some(deadline_ms) = demand.deadline_ms
        && let Some(wait_ms) = wait_ms(load, load.ahead)
        && now_ms.saturating_add(wait_ms) >= deadline_ms
    {
        return refuse(Reason::DeadlineTooShort, retry_after(load, load.ahead));
    }
    Decision::Admit
}

fn refuse(reason: Reason, retry_after_ms: Option<u32>) -> Decision {
    Decision::Refuse {
        code: reason.code(),
        reason,
        retry_after_ms,
    }
}

/// How long `count` requests take to get through, by what requests took of late.
fn wait_ms(load: &Load, count: u32) -> Option<u64> {
    let service_ms = u64::from(load.service_ms?);
    Some(u64::from(count) * service_ms / u64::from(load.active_max.max(1)))
}

/// When one of `count` requests will have ended.
fn retry_after(load: &Load, count: u32) -> Option<u32> {
    let wait_ms = wait_ms(load, count.min(load.active_max)).unwrap_or(0);
    let wait_ms = u32::try_from(wait_ms).unwrap_or(u32::MAX);
    Some(wait_ms.clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end()))
}

#[cfg(test)]
mod tests {
    use super::{Bounds, Decision, Demand, Load, Phase, Reason, admit};
    use andon_wire::{ErrorCode, Priority};

    const BOUNDS: Bounds = Bounds {
        waiting_max: 8,
        waiting_kept_for_alarms: 2,
        client_open_max: 4,
        tokens_max: 512,
    };
    const IDLE: Load = Load {
        phase: Phase::Serving,
        waiting: 0,
        ahead: 0,
        active_max: 2,
        client_open: 0,
        service_ms: None,
    };
    const PLAIN: Demand = Demand {
        priority: Priority::Interactive,
        tokens_max: None,
        deadline_ms: None,
    };

    fn reason(load: &Load, demand: &Demand) -> Option<Reason> {
        match admit(&BOUNDS, load, demand, 1_000) {
            Decision::Admit => None,
            Decision::Refuse { reason, .. } => Some(reason),
        }
    }

    #[test]
    fn the_idle_daemon_takes_everything_within_limits() {
        for priority in Priority::ALL {
            let demand = Demand {
                priority,
                tokens_max: Some(512),
                deadline_ms: Some(1_001),
            };
            assert_eq!(reason(&IDLE, &demand), None);
        }
        let greedy = Demand {
            tokens_max: Some(513),
            ..PLAIN
        };
        assert_eq!(reason(&IDLE, &greedy), Some(Reason::TokensMax));
        let late = Demand {
            deadline_ms: Some(1_000),
            ..PLAIN
        };
        assert_eq!(reason(&IDLE, &late), Some(Reason::DeadlinePassed));
    }

    #[test]
    fn a_daemon_that_starts_or_stops_takes_nothing() {
        for phase in [Phase::Starting, Phase::Draining] {
            let decision = admit(&BOUNDS, &Load { phase, ..IDLE }, &PLAIN, 0);
            assert!(matches!(
                decision,
                Decision::Refuse {
                    code: ErrorCode::Unavailable,
                    retry_after_ms: Some(_),
                    ..
                }
            ));
        }
    }

    #[test]
    fn the_last_places_are_kept_for_alarms() {
        let alarm = Demand {
            priority: Priority::Alarm,
            ..PLAIN
        };
        let full = Load { waiting: 6, ..IDLE };
        assert_eq!(reason(&Load { waiting: 5, ..IDLE }, &PLAIN), None);
        assert_eq!(reason(&full, &PLAIN), Some(Reason::QueueFull));
        assert_eq!(reason(&full, &alarm), None);
        assert_eq!(
            reason(&Load { waiting: 8, ..IDLE }, &alarm),
            Some(Reason::QueueFull)
        );
    }

    #[test]
    fn one_client_cannot_take_the_whole_queue() {
        assert_eq!(
            reason(
                &Load {
                    client_open: 3,
                    ..IDLE
                },
                &PLAIN
            ),
            None
        );
        assert_eq!(
            reason(
                &Load {
                    client_open: 4,
                    ..IDLE
                },
                &PLAIN
            ),
            Some(Reason::ClientFull)
        );
    }

    #[test]
    fn a_deadline_that_the_queue_would_eat_is_refused_at_once() {
        let demand = Demand {
            deadline_ms: Some(2_000),
            ..PLAIN
        };
        let load = Load {
            waiting: 4,
            ahead: 4,
            service_ms: Some(500),
            ..IDLE
        };
        assert_eq!(reason(&load, &demand), Some(Reason::DeadlineTooShort));
        assert_eq!(reason(&Load { ahead: 3, ..load }, &demand), None);
        assert_eq!(
            reason(
                &Load {
                    service_ms: None,
                    ..load
                },
                &demand
            ),
            None
        );
        let alarm = Demand {
            priority: Priority::Alarm,
            ..demand
        };
        assert_eq!(reason(&load, &alarm), None);
    }
}
