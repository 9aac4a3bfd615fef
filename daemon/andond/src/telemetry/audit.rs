//! What the audit stream counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Telemetry;

/// How the audit stream fares.
#[derive(Debug, Default)]
pub(super) struct AuditMetrics {
    records: Counter,
    lost: Counter,
    failing: Gauge,
}

impl AuditMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "audit_records",
            "Audit records written",
            self.records.clone(),
        );
        registry.register(
            "audit_lost",
            "Audit records lost, since the disk did not take them in time",
            self.lost.clone(),
        );
        registry.register(
            "audit_failing",
            "Whether audit records cannot be written",
            self.failing.clone(),
        );
    }
}

impl Telemetry {
    /// A record was written.
    pub fn audit_written(&self) {
        self.audit.records.inc();
    }

    /// One was lost.
    pub fn audit_lost(&self) {
        self.audit.lost.inc();
    }

    /// Whether none can be written.
    pub fn audit_failing(&self, failing: bool) {
        self.audit.failing.set(failing.into());
    }
}
