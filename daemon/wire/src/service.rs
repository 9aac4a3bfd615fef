//! How the daemon runs as a service: what of its sandbox is in force, and what its spool holds.

use serde::{Deserialize, Serialize};

/// One part of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLayer<'a> {
    /// The configuration turns it off.
    Off,
    /// It is in force.
    On {
        /// The version of the system's interface: of Landlock from 2 on, of seccomp 1.
        level: u8,
    },
    /// The system cannot do it.
    Missing {
        /// What it says.
        why: &'a str,
    },
}

/// What the daemon gave up when it started, beside what its unit took from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus<'a> {
    /// Files, ports, signals and abstract sockets.
    #[serde(borrow)]
    pub landlock: SandboxLayer<'a>,
    /// Calls of the system.
    pub seccomp: SandboxLayer<'a>,
}

/// Requests that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// Whether they outlive the daemon.
    pub durable: bool,
    /// Those that wait.
    pub accepted: u32,
    /// Those that are being answered.
    pub running: u32,
    /// Those whose answers were not delivered yet.
    pub answered: u32,
    /// Those whose answers were.
    pub delivered: u32,
    /// Bytes of them all.
    pub bytes: u64,
}

/// How the daemon runs as a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus<'a> {
    /// The sandbox.
    #[serde(borrow)]
    pub sandbox: SandboxStatus<'a>,
    /// The spool.
    pub spool: SpoolStatus,
}
