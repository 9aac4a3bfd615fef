//! What the daemon tells of itself: counters for Prometheus, words for the journal.

mod audit;
mod config;
pub mod connections;
pub mod event;
mod hardware;
pub mod journal;
mod ledger;
mod limit;
pub mod metrics;
mod models;
mod plain;
mod router;
mod sandbox;
mod spool;
mod upstream;

pub use event::Event;
pub use metrics::{Telemetry, Told};
