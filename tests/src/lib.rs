//! Support for the tests that cross crates.
//!
//! Nothing here is linked into what is shipped. Everything started by this crate is private to the
//! test that started it (its own directory, its own sockets, ports chosen by the kernel) and ends
//! with it.

#![forbid(unsafe_code)]

pub mod broker;
pub mod broker_embedded;
pub mod certificates;
pub mod daemon;
pub mod http;
pub mod journald;
pub mod link;
pub mod mount;
pub mod mutate;
pub mod network;
pub mod programs;
pub mod source;
pub mod tiny_encoder;
pub mod tiny_model;
pub mod upstream;
pub mod vitals;
