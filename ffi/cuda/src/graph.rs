//! Launches recorded once and repeated.
//!
//! Invariant: a graph keeps every buffer that its launches use, and is started only at places of the extent that it was
//! recorded for.

use crate::device::{Device, of};
use crate::error::Error;
use crate::places::{Extent, Places};
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};
use std::any::Any;
use std::sync::{Arc, MutexGuard, PoisonError};

/// What is used by launches that are being recorded.
#[derive(Default)]
pub(crate) struct Recording {
    kept: Vec<Arc<dyn Any + Send + Sync>>,
    extent: Option<Extent>,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("kept", &self.kept.len())
            .field("extent", &self.extent)
            .finish()
    }
}

/// Launches that are started together.
pub struct Graph {
    graph: Recorded,
    stream: Arc<CudaStream>,
    recording: Recording,
}

/// The driver's graph.
struct Recorded(CudaGraph);

// SAFETY: the driver lets any thread use a graph, one at a time; it is not shared, since it is not `Sync`.
unsafe impl Send for Recorded {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.recording.fmt(f)
    }
}

impl Device {
    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a graph that is being recorded keep a buffer.
    pub(crate) fn keep(&self, buffer: Arc<dyn Any + Send + Sync>) {
        if let Some(recording) = &mut *self.recording() {
            recording.kept.push(buffer);
        }
    }

    /// Has a graph that is being recorded be for places like these.
    ///
    /// # Panics
    /// If it is for others already.
    pub(crate) fn keep_extent(&self, places: &Places) {
        if let Some(recording) = &mut *self.recording() {
            let extent = *recording.extent.get_or_insert(places.extent);
            assert_eq!(extent, places.extent, "one extent for a graph");
        }
    }

    /// Records the launches that `work` makes, without running them. Work that was asked for before is done first.
    ///
    /// # Errors
    /// `work`'s, or if it did anything that cannot be recorded, or nothing at all.
    ///
    /// # Panics
    /// If launches are being recorded already.
    pub fn record(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.finish()?;
        {
            let mut recording = self.recording();
            assert!(recording.is_none(), "one graph is recorded at a time");
            *recording = Some(Recording::default());
        }
        let done = self.capture(work);
        let recording = self.recording().take().unwrap_or_default();
        Ok(Graph {
            graph: Recorded(done?),
            stream: Arc::clone(&self.stream),
            recording,
        })
    }

    fn capture(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<CudaGraph, Error> {
        self.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(of("recording launches"))?;
        let done = work();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        done?;
        let graph = graph.map_err(of("recording launches"))?;
        graph.ok_or(Error::Driver {
            doing: "recording no launches",
            code: 0,
        })
    }
}

impl Graph {
    /// Runs the launches, at `places` if they were recorded at some.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If they were recorded for places of another extent: more or fewer columns, shorter sequences, or where there are
    /// more than 16 columns, another number of runs.
    pub fn launch(&self, places: Option<&Places>) -> Result<(), Error> {
        match (self.recording.extent, places) {
            (None, _) => {}
            (Some(_), None) => panic!("a graph that was recorded at places is started at some"),
            (Some(recorded), Some(places)) => {
                let now = places.extent;
                assert!(now.columns == recorded.columns && now.reach <= recorded.reach);
                assert!(now.runs == recorded.runs || now.columns <= crate::attention::FEW_COLUMNS);
                let same = |kept: &Arc<dyn Any + Send + Sync>| places.data.is(kept);
                assert!(self.recording.kept.iter().any(same), "the same places");
            }
        }
        self.graph
            .0
            .launch()
            .map_err(of("starting recorded launches"))
    }

    /// Seconds that the device takes for the launches, each of `count` times one after the other.
    ///
    /// # Errors
    /// If the driver refuses, or a launch failed.
    ///
    /// # Panics
    /// As for [`Graph::launch`].
    pub fn time(&self, places: Option<&Places>, count: usize) -> Result<f64, Error> {
        let of = of("timing launches");
        let event = || {
            self.stream
                .context()
                .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(of)
        };
        let (begin, end) = (event()?, event()?);
        begin.record(&self.stream).map_err(of)?;
        for _ in 0..count {
            self.launch(places)?;
        }
        end.record(&self.stream).map_err(of)?;
        let milliseconds = begin.elapsed_ms(&end).map_err(of)?;
        Ok(f64::from(milliseconds) * 1e-3 / count as f64)
    }
}
