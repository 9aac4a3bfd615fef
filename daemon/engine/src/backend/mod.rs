//! Where models run: the steps that decoders are computed in, and what computes them.

pub mod cpu;
mod cuda;
mod kind;
mod running;
mod steps;

pub use andon_cuda::Error as DeviceError;
pub use cuda::DeviceNeeds;
pub(crate) use cuda::{Cuda, CudaPages, needs, not_covered};
pub use kind::{Backend, State};
pub use running::DeviceCounts;
pub(crate) use running::Running;
pub use steps::{Activation, Attend, Batch, Heads, Output, Parts, Residual, Steps, Temperature};
