//! ffi/cuda against the driver of `tests/cuda/emulation`: what it refuses, what it launches, what it makes of errors.

#![forbid(unsafe_code)]

mod emulated;
mod faults;
mod graphs;
mod launches;
mod loads;
