//! `[spool]`: where requests are kept until their answers are delivered, and what may be kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Problems;

/// Whether requests survive the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durable {
    /// They do; without a folder to write to, the daemon does not start.
    On,
    /// They are in memory only.
    Off,
}

/// `[spool]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SpoolConfig {
    /// Whether requests survive the daemon.
    pub durable: Durable,
    /// Where they are kept.
    pub dir: PathBuf,
    /// A file of at least 32 random bytes that encrypts them.
    pub key_file: Option<PathBuf>,
    /// Most requests kept, those included that were delivered.
    pub requests_max: usize,
    /// Most bytes of what was asked and answered.
    pub bytes_max: u64,
    /// How long a delivered answer is kept for a request that comes again.
    pub keep_s: u64,
    /// How long a request is kept that cannot be answered, and an answer that cannot be delivered.
    pub age_max_s: u64,
    /// How long a request waits for a disk that fails, before it is refused.
    pub patience_ms: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        SpoolConfig {
            durable: Durable::On,
            dir: PathBuf::from("/var/lib/andon/spool"),
            key_file: None,
            requests_max: 4096,
            bytes_max: 64 << 20,
            keep_s: 3600,
            age_max_s: 7 * 86_400,
            patience_ms: 2000,
        }
    }
}

impl SpoolConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        let paths = [
            ("spool.dir", Some(&self.dir)),
            ("spool.key-file", self.key_file.as_ref()),
        ];
        for (key, path) in paths {
            problems.require(
                path.is_none_or(|path| path.is_absolute()),
                key,
                "is not an absolute path",
                "begin it with /",
            );
        }
        problems.require(
            self.key_file.is_none() || self.durable == Durable::On,
            "spool.key-file",
            "is of no use without a durable spool",
            "leave it out, or set spool.durable = \"on\"",
        );
        problems.within("spool.requests-max", self.requests_max, 1..=65_536);
        problems.within("spool.bytes-max", self.bytes_max, 1 << 20..=4 << 30);
        problems.within("spool.keep-s", self.keep_s, 0..=30 * 86_400);
        problems.within("spool.age-max-s", self.age_max_s, 60..=365 * 86_400);
        problems.within("spool.patience-ms", self.patience_ms, 100..=60_000);
    }
}
