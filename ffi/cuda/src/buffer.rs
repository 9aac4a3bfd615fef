//! Memory of a device, and the elements in it.

use crate::device::Element;
use crate::turns::InTurn;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::marker::PhantomData;
use std::sync::Arc;

/// Memory, freed when nobody has it any more.
pub(crate) type Memory = InTurn<CudaSlice<u8>>;

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

    /// The elements from `first` on, `len` of them.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn part<U: Element>(&self, first: usize, len: usize) -> Buffer<U> {
        assert!(size_of::<T>() == size_of::<U>() && first + len <= self.len);
        Buffer::of(
            Arc::clone(&self.memory),
            self.first + first * size_of::<T>(),
            len,
        )
    }

    /// Where its first element is.
    pub(crate) fn address(&self, stream: &CudaStream) -> CUdeviceptr {
        // There is one stream: what follows on it finds what was written before.
        self.memory.device_ptr(stream).0 + self.first as CUdeviceptr
    }
}
