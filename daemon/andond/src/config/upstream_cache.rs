//! `[upstream-cache]`: answers of upstream servers that are kept for those who ask the same again.

use serde::{Deserialize, Serialize};

use super::Problems;

/// `[upstream-cache]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpstreamCacheConfig {
    /// Whether any are.
    pub enabled: bool,
    /// Most of them.
    pub entries_max: usize,
    /// Most bytes of all of them.
    pub bytes_max: usize,
    /// How long one is kept.
    pub expire_s: u64,
    /// Whether only the client has it who asked first.
    pub per_client: bool,
}

impl Default for UpstreamCacheConfig {
    fn default() -> Self {
        UpstreamCacheConfig {
            enabled: false,
            entries_max: 1024,
            bytes_max: 16 << 20,
            expire_s: 3600,
            per_client: true,
        }
    }
}

impl UpstreamCacheConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within("upstream-cache.entries-max", self.entries_max, 1..=65_536);
        problems.within(
            "upstream-cache.bytes-max",
            self.bytes_max,
            64 << 10..=1 << 30,
        );
        problems.within("upstream-cache.expire-s", self.expire_s, 1..=30 * 86_400);
    }
}
