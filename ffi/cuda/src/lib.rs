//! NVIDIA graphics processors with a safe face: device memory, the kernels of kernels/cuda, graphs of launches.
//!
//! The driver is loaded at run time, so one program serves machines with and without one. Kernels are compiled when this
//! crate is built, if an nvcc is found then; without, everything here is there and [`Device::open`] says "not built".
//!
//! Invariant: every launch is checked against the lengths of the buffers it is given, so no safe call reads or writes
//! outside them; and all work of a [`Device`] is on one stream, in the order of calls.

mod attention;
mod device;
mod error;
mod layer;
mod matmul;
mod modules;
mod timing;
mod top_k;

pub use attention::{Attend, Cache, PAGE, PageTable};
pub use device::{Buffer, Device, Element, Limits};
pub use error::Error;
pub use layer::{Addition, Gate, Heads};
pub use matmul::{Columns, Format, Kernel, Matrix};
pub use timing::Graph;
pub use top_k::{Best, TOP_K_MAX, TopK};

/// Why this program has no kernels; `None` if it has.
#[must_use]
pub fn not_built() -> Option<&'static str> {
    modules::missing()
}
