//! What of the sandbox is in force.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::confine::{Confined, Layer};

/// One part of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LayerLabels {
    /// `landlock` or `seccomp`.
    layer: &'static str,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SandboxMetrics {
    layers: Family<LayerLabels, Gauge>,
}

impl SandboxMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sandbox",
            "Each part of the sandbox: 0 if it is off or missing; else it is in force, Landlock with this version",
            self.layers.clone(),
        );
    }

    /// Notes what is in force.
    pub(super) fn confined(&self, confined: &Confined) {
        for (layer, state) in [
            ("landlock", &confined.landlock),
            ("seccomp", &confined.seccomp),
        ] {
            let level = match state {
                Layer::On(level) => i64::from(*level),
                Layer::Off | Layer::Missing(_) => 0,
            };
            self.layers.get_or_create(&LayerLabels { layer }).set(level);
        }
    }
}
