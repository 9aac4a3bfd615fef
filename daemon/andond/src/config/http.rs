//! `[http]`: the OpenAI-style front end.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Problems;

/// Longest socket path, in bytes: what the kernel takes (108) less the final zero and a temporary suffix.
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 106;

/// `[http]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HttpConfig {
    /// Whether the front end runs.
    pub enabled: bool,
    /// The Unix socket.
    pub socket: PathBuf,
    /// The socket's permission bits, octal.
    pub socket_mode: String,
    /// The socket's group; unset, the daemon's own.
    pub socket_group: Option<String>,
    /// A loopback TCP listener beside the socket, such as `127.0.0.1:8311`; off unless set.
    pub listen: Option<SocketAddr>,
    /// A file with the token that whoever comes by `listen` has to show.
    pub token_file: Option<PathBuf>,
    /// Most connections at once.
    pub connections_max: usize,
    /// Longest wait for a request's head.
    pub header_timeout_ms: u64,
    /// Longest wait for a request's body.
    pub body_timeout_ms: u64,
    /// Longest wait for a client that does not take its answer.
    pub write_timeout_ms: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            enabled: true,
            socket: PathBuf::from("/run/andon/andon.sock"),
            socket_mode: "0660".to_owned(),
            socket_group: None,
            listen: None,
            token_file: None,
            connections_max: 128,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            write_timeout_ms: 30_000,
        }
    }
}

impl HttpConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        check_socket(problems, "http", &self.socket, &self.socket_mode);
        if let Some(listen) = self.listen {
            problems.require(
                listen.ip().is_loopback(),
                "http.listen",
                "is not a loopback address",
                "use 127.0.0.1 or ::1: this listener has no encryption",
            );
            problems.require(
                !listen.ip().is_loopback() || self.token_file.is_some(),
                "http.listen",
                "is open to every user and program of this machine",
                "name a file with a token in http.token-file",
            );
        }
        problems.require(
            self.token_file.is_none() || self.listen.is_some(),
            "http.token-file",
            "is of no use without http.listen",
            "set http.listen too; over the Unix socket the system says who calls",
        );
        problems.within("http.connections-max", self.connections_max, 1..=65_536);
        problems.within(
            "http.header-timeout-ms",
            self.header_timeout_ms,
            10..=600_000,
        );
        problems.within("http.write-timeout-ms", self.write_timeout_ms, 10..=600_000);
        problems.within("http.body-timeout-ms", self.body_timeout_ms, 10..=600_000);
    }
}

/// Checks a listening socket's path and mode; both socket front ends have these keys.
pub(super) fn check_socket(
    problems: &mut Problems,
    section: &str,
    path: &std::path::Path,
    mode: &str,
) {
    let bytes = path.as_os_str().len();
    if !path.is_absolute() || bytes > SOCKET_PATH_BYTES_MAX {
        problems.add(
            format!("{section}.socket"),
            "is not a usable socket path",
            format!("give an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes"),
        );
    }
    if parse_mode(mode).is_none() {
        problems.add(
            format!("{section}.socket-mode"),
            "is not a file mode",
            "write it in octal, such as \"0660\"",
        );
    }
}

/// Permission bits from their octal text.
pub fn parse_mode(mode: &str) -> Option<u32> {
    if !(3..=4).contains(&mode.len()) || !mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return None;
    }
    u32::from_str_radix(mode, 8)
        .ok()
        .filter(|bits| *bits <= 0o777)
}
