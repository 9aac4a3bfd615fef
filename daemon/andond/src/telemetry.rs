//! What the daemon tells of itself: counters for Prometheus, words for the journal.

pub mod journal;
pub mod metrics;
mod spool;

pub use metrics::Telemetry;
