//! What the daemon decides, as plain functions: who is admitted, and who goes next.
//!
//! Policy decides and never does. It reads no clock (the time is an argument, in milliseconds on
//! any clock that does not run backwards), holds no state between calls, and has not heard of
//! tensors, threads or sockets. So the same inputs give the same decision, in a test as in the
//! daemon, and a refusal is a decision, not an error.
#![no_std]
#![forbid(unsafe_code)]

pub mod admission;
pub mod queue;
