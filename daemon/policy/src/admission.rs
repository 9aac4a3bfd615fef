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

/// What is turned away because memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refuses {
    /// Nothing.
    #[default]
    Nothing,
    /// Batch work.
    Batch,
    /// Batch and interactive work.
    AllButAlarms,
}

impl Refuses {
    /// Whether that is so for a request of this class.
    #[must_use]
    pub const fn turns_away(self, priority: Priority) -> bool {
        match priority {
            Priority::Alarm => false,
            Priority::Interactive => matches!(self, Self::AllButAlarms),
            Priority::Batch => matches!(self, Self::Batch | Self::AllButAlarms),
        }
    }
}

/// What the daemon is doing when a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Whether requests are taken at all.
    pub phase: Phase,
    /// Requests that wait, of any class.
    pub waiting: u32,
    /// Requests of this client that wait or run.
    pub client_open: u32,
    /// Whether this client asks too often, or for too much.
    pub throttled: Option<Throttled>,
    /// What is not taken because memory is short.
    pub refuses: Refuses,
    /// How long the request would wait for its turn; `None` when there is nothing to judge by, and
    /// then nothing is refused on an estimate.
    pub wait_ms: Option<u64>,
    /// In how long one of those that wait or run will have ended.
    pub turn_ms: u64,
}

/// A client asks too often, or for too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// Of what.
    pub reason: Reason,
    /// When it may ask again.
    pub wait_ms: u64,
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
    /// The deadline would be over before this machine can have answered.
    #[error("the deadline would pass before this gateway can answer, even if it began at once")]
    TooSlow,
    /// The client has too many open requests.
    #[error("this client has as many open requests as it may have")]
    ClientFull,
    /// The client asks too often.
    #[error("this client has asked as often as it may for now")]
    RequestRate,
    /// The client raises alarms too often.
    #[error("this client has raised as many alarms as it may for now")]
    AlarmRate,
    /// The client was given as many tokens as it may have.
    #[error("this client has had as many tokens as it may for now")]
    TokenRate,
    /// The queue is full.
    #[error("the queue is full")]
    QueueFull,
    /// Memory is short.
    #[error("memory is too short on this gateway to take on more work of this class")]
    Pressed,
}

impl Reason {
    /// The code that goes with it in a reply.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Starting | Self::Draining => ErrorCode::Unavailable,
            Self::TokensMax => ErrorCode::InvalidRequest,
            Self::DeadlinePassed | Self::DeadlineTooShort | Self::TooSlow => {
                ErrorCode::DeadlineExceeded
            }
            Self::ClientFull
            | Self::RequestRate
            | Self::AlarmRate
            | Self::TokenRate
            | Self::QueueFull
            | Self::Pressed => ErrorCode::Busy,
        }
    }
}

/// A request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why; its text is the reply's message.
    pub reason: Reason,
    /// When trying again may help, in milliseconds from now; `None` when it will not.
    pub retry_after_ms: Option<u32>,
}

impl Refusal {
    /// For good.
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        Self {
            reason,
            retry_after_ms: None,
        }
    }

    /// Until about `wait_ms` from now.
    #[must_use]
    pub fn until(reason: Reason, wait_ms: u64) -> Self {
        let wait_ms = u32::try_from(wait_ms).unwrap_or(u32::MAX);
        Self {
            reason,
            retry_after_ms: Some(wait_ms.clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end())),
        }
    }
}

/// Shortest and longest hint for another try. The shortest keeps a client from hammering, the
/// longest from giving up on a gateway that may have recovered.
pub const RETRY_AFTER_MS: core::ops::RangeInclusive<u32> = 100..=60_000;

/// A model maps in well under a second, and is then tried once.
const STARTING_RETRY_MS: u64 = 1_000;

/// Systemd restarts a service within a few seconds.
const DRAINING_RETRY_MS: u64 = 5_000;

/// How short memory is changes over tens of seconds.
const PRESSED_RETRY_MS: u64 = 10_000;

