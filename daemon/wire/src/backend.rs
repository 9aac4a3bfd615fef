//! Which backends there are.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::limits::BACKENDS_MAX;

/// What could compute models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus<'a> {
    /// Its name: `cpu`, `cuda`, `openvino`, `ggml`.
    pub name: &'a str,
    /// Whether the daemon has code for it.
    pub built: bool,
    /// Whether it can be used on this machine.
    pub available: bool,
    /// Whether it computes the model that is served.
    pub chosen: bool,
    /// What it is, where it is available; else empty.
    pub device: &'a str,
    /// Why it is not built, not available or not chosen; empty where nothing is to be said.
    pub reason: &'a str,
}

/// Every backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends<'a> {
    /// Of those that the daemon knows.
    #[serde(borrow)]
    pub backends: Vec<BackendStatus<'a>, BACKENDS_MAX>,
}
