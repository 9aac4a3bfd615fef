//! What became of reading the configuration again.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Telemetry;

/// How a reload ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReloadLabels {
    /// `applied` or `refused`.
    pub outcome: &'static str,
}

/// What the configuration in force is to the file.
#[derive(Debug, Default)]
pub(super) struct ConfigMetrics {
    reloads: Family<ReloadLabels, Counter>,
    waiting: Gauge,
}

impl ConfigMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "config_reloads",
            "How often the configuration was read again, and whether it was applied or refused",
            self.reloads.clone(),
        );
        registry.register(
            "config_restart_keys",
            "Keys with other values in the file, as it was last read, that need a restart",
            self.waiting.clone(),
        );
    }
}

impl Telemetry {
    /// The configuration was read again, and applied but for so many keys, which need a restart; or refused.
    pub fn reloaded(&self, applied: bool, restart: usize) {
        let outcome = if applied { "applied" } else { "refused" };
        let labels = ReloadLabels { outcome };
        self.config.reloads.get_or_create(&labels).inc();
        if applied {
            let restart = i64::try_from(restart).unwrap_or(i64::MAX);
            self.config.waiting.set(restart);
        }
    }
}
