//! What the spool counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Telemetry;
use crate::spool::record::State;

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    /// [`State::name`].
    pub state: &'static str,
}

/// What the spool holds and how it fares.
#[derive(Debug)]
pub(super) struct SpoolMetrics {
    requests: Family<StateLabels, Gauge>,
    bytes: Gauge,
    failing: Gauge,
    repeated: Counter,
    unkept: Counter,
    commit: Histogram,
}

impl Default for SpoolMetrics {
    fn default() -> SpoolMetrics {
        // 0.1 ms to 3 s in powers of two: from a disk with a safe cache to a slow card.
        let edges = (0..15).map(|power| 0.0001 * f64::from(1u32 << power));
        SpoolMetrics {
            requests: Family::default(),
            bytes: Gauge::default(),
            failing: Gauge::default(),
            repeated: Counter::default(),
            unkept: Counter::default(),
            commit: Histogram::new(edges),
        }
    }
}

impl SpoolMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "spool_requests",
            "Requests kept, by how far they are",
            self.requests.clone(),
        );
        registry.register_with_unit("spool", "What they take", Unit::Bytes, self.bytes.clone());
        registry.register(
            "spool_failing",
            "Whether nothing can be kept",
            self.failing.clone(),
        );
        registry.register(
            "spool_repeated",
            "Requests that came again and were not computed again",
            self.repeated.clone(),
        );
        registry.register(
            "spool_unkept",
            "Requests refused because they could not be kept",
            self.unkept.clone(),
        );
        registry.register_with_unit(
            "spool_commit",
            "Time until what waited was safe on the disk",
            Unit::Seconds,
            self.commit.clone(),
        );
    }
}

impl Telemetry {
    /// What waited is safe, and that took so long.
    pub fn spool_committed(&self, took: Duration) {
        self.spool.commit.observe(took.as_secs_f64());
    }

    /// Whether nothing can be kept.
    pub fn spool_failing(&self, failing: bool) {
        self.spool.failing.set(failing.into());
    }

    /// What is kept.
    pub fn spool_holds(&self, counts: &[usize; State::ALL.len()], bytes: u64) {
        for (state, count) in State::ALL.into_iter().zip(counts) {
            let labels = StateLabels {
                state: state.name(),
            };
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.spool.requests.get_or_create(&labels).set(count);
        }
        (self.spool.bytes).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A request came again.
    pub fn spool_repeated(&self) {
        self.spool.repeated.inc();
    }

    /// A request could not be kept.
    pub fn spool_unkept(&self) {
        self.spool.unkept.inc();
    }
}
