//! Where requests are answered, and why there, as Prometheus reads it.

use andon_policy::route::{Decision, Route};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Telemetry;

/// Where an answer was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    /// [`Route::as_str`].
    route: &'static str,
}

/// What was decided of a request, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    /// [`Decision::as_str`].
    decision: &'static str,
    /// The reason.
    reason: &'static str,
}

/// What is counted of routing.
#[derive(Debug, Default)]
pub(super) struct Figures {
    answers: Family<RouteLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    shadow: Family<DecisionLabels, Counter>,
    doubted: Counter,
    hedged: Counter,
    restarted: Counter,
    waiting: Gauge,
}

impl Figures {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "answers",
            "Answers by where they were made",
            self.answers.clone(),
        );
        registry.register(
            "route_decisions",
            "Requests by where they were to be answered when they came, and why there",
            self.decisions.clone(),
        );
        registry.register(
            "route_shadow",
            "Requests by where they would have been answered if routing did not only watch",
            self.shadow.clone(),
        );
        registry.register(
            "route_doubted",
            "Local answers that were not sure of themselves and went up",
            self.doubted.clone(),
        );
        registry.register(
            "route_hedged",
            "Requests that were also begun here since the first token from upstream was late",
            self.hedged.clone(),
        );
        registry.register(
            "route_restarted",
            "Answers that began again since upstream broke off",
            self.restarted.clone(),
        );
        registry.register(
            "route_waiting",
            "Requests that wait until upstream can be had",
            self.waiting.clone(),
        );
    }
}

fn labels(decision: Decision) -> DecisionLabels {
    DecisionLabels {
        decision: decision.as_str(),
        reason: decision.reason().as_str(),
    }
}

impl Telemetry {
    /// Counts an answer by where it was made.
    pub fn routed(&self, route: Route) {
        let route = route.as_str();
        self.routing
            .answers
            .get_or_create(&RouteLabels { route })
            .inc();
    }

    /// Counts what was decided of a request; `shadow` if it is not done.
    pub fn decided(&self, decision: Decision, shadow: bool) {
        let family = if shadow {
            &self.routing.shadow
        } else {
            &self.routing.decisions
        };
        family.get_or_create(&labels(decision)).inc();
    }

    /// Counts a local answer that goes up after all.
    pub fn doubted(&self) {
        self.routing.doubted.inc();
    }

    /// Counts a request that is begun here beside upstream.
    pub fn hedged(&self) {
        self.routing.hedged.inc();
    }

    /// Counts an answer that begins again.
    pub fn restarted(&self) {
        self.routing.restarted.inc();
    }

    /// Sets how many requests wait until upstream can be had.
    pub fn route_waiting(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.routing.waiting.set(count);
    }
}
