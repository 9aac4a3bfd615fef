//! `[log]`: what is said, and how loudly.

use serde::{Deserialize, Serialize};

use super::Problems;

/// `[log]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,andond::frontend=debug`.
    pub level: String,
    /// Whether what was asked and answered is logged with what became of it.
    pub text: bool,
    /// Most events of one kind in a second, over ten seconds; 0 is any number.
    pub events_per_second_max: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: "info".to_owned(),
            text: false,
            events_per_second_max: 20,
        }
    }
}

impl LogConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&self.level) {
            problems.add(
                "log.level",
                format!("is not understood: {error}"),
                "use \"info\" or \"debug\"",
            );
        }
        problems.within(
            "log.events-per-second-max",
            self.events_per_second_max,
            0..=100_000,
        );
    }
}
