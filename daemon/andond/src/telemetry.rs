//! What the daemon tells of itself: counters for Prometheus, words for the journal.

pub mod connections;
mod hardware;
pub mod journal;
pub mod metrics;
mod models;
mod sandbox;
mod spool;

pub use metrics::{Telemetry, Told};
