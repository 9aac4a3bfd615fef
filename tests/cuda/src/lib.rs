//! A card where there is none: the kernels compiled for a processor, in a driver library that ffi/cuda loads like a real one.
//! And what checks of whatever card there is are made of: passes that are recorded and repeated, models in the shapes of real
//! ones, the daemon as its clients see it.
//!
//! Invariant: what is built is named by all that it is built from, so nothing is ever tested against older kernels.

#![forbid(unsafe_code)]

pub mod daemon;
pub mod emulation;
pub mod figures;
pub mod passes;
pub mod synthetic;
