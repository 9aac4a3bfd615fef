//! `[limits]`: how much is taken from outside, whichever way it comes in.

use andon_wire::limits;
use serde::{Deserialize, Serialize};

use super::Problems;

/// `[limits]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct LimitsConfig {
    /// Largest request body, and largest text of one request.
    pub body_bytes_max: usize,
    /// Most tokens of a prompt; unset, the context.
    pub prompt_tokens_max: Option<usize>,
    /// Most messages of a conversation.
    pub messages_max: usize,
    /// Most stop strings.
    pub stop_max: usize,
    /// Most requests of one client in flight.
    pub client_requests_max: usize,
    /// Most requests of one client within a minute, alarms aside; unset, any number.
    pub client_requests_per_minute: Option<u32>,
    /// Most alarms of one client within a minute; unset, any number.
    pub client_alarms_per_minute: Option<u32>,
    /// Most tokens computed for one client within a minute, of prompts and answers; unset, any number.
    pub client_tokens_per_minute: Option<u32>,
    /// Most requests that wait.
    pub queue_max: usize,
    /// Most tokens of an answer when the request does not say.
    pub tokens_max_default: usize,
    /// Most tokens of an answer, whatever the request says; unset, the context.
    pub tokens_max: Option<usize>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            body_bytes_max: limits::BODY_BYTES_MAX,
            prompt_tokens_max: None,
            messages_max: limits::MESSAGES_MAX,
            stop_max: limits::STOP_MAX,
            client_requests_max: 64,
            client_requests_per_minute: None,
            client_alarms_per_minute: None,
            client_tokens_per_minute: None,
            queue_max: 64,
            tokens_max_default: 512,
            tokens_max: None,
        }
    }
}

impl LimitsConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within(
            "limits.body-bytes-max",
            self.body_bytes_max,
            1024..=limits::BODY_BYTES_MAX,
        );
        if let Some(tokens) = self.prompt_tokens_max {
            problems.within("limits.prompt-tokens-max", tokens, 1..=16_777_216);
        }
        problems.within(
            "limits.messages-max",
            self.messages_max,
            1..=limits::MESSAGES_MAX,
        );
        problems.within("limits.stop-max", self.stop_max, 0..=limits::STOP_MAX);
        problems.within(
            "limits.client-requests-max",
            self.client_requests_max,
            1..=65_536,
        );
        for (key, rate) in [
            (
                "limits.client-requests-per-minute",
                self.client_requests_per_minute,
            ),
            (
                "limits.client-alarms-per-minute",
                self.client_alarms_per_minute,
            ),
            (
                "limits.client-tokens-per-minute",
                self.client_tokens_per_minute,
            ),
        ] {
            if let Some(rate) = rate {
                problems.within(key, rate, 1..=1_000_000_000);
            }
        }
        problems.within("limits.queue-max", self.queue_max, 1..=65_536);
        problems.within(
            "limits.tokens-max-default",
            self.tokens_max_default,
            1..=16_777_216,
        );
        if let Some(tokens) = self.tokens_max {
            problems.within("limits.tokens-max", tokens, 1..=16_777_216);
        }
    }
}
