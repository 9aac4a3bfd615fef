//! `[sandbox]`: what the daemon gives up once it has read its configuration.

use serde::{Deserialize, Serialize};

/// Whether the daemon gives something up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Demand {
    /// It does where the system can do it; the journal and the status say so where it cannot.
    BestEffort,
    /// Without it the daemon does not start.
    Require,
    /// It does not.
    Off,
}

/// `[sandbox]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SandboxConfig {
    /// Files and ports that this configuration does not name.
    pub landlock: Demand,
    /// Calls of the system that the daemon does not make.
    pub seccomp: Demand,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        SandboxConfig {
            landlock: Demand::BestEffort,
            seccomp: Demand::BestEffort,
        }
    }
}
