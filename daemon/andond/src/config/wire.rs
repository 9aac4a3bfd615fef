//! `[wire]`: the compact socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Problems;

/// `[wire]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct WireConfig {
    /// Whether the front end runs.
    pub enabled: bool,
    /// The Unix socket.
    pub socket: PathBuf,
    /// The socket's permission bits, octal.
    pub socket_mode: String,
    /// The socket's group; unset, the daemon's own.
    pub socket_group: Option<String>,
    /// Most connections at once.
    pub connections_max: usize,
    /// Most requests in flight on one connection.
    pub requests_max: usize,
    /// Longest wait for the rest of a frame once it has begun, and for the first frame.
    pub frame_timeout_ms: u64,
}

impl Default for WireConfig {
    fn default() -> Self {
        WireConfig {
            enabled: true,
            socket: PathBuf::from("/run/andon/wire.sock"),
            socket_mode: "0660".to_owned(),
            socket_group: None,
            connections_max: 64,
            requests_max: 16,
            frame_timeout_ms: 10_000,
        }
    }
}

impl WireConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        super::http::check_socket(problems, "wire", &self.socket, &self.socket_mode);
        problems.within("wire.connections-max", self.connections_max, 1..=65_536);
        problems.within("wire.requests-max", self.requests_max, 1..=1024);
        problems.within("wire.frame-timeout-ms", self.frame_timeout_ms, 10..=600_000);
    }
}
