//! Memory of a device, and the elements in it.

use crate::device::Element;
use crate::turns::Turns;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::marker::PhantomData;
use std::sync::Arc;

/// Memory, freed when nobody has it any more.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Until it is freed.
    slice: Option<CudaSlice<u8>>,
    turns: Arc<Turns>,
}

impl Memory {
    pub(crate) fn new(slice: CudaSlice<u8>, turns: Arc<Turns>) -> Arc<Memory> {
        Arc::new(Memory {
            slice: Some(slice),
            turns,
        })
    }

    fn address(&self, stream: &CudaStream) -> CUdeviceptr {
        // There is one stream: what follows on it finds what was written before.
        let slice = self.slice.as_ref();
        slice.map_or(0, |slice| slice.device_ptr(stream).0)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.turns.free(slice);
        }
    }
}

/// Elements in a device's memory. Graphs that use them keep them.
#[derive(Debug)]
pub struct Buffer<T> {
    pub(crate) memory: Arc<Memory>,
    /// Bytes of the memory before them.
    first: usize,
    len: usize,
    of: PhantomData<fn() -> T>,
}

impl<T: Element> Buffer<T> {
    /// `len` elements behind the first `first` bytes, which the caller knows to be there.
    pub(crate) fn of(memory: Arc<Memory>, first: usize, len: usize) -> Buffer<T> {
        Buffer {
            memory,
            first,
            len,
            of: PhantomData,
        }
    }

    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where its first element is.
    pub(crate) fn address(&self, stream: &CudaStream) -> CUdeviceptr {
        self.memory.address(stream) + self.first as CUdeviceptr
    }
}
