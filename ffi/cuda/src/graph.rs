//! Launches recorded once and repeated.
//!
//! Invariant: a graph keeps the memory that its launches use, and is started only at places of the extent that it was
//! recorded for.

use crate::buffer::Memory;
use crate::device::{Device, of};
use crate::error::Error;
use crate::places::{Extent, Places};
use crate::turns::{Only, Turns};
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

/// What is used by launches that are being recorded.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// By where it is in this machine's memory.
    kept: HashMap<usize, Arc<Memory>>,
    extent: Option<Extent>,
}

impl Recording {
    fn name(memory: &Arc<Memory>) -> usize {
        Arc::as_ptr(memory).addr()
    }

    fn keeps(&self, memory: &Arc<Memory>) -> bool {
        self.kept.contains_key(&Recording::name(memory))
    }
}

/// Launches that are started together.
pub struct Graph {
    graph: Recorded,
    stream: Arc<CudaStream>,
    turns: Arc<Turns>,
    recording: Recording,
}

/// The driver's graph.
struct Recorded(CudaGraph);

// SAFETY: the driver lets any thread use a graph, one at a time; it is not shared, since it is not `Sync`.
unsafe impl Send for Recorded {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph")
            .field("kept", &self.recording.kept.len())
            .field("extent", &self.recording.extent)
            .finish()
    }
}

/// Launches on their way into a graph: no longer once this is dropped, also by a panic.
struct Capture<'a> {
    device: &'a Device,
    /// Whether the stream still records.
    records: bool,
    // Dropped last: memory that was of no more use meanwhile is freed by that.
    _only: Only<'a>,
}

impl<'a> Capture<'a> {
    fn begin(device: &'a Device) -> Result<Capture<'a>, Error> {
        let only = device.turns.only();
        device
            .stream()
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(of("recording launches"))?;
        *device.recording() = Some(Recording::default());
        Ok(Capture {
            device,
            records: true,
            _only: only,
        })
    }

    fn end(mut self) -> Result<(CudaGraph, Recording), Error> {
        self.records = false;
        let recording = self.device.recording().take().unwrap_or_default();
        let graph = self
            .device
            .stream()
            .end_capture(CUgraphInstantiate_flags(0))
            .map_err(of("recording launches"))?;
        let graph = graph.ok_or(Error::Driver {
            doing: "recording no launches",
            code: 0,
        })?;
        Ok((graph, recording))
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.records {
            // What was recorded is of no use.
            let _ = self
                .device
                .stream()
                .end_capture(CUgraphInstantiate_flags(0));
            self.device.recording().take();
        }
    }
}

impl Device {
    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with what this thread records, if it does.
    fn with_recording(&self, work: impl FnOnce(&mut Recording)) {
        if self.turns.records()
            && let Some(recording) = &mut *self.recording()
        {
            work(recording);
        }
    }

    /// Has a graph that is being recorded keep memory.
    pub(crate) fn keep(&self, memory: &Arc<Memory>) {
        self.with_recording(|recording| {
            let name = Recording::name(memory);
            let memory = || Arc::clone(memory);
            recording.kept.entry(name).or_insert_with(memory);
        });
    }

    /// Has a graph that is being recorded be for places like these.
    ///
    /// # Panics
    /// If it is for others already.
    pub(crate) fn keep_extent(&self, places: &Places) {
        self.with_recording(|recording| {
            let extent = *recording.extent.get_or_insert(places.extent);
            assert_eq!(extent, places.extent, "one extent for a graph");
        });
    }

    /// Records the launches that `work` makes, without running them. Work that was asked for before is done first. What other
    /// threads ask of the device meanwhile waits; memory that `work` drops is free afterwards.
    ///
    /// # Errors
    /// `work`'s, if it did nothing at all, or there is no room for the graph. What cannot be recorded is refused with [`Error::WhileRecording`].
    ///
    /// # Panics
    /// If this thread is recording launches already.
    pub fn record(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        assert!(!self.turns.records(), "one graph is recorded at a time");
        self.finish()?;
        let capture = Capture::begin(self)?;
        work()?;
        let (graph, recording) = capture.end()?;
        let graph = Graph {
            graph: Recorded(graph),
            stream: Arc::clone(&self.stream()),
            turns: Arc::clone(&self.turns),
            recording,
        };
        // What starting it takes of the device's memory is taken here, not when it is first started.
        let sent = graph.graph.0.upload();
        sent.map_err(of("taking memory for recorded launches"))?;
        Ok(graph)
    }
}

impl Graph {
    /// Runs the launches, at `places` if they were recorded at some.
    ///
    /// # Errors
    /// If the driver refuses, or launches are being recorded.
    ///
    /// # Panics
    /// If they were recorded for places of another extent: more or fewer columns, or outputs or numbers that were given,
    /// shorter sequences, or where there are more than 16 columns, another number of runs.
    pub fn launch(&self, places: Option<&Places>) -> Result<(), Error> {
        match (self.recording.extent, places) {
            (None, _) => {}
            (Some(_), None) => panic!("a graph that was recorded at places is started at some"),
            (Some(recorded), Some(places)) => {
                let now = places.extent;
                assert!(recorded.lies_as(&now) && now.reach <= recorded.reach);
                assert!(now.runs == recorded.runs || now.columns <= crate::attention::FEW_COLUMNS);
                assert!(self.recording.keeps(&places.data.memory), "the same places");
            }
        }
        if self.turns.records() {
            let doing = "starting recorded launches";
            return Err(Error::WhileRecording { doing });
        }
        let _turn = self.turns.turn(&self.stream);
        self.graph
            .0
            .launch()
            .map_err(of("starting recorded launches"))
    }

    /// Seconds that the device takes for the launches, each of `count` times one after the other.
    ///
    /// # Errors
    /// If the driver refuses, a launch failed, or launches are being recorded.
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
        if self.turns.records() {
            let doing = "timing launches";
            return Err(Error::WhileRecording { doing });
        }
        let turn = self.turns.turn(&self.stream);
        begin.record(&turn).map_err(of)?;
        for _ in 0..count {
            self.launch(places)?;
        }
        end.record(&turn).map_err(of)?;
        let milliseconds = begin.elapsed_ms(&end).map_err(of)?;
        Ok(f64::from(milliseconds) * 1e-3 / count as f64)
    }
}
