//! Counters and their Prometheus text.
//!
//! Labels come from closed sets of the daemon's own words, never from a client: their number is bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::fault::FaultCode;
use crate::request::Origin;

/// The way in and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// [`Origin::name`].
    pub origin: &'static str,
    /// A finish reason or [`FaultCode::name`].
    pub outcome: &'static str,
}

/// The way in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OriginLabels {
    /// [`Origin::name`].
    pub origin: &'static str,
}

/// What the daemon counts. Cheap to update from any thread.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    /// Requests submitted, refused ones included.
    pub requests: Family<OriginLabels, Counter>,
    /// Requests by how they ended.
    pub outcomes: Family<OutcomeLabels, Counter>,
    /// Tokens of prompts computed or taken from the cache.
    pub prompt_tokens: Counter,
    /// Tokens of answers.
    pub completion_tokens: Counter,
    /// Requests waiting.
    pub waiting: Gauge,
    /// Requests being answered.
    pub running: Gauge,
    /// From submission to the first token, in seconds.
    pub first_token_seconds: Histogram,
    /// Open connections.
    pub connections: Family<OriginLabels, Gauge>,
    /// Input that no request could be made of.
    pub malformed: Family<OriginLabels, Counter>,
    /// Whether the broker is connected.
    pub mqtt_connected: Gauge,
    /// Connections to the broker made since the start.
    pub mqtt_connects: Counter,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new()
    }
}

impl Telemetry {
    /// All at zero.
    pub fn new() -> Telemetry {
        // 5 ms to 40 s in powers of two: the promise (50 ms) lies between two edges near it.
        let edges = (0..14).map(|power| 0.005 * f64::from(1u32 << power));
        let mut telemetry = Telemetry {
            registry: Registry::with_prefix("andon"),
            requests: Family::default(),
            outcomes: Family::default(),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            waiting: Gauge::default(),
            running: Gauge::default(),
            first_token_seconds: Histogram::new(edges),
            connections: Family::default(),
            malformed: Family::default(),
            mqtt_connected: Gauge::default(),
            mqtt_connects: Counter::default(),
        };
        let registry = &mut telemetry.registry;
        registry.register("requests", "Requests submitted", telemetry.requests.clone());
        registry.register(
            "outcomes",
            "Requests by how they ended",
            telemetry.outcomes.clone(),
        );
        registry.register(
            "prompt_tokens",
            "Tokens of prompts",
            telemetry.prompt_tokens.clone(),
        );
        registry.register(
            "completion_tokens",
            "Tokens of answers",
            telemetry.completion_tokens.clone(),
        );
        registry.register("waiting", "Requests waiting", telemetry.waiting.clone());
        registry.register(
            "running",
            "Requests being answered",
            telemetry.running.clone(),
        );
        registry.register_with_unit(
            "first_token",
            "From submission to the first token",
            Unit::Seconds,
            telemetry.first_token_seconds.clone(),
        );
        registry.register(
            "connections",
            "Open connections",
            telemetry.connections.clone(),
        );
        registry.register(
            "malformed",
            "Input that no request could be made of",
            telemetry.malformed.clone(),
        );
        registry.register(
            "mqtt_connected",
            "Whether the broker is connected",
            telemetry.mqtt_connected.clone(),
        );
        registry.register(
            "mqtt_connects",
            "Connections to the broker made",
            telemetry.mqtt_connects.clone(),
        );
        telemetry
    }

    /// Counts a submission.
    pub fn request(&self, origin: Origin) {
        self.requests
            .get_or_create(&OriginLabels {
                origin: origin.name(),
            })
            .inc();
    }

    /// Counts an ending that is a fault.
    pub fn fault(&self, origin: Origin, code: FaultCode) {
        self.outcome(origin, code.name());
    }

    /// Counts an ending.
    pub fn outcome(&self, origin: Origin, outcome: &'static str) {
        let labels = OutcomeLabels {
            origin: origin.name(),
            outcome,
        };
        self.outcomes.get_or_create(&labels).inc();
    }

    /// Counts input that no request could be made of.
    pub fn malformed(&self, origin: Origin) {
        self.malformed
            .get_or_create(&OriginLabels {
                origin: origin.name(),
            })
            .inc();
    }

    /// Everything as Prometheus text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a String does not fail; a broken metric must not take the endpoint down.
            Err(_) => String::new(),
        }
    }
}
