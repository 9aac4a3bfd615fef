//! `[models]`: the models that the daemon keeps, and who may change them.

use std::path::PathBuf;

use serde::Deserialize;

use super::Problems;
use andon_wire::limits::MODEL_BYTES_MAX;

/// Most groups that may be named.
const GROUPS_MAX: usize = 16;

/// `[models]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelsConfig {
    /// Where they are kept.
    pub dir: PathBuf,
    /// Groups whose members may add, remove and verify models, beside root and the daemon's own user.
    pub admin_groups: Vec<String>,
    /// Largest model that is taken, all its files together.
    pub bytes_max: u64,
    /// Room on the disk that no model may take.
    pub free_bytes_min: u64,
    /// Whether tasks that come with the served model are served too; those of this file win.
    pub bundle_tasks: bool,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        ModelsConfig {
            dir: PathBuf::from("/var/lib/andon/models"),
            admin_groups: Vec::new(),
            bytes_max: 64 << 30,
            free_bytes_min: 256 << 20,
            bundle_tasks: false,
        }
    }
}

impl ModelsConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.dir.is_absolute(),
            "models.dir",
            "is not an absolute path",
            "begin it with /",
        );
        problems.require(
            self.admin_groups.len() <= GROUPS_MAX
                && self.admin_groups.iter().all(|name| !name.is_empty()),
            "models.admin-groups",
            "is not a list of groups",
            "name at most 16",
        );
        problems.within("models.bytes-max", self.bytes_max, 1..=MODEL_BYTES_MAX);
        problems.within(
            "models.free-bytes-min",
            self.free_bytes_min,
            0..=MODEL_BYTES_MAX,
        );
    }
}
