//! Who is connected, and how often somebody was.

use prometheus_client::metrics::gauge::Gauge;

use super::Telemetry;
use super::metrics::OriginLabels;
use crate::request::Origin;

/// A client's connection: over when it is dropped.
#[derive(Debug)]
#[must_use = "the connection is over when it is dropped"]
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Telemetry {
    /// Notes that a client has connected.
    pub fn connects(&self, origin: Origin) -> Connected {
        let labels = OriginLabels {
            origin: origin.name(),
        };
        let open = self.connections.get_or_create_owned(&labels);
        open.inc();
        self.visits.get_or_create(&labels).inc();
        Connected(open)
    }

    /// How many connections are open.
    pub fn connected(&self) -> i64 {
        let open = |labels: &OriginLabels| self.connections.get_or_create(labels).get();
        labels().iter().map(open).sum()
    }

    /// How many there have been.
    pub fn visits(&self) -> u64 {
        let all = |labels: &OriginLabels| self.visits.get_or_create(labels).get();
        labels().iter().map(all).sum()
    }
}

/// The front ends that clients connect to.
fn labels() -> [OriginLabels; 2] {
    [Origin::Http, Origin::Wire].map(|origin| OriginLabels {
        origin: origin.name(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Origin, Telemetry};

    #[test]
    fn connections_are_counted_while_they_are_open_and_after() {
        let telemetry = Telemetry::new();
        assert_eq!((telemetry.connected(), telemetry.visits()), (0, 0));
        let first = telemetry.connects(Origin::Http);
        let second = telemetry.connects(Origin::Wire);
        drop(first);
        assert_eq!((telemetry.connected(), telemetry.visits()), (1, 2));
        drop(second);
        assert_eq!((telemetry.connected(), telemetry.visits()), (0, 2));
        let text = telemetry.encode();
        assert!(
            text.contains("andon_connections_opened_total{origin=\"wire\"} 1"),
            "{text}"
        );
    }
}
