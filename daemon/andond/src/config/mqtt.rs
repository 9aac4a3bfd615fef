//! `[mqtt]`: the link to the floor's broker.

use serde::Deserialize;

use super::Problems;

/// `[mqtt]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct MqttConfig {
    /// Whether the front end runs.
    pub enabled: bool,
}

impl MqttConfig {
    #[expect(clippy::unused_self, reason = "every section has the same shape")]
    pub(super) fn check(&self, _problems: &mut Problems) {}
}
