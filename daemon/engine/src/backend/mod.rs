//! Where models run: the steps that decoders are computed in, and what computes them.

pub mod cpu;
mod steps;

pub use steps::{Activation, Attend, Batch, Heads, Output, Parts, Residual, Steps, Temperature};
