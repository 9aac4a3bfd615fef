//! Memory of this machine that a device copies from and to by itself, while the program goes on.
//!
//! Invariant: nobody here reads or writes it while the device may.

use crate::device::{Device, of};
use crate::error::Error;
use crate::turns::InTurn;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use std::ptr::NonNull;
use std::sync::Arc;

/// Words that are copied.
pub(crate) type HostWords = InTurn<Words>;

/// The words, and when the last copy of them is done.
#[derive(Debug)]
pub(crate) struct Words {
    start: NonNull<u32>,
    len: usize,
    copied: CudaEvent,
    context: Arc<CudaContext>,
}

// SAFETY: the words are nobody else's, and the driver lets any thread use and free them.
unsafe impl Send for Words {}
// SAFETY: shared, they are only read.
unsafe impl Sync for Words {}

impl Words {
    /// Waits until the device is through with them.
    fn wait(&self) -> Result<(), Error> {
        // Not by the event's own call, which does not wait where an error of another thread was left to be told.
        // SAFETY: the context and the event are there as long as this.
        let (bound, waited) = unsafe {
            let bound = result::ctx::set_current(self.context.cu_ctx());
            (bound, result::event::synchronize(self.copied.cu_event()))
        };
        bound.and(waited).map_err(of("waiting for a copy"))
    }

    /// Has [`Words::wait`] wait for what was asked of `stream` so far; waits itself where that is refused.
    fn mark(&self, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: the event and the stream are there; they are of one context.
        unsafe {
            let marked = result::event::record(self.copied.cu_event(), stream.cu_stream());
            marked.or_else(|_| result::stream::synchronize(stream.cu_stream()))
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // Where that fails the device does nothing any more.
        let _ = self.wait();
        let _ = self.context.bind_to_thread();
        // SAFETY: they were taken from the driver, are freed once, and no copy of them is under way.
        let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
    }
}

impl Device {
    /// Room for `len` words, all zero.
    pub(crate) fn host_words(&self, len: usize) -> Result<HostWords, Error> {
        let taking = of("taking memory of this machine for copies");
        let _stream = self.unrecorded("taking memory")?;
        let copied = self.context.new_event(None).map_err(taking)?;
        self.context.bind_to_thread().map_err(taking)?;
        let bytes = len.max(1).saturating_mul(size_of::<u32>());
        // SAFETY: the words are set before anybody reads them.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(taking)?;
        let start = NonNull::new(start.cast::<u32>()).ok_or(Error::OutOfMemory { bytes })?;
        // SAFETY: as many bytes were taken.
        unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        let context = Arc::clone(&self.context);
        let words = Words {
            start,
            len,
            copied,
            context,
        };
        Ok(InTurn::new(words, &self.turns))
    }
}

impl Words {
    /// The words, to be changed, once the last copy of them is done.
    pub(crate) fn get(&mut self) -> Result<&mut [u32], Error> {
        self.wait()?;
        // SAFETY: they were all set when they were taken; no copy of them is under way, and none is asked for while this is
        // borrowed.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    /// Asks for the first `len` of them to be copied to `to`, after all that was asked for before.
    ///
    /// # Panics
    /// If there are fewer.
    ///
    /// # Safety
    /// There is room for as many at `to`.
    pub(crate) unsafe fn send(
        &mut self,
        device: &Device,
        to: CUdeviceptr,
        len: usize,
    ) -> Result<(), Error> {
        let copying = of("copying to the device");
        assert!(len <= self.len);
        let stream = device.unrecorded("copying to the device")?;
        self.context.bind_to_thread().map_err(copying)?;
        // SAFETY: the words are there, and nobody changes them before `copied`; there is room for them, as the caller says.
        let asked = unsafe {
            let words = std::slice::from_raw_parts(self.start.as_ptr(), len);
            result::memcpy_htod_async(to, words, stream.cu_stream())
        };
        let marked = self.mark(&stream);
        asked.and(marked).map_err(copying)
    }

    /// Copies `len` words at `from` to the first of these, after all that was asked for before.
    ///
    /// # Panics
    /// If there are fewer.
    ///
    /// # Safety
    /// There are as many at `from`.
    pub(crate) unsafe fn receive(
        &mut self,
        device: &Device,
        from: CUdeviceptr,
        len: usize,
    ) -> Result<&[u32], Error> {
        let copying = of("copying from the device");
        assert!(len <= self.len);
        self.wait()?;
        let asked = {
            let stream = device.unrecorded("copying from the device")?;
            self.context.bind_to_thread().map_err(copying)?;
            // SAFETY: they were all set when they were taken, and no copy of them is under way.
            let words = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), len) };
            // SAFETY: there are as many at `from`, as the caller says; nobody else has the words until the copy is done.
            let asked = unsafe { result::memcpy_dtoh_async(words, from, stream.cu_stream()) };
            asked.and(self.mark(&stream))
        };
        asked.map_err(copying)?;
        self.wait()?;
        // SAFETY: they were all set when they were taken; the copy is done.
        Ok(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), len) })
    }
}
