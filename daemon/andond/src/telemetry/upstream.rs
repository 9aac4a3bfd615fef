//! What is asked of upstreams and what comes of it, as Prometheus reads it.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Telemetry;
use crate::upstream::{FaultKind, Link, Spent, State};

/// From questions to first tokens over a network, in seconds.
const BUCKETS: [f64; 10] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0];

/// An upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    /// Its name in the configuration.
    upstream: String,
}

/// An upstream and what became of a question.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    /// Its name in the configuration.
    upstream: String,
    /// `answered` or [`FaultKind::name`].
    outcome: &'static str,
}

/// An upstream and what tokens are of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    /// Its name in the configuration.
    upstream: String,
    /// `prompt` or `answer`.
    of: &'static str,
}

/// An upstream and how it may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    /// Its name in the configuration.
    upstream: String,
    /// [`State::as_str`].
    state: &'static str,
}

/// See the module.
#[derive(Debug)]
pub(super) struct UpstreamMetrics {
    outcomes: Family<OutcomeLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    first_token: Family<UpstreamLabels, Histogram>,
    whole: Family<UpstreamLabels, Histogram>,
    states: Family<StateLabels, Gauge>,
    up: Gauge,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for UpstreamMetrics {
    fn default() -> Self {
        UpstreamMetrics {
            outcomes: Family::default(),
            tokens: Family::default(),
            first_token: Family::new_with_constructor(histogram),
            whole: Family::new_with_constructor(histogram),
            states: Family::default(),
            up: Gauge::default(),
        }
    }
}

impl UpstreamMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_questions",
            "What upstreams were asked, by what became of it; one that is asked again counts again",
            self.outcomes.clone(),
        );
        registry.register(
            "upstream_tokens",
            "Tokens of what upstreams have answered, as they say",
            self.tokens.clone(),
        );
        registry.register_with_unit(
            "upstream_first_token",
            "From the question to the first token of the answer",
            Unit::Seconds,
            self.first_token.clone(),
        );
        registry.register_with_unit(
            "upstream_answer",
            "From the question to the end of the answer",
            Unit::Seconds,
            self.whole.clone(),
        );
        registry.register(
            "upstream_state",
            "How each upstream is: 1 for its state, 0 for the others",
            self.states.clone(),
        );
        registry.register(
            "upstream_up",
            "Whether some upstream may be asked",
            self.up.clone(),
        );
    }
}

impl Telemetry {
    /// Counts a question that an upstream did not answer.
    pub fn upstream_refused(&self, upstream: &str, kind: FaultKind) {
        let labels = OutcomeLabels {
            upstream: upstream.to_owned(),
            outcome: kind.name(),
        };
        self.upstream.outcomes.get_or_create(&labels).inc();
    }

    /// Counts an answer that took so long in all.
    pub fn upstream_answered(&self, upstream: &str, spent: &Spent, whole: Duration) {
        let labels = OutcomeLabels {
            upstream: upstream.to_owned(),
            outcome: "answered",
        };
        self.upstream.outcomes.get_or_create(&labels).inc();
        for (of, tokens) in [
            ("prompt", spent.prompt_tokens),
            ("answer", spent.completion_tokens),
        ] {
            let labels = TokenLabels {
                upstream: upstream.to_owned(),
                of,
            };
            self.upstream
                .tokens
                .get_or_create(&labels)
                .inc_by(tokens.into());
        }
        let labels = UpstreamLabels {
            upstream: upstream.to_owned(),
        };
        self.upstream
            .whole
            .get_or_create(&labels)
            .observe(whole.as_secs_f64());
    }

    /// Counts an answer that has begun after so long.
    pub fn upstream_began(&self, upstream: &str, after: Duration) {
        let labels = UpstreamLabels {
            upstream: upstream.to_owned(),
        };
        self.upstream
            .first_token
            .get_or_create(&labels)
            .observe(after.as_secs_f64());
    }

    /// Sets how the upstreams are.
    pub fn upstreams(&self, link: &Link) {
        self.upstream.up.set(i64::from(link.up));
        // Those that are not configured any more are not shown any more.
        self.upstream.states.clear();
        for standing in link.upstreams.iter() {
            for state in [State::Closed, State::Open, State::HalfOpen, State::Limited] {
                let labels = StateLabels {
                    upstream: standing.name.as_ref().to_owned(),
                    state: state.as_str(),
                };
                let is_it = i64::from(standing.state == state);
                self.upstream.states.get_or_create(&labels).set(is_it);
            }
        }
    }
}
