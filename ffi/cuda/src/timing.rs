//! Launches recorded once and repeated, and how long they take.

use crate::device::{Buffer, Device, of};
use crate::error::Error;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, LaunchConfig, PushKernelArg};

/// Launches that are started together.
pub struct Graph<'a> {
    graph: CudaGraph,
    device: &'a Device,
}

impl Device {
    /// Records the launches that `work` makes, without running them.
    ///
    /// # Errors
    /// `work`'s, or if it did anything that cannot be recorded, or nothing at all.
    pub fn record<'a>(
        &'a self,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Graph<'a>, Error> {
        self.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(of("recording launches"))?;
        let done = work();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        done?;
        let graph = graph.map_err(of("recording launches"))?;
        let graph = graph.ok_or(Error::Driver {
            doing: "recording no launches",
            code: 0,
        })?;
        Ok(Graph {
            graph,
            device: self,
        })
    }
}

/// Threads of a block that streams.
const STREAM_THREADS: u32 = 1024;

impl Device {
    /// Elements that [`Device::stream_read`] leaves.
    #[must_use]
    pub fn stream_sums(&self) -> usize {
        (self.processors * 2 * STREAM_THREADS * 4) as usize
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
            block_dim: (STREAM_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let count = from.len() / 4;
        let mut launch = self.stream.launch_builder(self.function(kernel, 0)?);
        launch.arg(&from.slice).arg(&mut to.slice).arg(&count);
        // SAFETY: the arguments are those of the kernels; both buffers were checked to have what is read and written.
        unsafe { launch.launch(config) }.map_err(of("streaming"))?;
        Ok(())
    }
}

impl Graph<'_> {
    /// Runs the launches.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self) -> Result<(), Error> {
        self.graph
            .launch()
            .map_err(of("starting recorded launches"))
    }

    /// Seconds that the device takes for the launches, each of `count` times one after the other.
    ///
    /// # Errors
    /// If the driver refuses, or a launch failed.
    pub fn time(&self, count: usize) -> Result<f64, Error> {
        let of = of("timing launches");
        let event = || {
            self.device
                .context
                .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(of)
        };
        let (begin, end) = (event()?, event()?);
        begin.record(&self.device.stream).map_err(of)?;
        for _ in 0..count {
            self.launch()?;
        }
        end.record(&self.device.stream).map_err(of)?;
        let milliseconds = begin.elapsed_ms(&end).map_err(of)?;
        Ok(f64::from(milliseconds) * 1e-3 / count as f64)
    }
}
