//! Where models run: the steps that decoders are computed in, and what computes them.

pub mod cpu;
mod cuda;
mod kind;
mod steps;

pub use kind::{Backend, State};
pub use steps::{Activation, Attend, Batch, Heads, Output, Parts, Residual, Steps, Temperature};
