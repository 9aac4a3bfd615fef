//! `[hardware]`: temperatures, power and memory of the machine, to which batch work gives way.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Problems;

/// `[hardware]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HardwareConfig {
    /// How often it is looked at; 0 is never.
    pub sample_ms: u64,
    /// Power of the machine above which batch work gives way; unset, none does.
    pub watts_max: Option<f64>,
    /// Where sysfs is.
    pub sys_dir: PathBuf,
    /// Where procfs is.
    pub proc_dir: PathBuf,
}

impl Default for HardwareConfig {
    fn default() -> Self {
        HardwareConfig {
            sample_ms: 1_000,
            watts_max: None,
            sys_dir: PathBuf::from("/sys"),
            proc_dir: PathBuf::from("/proc"),
        }
    }
}

impl HardwareConfig {
    /// How often the machine is looked at, if it is.
    pub fn interval(&self) -> Option<Duration> {
        (self.sample_ms > 0).then(|| Duration::from_millis(self.sample_ms))
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if self.sample_ms > 0 {
            problems.within("hardware.sample-ms", self.sample_ms, 100..=60_000);
        }
        if let Some(watts) = self.watts_max {
            problems.require(
                (0.1..=1_000_000.0).contains(&watts),
                "hardware.watts-max",
                "is not between 0.1 and 1000000",
                "say how many watts the whole machine may take, or leave it out",
            );
        }
        for (key, path) in [
            ("hardware.sys-dir", &self.sys_dir),
            ("hardware.proc-dir", &self.proc_dir),
        ] {
            problems.require(
                path.is_absolute(),
                key,
                "is not an absolute path",
                "begin it with /",
            );
        }
    }
}