/// Decides about a request that arrives at `now_ms`.
///
/// # Errors
/// Why it is turned away.
pub fn admit(bounds: &Bounds, load: &Load, demand: &Demand, now_ms: u64) -> Result<(), Refusal> {
    match load.phase {
        Phase::Starting => return Err(Refusal::until(Reason::Starting, STARTING_RETRY_MS)),
        Phase::Draining => return Err(Refusal::until(Reason::Draining, DRAINING_RETRY_MS)),
        Phase::Serving => {}
    }
    if demand
        .tokens_max
        .is_some_and(|tokens| tokens > bounds.tokens_max)
    {
        return Err(Refusal::of(Reason::TokensMax));
    }
    if demand
        .deadline_ms
        .is_some_and(|deadline| deadline <= now_ms)
    {
        return Err(Refusal::of(Reason::DeadlinePassed));
    }
    // Who has asked for much else may still raise an alarm.
    let beyond = match demand.priority {
        Priority::Alarm => bounds.waiting_kept_for_alarms,
        Priority::Interactive | Priority::Batch => 0,
    };
    if load.client_open >= bounds.client_open_max.saturating_add(beyond) {
        return Err(Refusal::until(Reason::ClientFull, load.turn_ms));
    }
    if let Some(throttled) = load.throttled {
        return Err(Refusal::until(throttled.reason, throttled.wait_ms));
    }
    let places = match demand.priority {
        Priority::Alarm => bounds.waiting_max,
        Priority::Interactive | Priority::Batch => bounds
            .waiting_max
            .saturating_sub(bounds.waiting_kept_for_alarms),
    };
    if load.waiting >= places {
        return Err(Refusal::until(Reason::QueueFull, load.turn_ms));
    }
    if load.refuses.turns_away(demand.priority) {
        return Err(Refusal::until(Reason::Pressed, PRESSED_RETRY_MS));
    }
    // An alarm is answered even if an estimate says that it comes late.
    if demand.priority != Priority::Alarm
        && let Some(deadline_ms) = demand.deadline_ms
        && let Some(wait_ms) = load.wait_ms
        && now_ms.saturating_add(wait_ms) >= deadline_ms
    {
        return Err(Refusal::until(Reason::DeadlineTooShort, wait_ms));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Bounds, Demand, Load, Phase, Reason, Refusal, Refuses, Throttled, admit};
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
        client_open: 0,
        throttled: None,
        refuses: Refuses::Nothing,
        wait_ms: None,
        turn_ms: 0,
    };
    const PLAIN: Demand = Demand {
        priority: Priority::Interactive,
        tokens_max: None,
        deadline_ms: None,
    };

    fn reason(load: &Load, demand: &Demand) -> Option<Reason> {
        let admitted = admit(&BOUNDS, load, demand, 1_000);
        admitted.err().map(|refusal| refusal.reason)
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
            let refusal = admit(&BOUNDS, &Load { phase, ..IDLE }, &PLAIN, 0).expect_err("closed");
            assert_eq!(refusal.reason.code(), ErrorCode::Unavailable);
            assert!(refusal.retry_after_ms.is_some());
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
        let load = |client_open| Load {
            client_open,
            ..IDLE
        };
        assert_eq!(reason(&load(3), &PLAIN), None);
        assert_eq!(reason(&load(4), &PLAIN), Some(Reason::ClientFull));
    }

    #[test]
    fn who_asks_too_often_is_told_when_to_ask_again() {
        let throttled = Some(Throttled {
            reason: Reason::RequestRate,
            wait_ms: 1_234,
        });
        let load = Load { throttled, ..IDLE };
        assert_eq!(
            admit(&BOUNDS, &load, &PLAIN, 0),
            Err(Refusal {
                reason: Reason::RequestRate,
                retry_after_ms: Some(1_234)
            })
        );
    }

    #[test]
    fn while_memory_is_short_alarms_are_taken_in_longest() {
        for (refuses, batch, interactive) in [
            (Refuses::Nothing, false, false),
            (Refuses::Batch, true, false),
            (Refuses::AllButAlarms, true, true),
        ] {
            let load = Load { refuses, ..IDLE };
            for (priority, refused) in [
                (Priority::Batch, batch),
                (Priority::Interactive, interactive),
                (Priority::Alarm, false),
            ] {
                let expected = refused.then_some(Reason::Pressed);
                let demand = Demand { priority, ..PLAIN };
                assert_eq!(reason(&load, &demand), expected, "{refuses:?} {priority:?}");
            }
        }
    }

    #[test]
    fn a_deadline_that_the_queue_would_eat_is_refused_at_once() {
        let demand = Demand {
            deadline_ms: Some(2_000),
            ..PLAIN
        };
        let load = |wait_ms| Load { wait_ms, ..IDLE };
        assert_eq!(
            reason(&load(Some(1_000)), &demand),
            Some(Reason::DeadlineTooShort)
        );
        assert_eq!(reason(&load(Some(999)), &demand), None);
        assert_eq!(reason(&load(None), &demand), None);
        let alarm = Demand {
            priority: Priority::Alarm,
            ..demand
        };
        assert_eq!(reason(&load(Some(1_000)), &alarm), None);
    }
}
