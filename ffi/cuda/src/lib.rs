//! NVIDIA graphics processors with a safe face: device memory, the kernels of kernels/cuda, graphs of launches.
//!
//! The driver is loaded at run time, so one program serves machines with and without one. Kernels are compiled when this
//! crate is built, if an nvcc is found then; without, everything here is there and [`Device::open`] says "not built".
//!
//! Invariant: every launch is checked against the lengths of the buffers it is given, so no safe call reads or writes
//! outside them; and all work of a [`Device`] is on one stream, in the order of calls, but what a [`Loader`] brings to it. While
//! a thread records launches, others wait for their turn.

mod attention;
mod buffer;
mod cache;
mod columns;
mod device;
mod error;
mod graph;
mod host;
mod layer;
mod loader;
mod matmul;
mod modules;
mod places;
mod stream;
mod top_k;
mod turns;

pub use attention::{Attend, PAGE};
pub use buffer::Buffer;
pub use cache::{Cache, KvType};
pub use device::{Device, Element, Limits, Mark};
pub use error::Error;
pub use graph::Graph;
pub use layer::{Addition, Gate, Heads};
pub use loader::Loader;
pub use matmul::{Columns, Format, Kernel, Matrix};
pub use places::{Given, Part, Places, Room, Run};
pub use top_k::{Best, LOGIT_MAX, TOP_K_MAX, TopK};

/// Why this program has no kernels; `None` if it has.
#[must_use]
pub fn not_built() -> Option<&'static str> {
    modules::missing()
}

/// What computes a model is moved from thread to thread, and the device is shared.
const _: () = {
    const fn moves<T: Send>() {}
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Device>();
    is_shared::<Matrix>();
    moves::<(Buffer<f32>, Cache, Columns, Loader, Places, TopK, Graph)>();
};
