//! What is counted of the models by their names, which are the configuration's and those of the kept models.

use andon_engine::backend::Backend;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Telemetry;

/// Which model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

/// Which model, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelOutcomeLabels {
    model: String,
    outcome: &'static str,
}

/// What computes models.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    backend: &'static str,
}

/// The models.
#[derive(Debug, Default)]
pub(super) struct ModelMetrics {
    loaded: Family<ModelLabels, Gauge>,
    requests: Family<ModelLabels, Counter>,
    backends: Family<BackendLabels, Gauge>,
    backends_lost: Counter,
    loads: Family<ModelOutcomeLabels, Counter>,
    swaps: Family<ModelOutcomeLabels, Counter>,
}

impl ModelMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "model_loaded",
            "Whether a model is loaded",
            self.loaded.clone(),
        );
        registry.register(
            "model_requests",
            "Requests taken for a model",
            self.requests.clone(),
        );
        registry.register(
            "backend_models",
            "Loaded models that a backend computes",
            self.backends.clone(),
        );
        registry.register(
            "backend_losses",
            "Devices that failed while they computed a model, so that the processor had to go on",
            self.backends_lost.clone(),
        );
        registry.register(
            "model_loads",
            "How loading a model ended",
            self.loads.clone(),
        );
        registry.register(
            "model_swaps",
            "Models that took another's place, by how",
            self.swaps.clone(),
        );
    }
}

impl Telemetry {
    /// Sets whether a model is loaded.
    pub fn model_loaded(&self, model: &str, loaded: bool) {
        let model = model.to_owned();
        let gauge = self.models.loaded.get_or_create(&ModelLabels { model });
        gauge.set(i64::from(loaded));
    }

    /// Counts a request that was taken for a model.
    pub fn model_request(&self, model: &str) {
        let model = model.to_owned();
        let counter = self.models.requests.get_or_create(&ModelLabels { model });
        counter.inc();
    }

    /// Counts loaded models that a backend computes: `more` or, below 0, fewer.
    pub fn backend(&self, backend: Backend, more: i64) {
        let backend = backend.name();
        let labels = BackendLabels { backend };
        self.models.backends.get_or_create(&labels).inc_by(more);
    }

    /// Counts a device that failed while it computed.
    pub fn backend_lost(&self) {
        self.models.backends_lost.inc();
    }

    /// Counts how loading a model ended: `ready`, `failed` or `refused`.
    pub fn model_load(&self, model: &str, outcome: &'static str) {
        let model = model.to_owned();
        let labels = ModelOutcomeLabels { model, outcome };
        self.models.loads.get_or_create(&labels).inc();
    }

    /// Counts that a model took another's place: `swapped` or `rolled-back`.
    pub fn model_swap(&self, model: &str, outcome: &'static str) {
        let model = model.to_owned();
        let labels = ModelOutcomeLabels { model, outcome };
        self.models.swaps.get_or_create(&labels).inc();
    }
}
