//! `[metrics]`: figures over TCP, for collectors that cannot open a Unix socket.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Problems;

/// `[metrics]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where `GET /metrics`, and nothing else, is served; off unless set.
    pub listen: Option<SocketAddr>,
    /// Most connections at once.
    pub connections_max: usize,
    /// Longest life of a connection, which serves one request.
    pub timeout_ms: u64,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig {
            listen: None,
            connections_max: 4,
            timeout_ms: 10_000,
        }
    }
}

impl MetricsConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within("metrics.connections-max", self.connections_max, 1..=1024);
        problems.within("metrics.timeout-ms", self.timeout_ms, 10..=600_000);
    }
}
