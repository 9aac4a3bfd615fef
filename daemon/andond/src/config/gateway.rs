//! `[gateway]`: who this machine is, and how it leaves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Problems;

/// Longest gateway name, in bytes: it is one level of every MQTT topic.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest time without a request that is waited for, in seconds: a week.
const IDLE_EXIT_S_MAX: u64 = 604_800;

/// `[gateway]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct GatewayConfig {
    /// The gateway's name in topics, metrics and status; unset, the host's name.
    pub name: Option<String>,
    /// How long running answers may take to finish once the daemon is told to stop.
    pub shutdown_grace_ms: u64,
    /// How long what is being answered may make no progress until the daemon says that it is not well.
    pub stall_ms: u64,
    /// For how long nothing may be asked until a daemon that is started by its sockets ends; 0 for ever.
    pub idle_exit_s: u64,
    /// Whether a crash may leave a core dump, and programs of the same user may look into the process.
    pub core_dumps: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            name: None,
            shutdown_grace_ms: 10_000,
            // A pass over the largest batch of a large model on a small machine takes a few seconds.
            stall_ms: 60_000,
            idle_exit_s: 0,
            core_dumps: false,
        }
    }
}

impl GatewayConfig {
    /// The configured name, else the host's, else `gateway`.
    pub fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .map(|name| name.trim().to_owned())
            .filter(|name| is_name(name))
            .unwrap_or_else(|| "gateway".to_owned())
    }

    /// The time running answers have to finish.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.shutdown_grace_ms)
    }

    /// How long a pass may take until something is wrong.
    pub fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms)
    }

    /// For how long nothing may be asked until the daemon ends; `None` for ever.
    pub fn idle_exit(&self) -> Option<Duration> {
        (self.idle_exit_s > 0).then(|| Duration::from_secs(self.idle_exit_s))
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(name) = &self.name {
            problems.require(
                is_name(name),
                "gateway.name",
                "is not a name",
                "use 1 to 64 letters, digits, '.', '-' or '_'",
            );
        }
        problems.within(
            "gateway.shutdown-grace-ms",
            self.shutdown_grace_ms,
            0..=600_000,
        );
        problems.within("gateway.stall-ms", self.stall_ms, 1_000..=600_000);
        problems.within("gateway.idle-exit-s", self.idle_exit_s, 0..=IDLE_EXIT_S_MAX);
    }
}

/// Whether `name` is one topic level that needs no escaping anywhere.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}
