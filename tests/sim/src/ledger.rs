//! What became of every request, and whether that is what was promised.

use andon_policy::scheduler::Ticket;
use andon_wire::Priority;

use crate::engine::Work;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was turned away at once, with a reason.
    Refused,
    /// The same once it was prepared.
    RefusedLate,
    /// It was answered in time.
    Answered,
    /// Its deadline passed while it waited, or could no longer be met.
    Expired,
    /// Its deadline passed while it was computed.
    Stopped,
    /// Its client gave it up.
    Cancelled,
    /// It waited when the daemon stopped.
    Closed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::RefusedLate,
        Self::Answered,
        Self::Expired,
        Self::Stopped,
        Self::Cancelled,
        Self::Closed,
    ];

    /// In a word or two.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::RefusedLate => "refused once prepared",
            Self::Answered => "answered",
            Self::Expired => "expired waiting",
            Self::Stopped => "stopped late",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
        }
    }
}

/// Where a request is, as far as the world can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting, from its admission on.
    Waiting,
    /// In the spool only, since the daemon was started again.
    Spooled,
    /// In the engine.
    Resident,
    /// Over.
    Ended(Outcome),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its client.
    pub client: usize,
    /// Its class.
    pub priority: Priority,
    /// When its answer becomes worthless.
    pub deadline_ms: Option<u64>,
    /// What it asks of the engine.
    pub work: Work,
    /// What it takes to prepare it.
    pub prepare_us: u64,
    /// Whether it is prepared.
    pub ready: bool,
    /// What the scheduler calls it.
    pub ticket: Option<Ticket>,
    /// Where it is.
    pub state: State,
    /// Its client has given it up.
    pub given_up: bool,
    /// When it last began to wait: its arrival, or the end of the last pass that it was in.
    pub since_us: u64,
    /// Whether work had to give way to heat or a lack of memory since.
    pub restrained: bool,
    /// How long it was in passes.
    pub computed_us: u64,
    /// Of an alarm.
    pub alarm: Alarm,
}

/// What is watched of an alarm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alarm {
    /// When it was ready.
    pub ready_us: u64,
    /// When the first pass with it began.
    pub first_us: Option<u64>,
    /// What the passes took that read its prompt.
    pub read_us: u64,
    /// By when it is to be ready, if nothing else may delay it.
    pub prepared_by_us: Option<u64>,
    /// How long it may wait for its first pass, if nothing else may delay it.
    pub wait_us_max: Option<u64>,
}

impl Request {
    /// Whether it is an alarm.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        self.priority == Priority::Alarm
    }

    /// When it has waited for so long that it goes before others which have time; never for an alarm.
    #[must_use]
    pub fn patient_until_us(&self) -> u64 {
        match self.priority {
            Priority::Alarm => u64::MAX,
            Priority::Interactive => self.since_us + 30_000_000,
            Priority::Batch => self.since_us + 60_000_000,
        }
    }

    /// Whether it is over.
    #[must_use]
    pub const fn ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }
}
