//! `[audit]`: the record of every answer, and how long it is kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Problems;

/// `[audit]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct AuditConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Where its files are; of this daemon alone.
    pub dir: PathBuf,
    /// Most bytes of a file; a new one is begun then, and with each day.
    pub file_bytes_max: u64,
    /// Most files kept.
    pub files_max: usize,
    /// Most bytes of all files.
    pub bytes_max: u64,
    /// For how many days a file is kept.
    pub days_max: u32,
    /// Whether requests are refused while nothing can be written.
    pub required: bool,
}

impl Default for AuditConfig {
    fn default() -> Self {
        AuditConfig {
            enabled: false,
            dir: PathBuf::from("/var/lib/andon/audit"),
            file_bytes_max: 8 << 20,
            files_max: 400,
            bytes_max: 256 << 20,
            days_max: 180,
            required: false,
        }
    }
}

impl AuditConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.dir.is_absolute(),
            "audit.dir",
            "is not an absolute path",
            "begin it with /",
        );
        problems.within(
            "audit.file-bytes-max",
            self.file_bytes_max,
            1 << 16..=1 << 30,
        );
        problems.within("audit.files-max", self.files_max, 2..=100_000);
        problems.within(
            "audit.bytes-max",
            self.bytes_max,
            2 * self.file_bytes_max.min(1 << 30)..=1 << 40,
        );
        problems.within("audit.days-max", self.days_max, 1..=36_500);
    }
}
