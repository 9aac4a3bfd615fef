//! Compute kernels of andon.
#![no_std]

mod format;

pub use format::Format;
