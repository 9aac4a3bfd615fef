//! `[log]`: what is said, and how loudly.

use serde::Deserialize;

use super::Problems;

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,andond::frontend=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: "info".to_owned(),
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
    }
}
