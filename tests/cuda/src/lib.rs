//! A card where there is none: the kernels compiled for a processor, in a driver library that ffi/cuda loads like a real one;
//! and passes that are recorded and repeated, on whatever card there is.
//!
//! Invariant: what is built is named by all that it is built from, so nothing is ever tested against older kernels.

#![forbid(unsafe_code)]

pub mod emulation;
pub mod passes;
