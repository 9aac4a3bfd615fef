//! `[memory]`: how much of the machine's the daemon may take.

use serde::{Deserialize, Serialize};

use super::Problems;

/// Smallest budget that is of any use, in bytes.
const BUDGET_BYTES_MIN: u64 = 16 << 20;
/// More than any machine has, in bytes.
const BYTES_MAX: u64 = 1 << 50;

/// `[memory]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryConfig {
    /// Most bytes of weights, caches and everything else together; unset, what the machine or the control group has, less
    /// the reserve.
    pub budget_bytes: Option<u64>,
    /// Bytes of the machine's memory that are left to others; unset, a sixteenth of it and at most 512 MiB.
    pub reserve_bytes: Option<u64>,
}

impl MemoryConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(bytes) = self.budget_bytes {
            problems.within("memory.budget-bytes", bytes, BUDGET_BYTES_MIN..=BYTES_MAX);
        }
        if let Some(bytes) = self.reserve_bytes {
            problems.within("memory.reserve-bytes", bytes, 0..=BYTES_MAX);
        }
    }
}
