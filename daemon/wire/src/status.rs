//! How the daemon is: what `andonctl status` shows and what the MQTT status topic carries.

use serde::{Deserialize, Serialize};

use crate::name::ModelName;

/// Whether the daemon takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// The model is being loaded or tried.
    Starting,
    /// A token has been decoded; requests are answered.
    Ready,
    /// No new requests are taken; what is open is being finished.
    Draining,
    /// The model cannot be used; the journal says why.
    Failed,
}

impl Readiness {
    /// The word for this state in JSON and on the terminal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// State of the link to the MQTT broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MqttLink {
    /// No broker is configured.
    Off,
    /// Not connected; trying.
    Connecting,
    /// Connected, speaking MQTT 3.1.1.
    Connected311,
    /// Connected, speaking MQTT 5.
    Connected5,
}

impl MqttLink {
    /// The words for this state on the terminal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting => "connecting",
            Self::Connected311 => "connected (MQTT 3.1.1)",
            Self::Connected5 => "connected (MQTT 5)",
        }
    }
}

/// The MQTT front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MqttStatus<'a> {
    /// State of the link.
    pub link: MqttLink,
    /// Host and port of the broker; empty when none is configured.
    pub broker: &'a str,
    /// How often the link was made again since the start.
    pub reconnects: u32,
}

/// The loaded model and what runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatus<'a> {
    /// Its name.
    pub name: ModelName,
    /// Its architecture.
    pub architecture: &'a str,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Most tokens of prompt and answer together.
    pub context_tokens_max: u32,
    /// The instruction set in use.
    pub isa: &'a str,
    /// Threads that compute.
    pub threads: u16,
}

/// Requests since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounters {
    /// Taken in.
    pub accepted: u64,
    /// Answered in full.
    pub answered: u64,
    /// Turned away at the door.
    pub refused: u64,
    /// Accepted, then failed.
    pub failed: u64,
    /// Accepted, then cancelled by the client.
    pub cancelled: u64,
}

/// Tokens since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounters {
    /// Of prompts, cached ones included.
    pub prompt: u64,
    /// Of answers.
    pub completion: u64,
}

/// What waits and what runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Requests that wait.
    pub waiting: u32,
    /// Most that may wait.
    pub waiting_max: u32,
    /// Requests being answered.
    pub active: u32,
    /// Most that are answered at once.
    pub active_max: u32,
}

/// Speed over the last while, in tokens per second; 0 when nothing ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Of prompts.
    pub prefill_tokens_per_s: f32,
    /// Of answers, all requests together.
    pub decode_tokens_per_s: f32,
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status<'a> {
    /// Name and version of the daemon.
    pub software: &'a str,
    /// Name of the gateway.
    pub gateway: &'a str,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Whether it takes requests.
    pub readiness: Readiness,
    /// The model, once it is loaded.
    #[serde(borrow)]
    pub model: Option<ModelStatus<'a>>,
    /// Requests since the start.
    pub requests: RequestCounters,
    /// Tokens since the start.
    pub tokens: TokenCounters,
    /// What waits and what runs.
    pub queue: QueueStatus,
    /// Recent speed.
    pub speed: Speed,
    /// The MQTT front end.
    pub mqtt: MqttStatus<'a>,
}
