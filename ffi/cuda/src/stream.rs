//! What the device's memory gives: a copy by a kernel, and reading alone.

use crate::buffer::Buffer;
use crate::device::{Device, of};
use crate::error::Error;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Threads of a block.
const THREADS: u32 = 1024;

impl Device {
    /// Elements that [`Device::stream_read`] leaves.
    #[must_use]
    pub fn stream_sums(&self) -> usize {
        (self.processors * 2 * THREADS * 4) as usize
    }

    /// Copies all of `from` to the start of `to`, by a kernel.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If `to` is shorter, or they are not whole words of 16 bytes.
    pub fn stream_copy(&self, from: &Buffer<u32>, to: &mut Buffer<u32>) -> Result<(), Error> {
        assert!(from.len() <= to.len(), "room for all of it");
        self.stream_words("stream_copy", from, to)
    }

    /// Reads all of `from`: each thread leaves the exclusive or of what it read in `to`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If `to` has fewer than [`Device::stream_sums`] elements, or `from` is not whole words of 16 bytes.
    pub fn stream_read(&self, from: &Buffer<u32>, to: &mut Buffer<u32>) -> Result<(), Error> {
        assert!(self.stream_sums() <= to.len(), "room for all sums");
        self.stream_words("stream_read", from, to)
    }

    fn stream_words(
        &self,
        kernel: &'static str,
        from: &Buffer<u32>,
        to: &mut Buffer<u32>,
    ) -> Result<(), Error> {
        assert!(from.len().is_multiple_of(4), "whole words of 16 bytes");
        let config = LaunchConfig {
            grid_dim: (self.processors * 2, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let count = from.len() / 4;
        let (from, to) = (self.address(from), self.address(to));
        let (stream, function) = (self.stream(), self.function(kernel, 0)?);
        let mut launch = stream.launch_builder(function);
        launch.arg(&from).arg(&to).arg(&count);
        // SAFETY: the arguments are those of the kernels; both buffers were checked to have what is read and written.
        unsafe { launch.launch(config) }.map_err(of("streaming"))?;
        Ok(())
    }
}
