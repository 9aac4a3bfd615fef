//! What is not as it should be although the daemon goes on, and what memory it has.

use heapless::Vec;
use serde::{Deserialize, Serialize};

/// Something that the daemon does without, or does less of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degraded {
    /// The model cannot be served any more.
    NotServing,
    /// What is being answered makes no progress.
    Stalled,
    /// Batch work gives way to heat, power or a lack of memory.
    Throttled,
    /// Caches, and maybe models and work, give way to a lack of memory.
    MemoryShort,
    /// Requests cannot be kept: the disk fails, is full or may not be written.
    SpoolFailing,
    /// No more requests can be kept until answers are delivered.
    SpoolFull,
    /// What is computed for prompts cannot be kept: the disk fails, is full or may not be written.
    CacheFailing,
    /// The weights are read from the model's own file, which is slower.
    PackUnused,
    /// The draft model does not guess.
    DraftUnused,
    /// The broker is not connected.
    BrokerLost,
    /// A device that computed failed, and the processor goes on.
    BackendLost,
}

impl Degraded {
    /// How many there are.
    pub const COUNT: usize = 11;

    /// All of them; the worst first, but for those that came later.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotServing,
        Self::Stalled,
        Self::Throttled,
        Self::MemoryShort,
        Self::SpoolFailing,
        Self::SpoolFull,
        Self::CacheFailing,
        Self::PackUnused,
        Self::DraftUnused,
        Self::BrokerLost,
        Self::BackendLost,
    ];

    /// The word for it in JSON, in metrics and on the terminal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotServing => "not_serving",
            Self::Stalled => "stalled",
            Self::Throttled => "throttled",
            Self::MemoryShort => "memory_short",
            Self::SpoolFailing => "spool_failing",
            Self::SpoolFull => "spool_full",
            Self::CacheFailing => "cache_failing",
            Self::PackUnused => "pack_unused",
            Self::DraftUnused => "draft_unused",
            Self::BrokerLost => "broker_lost",
            Self::BackendLost => "backend_lost",
        }
    }
}

/// The budget of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Most bytes that are promised in all; none if nothing bounds them.
    pub budget_bytes: Option<u64>,
    /// Bytes that are promised.
    pub promised_bytes: u64,
    /// Bytes that could be promised now; none if nothing bounds them.
    pub left_bytes: Option<u64>,
}

/// What is not as it should be, and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// What the daemon does without, the worst first.
    pub degraded: Vec<Degraded, { Degraded::COUNT }>,
    /// The budget of memory.
    pub memory: MemoryStatus,
}

#[cfg(test)]
mod tests {
    use super::Degraded;

    #[test]
    fn all_are_told_apart() {
        for (index, mode) in Degraded::ALL.into_iter().enumerate() {
            assert_eq!(mode as usize, index);
            let same = |other: &&Degraded| other.as_str() == mode.as_str();
            assert_eq!(Degraded::ALL.iter().filter(same).count(), 1);
        }
    }
}
