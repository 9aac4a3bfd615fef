//! The daemon as a library, so that its parts can be tested without a process.
//!
//! andond is where the other crates meet: front ends ([`frontend`]) turn what clients say into a
//! [`request::Request`], the [`worker`] owns the engine and answers with [`worker::JobEvent`]s, and
//! [`supervise`] binds, starts and stops it all. It is the only crate that owns tokio and sockets.
//!
//! Invariant: nothing that arrives from outside grows a buffer without a named bound, and every
//! accepted request ends with exactly one terminal event.
#![forbid(unsafe_code)]

pub mod access;
pub mod audit;
pub mod check;
pub mod config;
pub mod confine;
mod credential;
pub mod fault;
pub mod frontend;
pub mod hardware;
pub mod health;
pub mod memory;
pub mod panics;
pub mod registry;
pub mod reload;
pub mod request;
pub mod router;
pub mod socket;
pub mod spool;
pub mod supervise;
pub mod task;
pub mod telemetry;
pub mod upstream;
pub mod worker;
pub mod workers;
