//! What the daemon decides: who is admitted, who computes, who steps aside, who has waited too long.
//!
//! Policy decides and never does. It reads no clock (the time is an argument, in milliseconds on
//! any clock that does not run backwards) and has not heard of tensors, threads or sockets. What it
//! keeps between calls is in a value, such as the [`scheduler::Scheduler`], which is told what happens
//! and asked what to do. So the same events give the same decisions, in a simulator as in the
//! daemon, and a refusal is a decision, not an error.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod admission;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod client;
pub mod confidence;
pub mod latency;
pub mod line;
pub mod memory;
pub mod queue;
pub mod rate;
pub mod residency;
pub mod route;
pub mod router;
pub mod scheduler;
pub mod speed;
pub mod stuck;
pub mod throttle;
pub mod turns;
