//! `[cache]`: packed weights, which are made of models, and what was computed for prompts; both can be made again.

use std::path::PathBuf;

use andon_wire::limits::MODEL_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::Problems;

/// Which models are packed, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackWhen {
    /// None; packs that are there are not used.
    Never,
    /// Those that are added, while they are tried; one that has no pack when it is served gets it in idle time.
    Added,
    /// Those, and a model that is served by its path, in idle time.
    Idle,
}

/// `[cache]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct CacheConfig {
    /// Where packs are kept.
    pub dir: PathBuf,
    /// Which models are packed.
    pub pack: PackWhen,
    /// Most bytes of all packs together.
    pub bytes_max: u64,
    /// Room on the disk that nothing here may take.
    pub free_bytes_min: u64,
    /// Whether what was computed for prompts is kept for later ones that begin alike, also for the next start
    /// ([`super::Config::keeps_pages`]).
    pub kv_keep: Option<bool>,
    /// Most bytes of that.
    pub kv_bytes_max: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            dir: PathBuf::from("/var/cache/andon"),
            pack: PackWhen::Added,
            bytes_max: 64 << 30,
            free_bytes_min: 256 << 20,
            kv_keep: None,
            kv_bytes_max: 1 << 30,
        }
    }
}

impl CacheConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.dir.is_absolute(),
            "cache.dir",
            "is not an absolute path",
            "begin it with /",
        );
        problems.within("cache.bytes-max", self.bytes_max, 1..=MODEL_BYTES_MAX);
        problems.within(
            "cache.free-bytes-min",
            self.free_bytes_min,
            0..=MODEL_BYTES_MAX,
        );
        problems.within("cache.kv-bytes-max", self.kv_bytes_max, 1..=MODEL_BYTES_MAX);
    }
}
