//! Models on NVIDIA cards and Jetson.
//!
//! The first device that the driver has is opened once for the whole program, when it is first wanted, and by all models
//! together. Its kernels give the processor's bytes, so pages of keys and values, logits and answers are the same on both. A
//! device that broke is of no use to the process any more.
//!
//! Invariant: what a model takes is known before any of it is taken ([`needs`]), and all of that is taken before its weights are
//! sent; what a device has no room for shows then. Only graphs are made later: whatever a device has no room for then, passes
//! do without.

mod buffers;
mod given;
mod graphs;
mod pages;
mod pass;
mod rows;
mod walk;
mod weights;

pub(crate) use pages::CudaPages;

use super::State;
use super::cpu::Sizes;
use super::steps::Batch;
use crate::kv::{Geometry, PAGE};
use crate::models::Architecture;
use andon_cuda::{Device, Error};
use buffers::Buffers;
use given::Positions;
use graphs::{Graphs, Kind};
use pass::{FEW_TOKENS, Pass};
use rows::Read;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use weights::{Parts, Upload, Weights};

/// The device, or why there is none.
static DEVICE: OnceLock<Result<Arc<Device>, Error>> = OnceLock::new();

/// Why this program has no kernels; `None` if it has.
pub(super) fn not_built() -> Option<&'static str> {
    andon_cuda::not_built()
}

/// The device.
///
/// # Errors
/// [`Error`], always the same once it was opened or could not be.
fn device() -> Result<Arc<Device>, Error> {
    let device = DEVICE.get_or_init(|| Device::open(0).map(Arc::new));
    device.clone()
}

/// See [`super::Backend::state`].
pub(super) fn state() -> State {
    if let Some(why) = not_built() {
        return State::NotBuilt(why.to_owned());
    }
    let limits = device().and_then(|device| device.limits());
    match limits {
        Ok(limits) => {
            let (major, minor) = limits.capability;
            State::Available(format!(
                "{}, sm_{major}{minor}, {} processors",
                limits.name, limits.processors
            ))
        }
        Err(error) => State::Unavailable(error.to_string()),
    }
}

/// Why there are no kernels for a decoder; `None` if there are.
pub(crate) fn not_covered(decoder: &dyn Architecture) -> Option<String> {
    weights::not_covered(decoder)
}

/// Bytes that a model takes where the device computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNeeds {
    /// Whether the device's memory is this machine's.
    pub integrated: bool,
    /// Of the device's memory: packed weights.
    pub weights: usize,
    /// Activations there.
    pub activations: usize,
    /// The KV cache there.
    pub kv_cache: usize,
    /// Pieces of the weights on their way, there and as many here, until they are there.
    pub pieces: usize,
    /// Of this machine's memory: what of activations goes to the device and comes from there.
    pub here: usize,
    /// Bytes that the device has free.
    pub free: usize,
}

impl DeviceNeeds {
    /// Bytes of the device's memory at most, before the last piece is there.
    #[must_use]
    pub fn there(&self) -> usize {
        let parts = [self.weights, self.activations, self.kv_cache, self.pieces];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}

/// What a decoder that is covered takes, with room for `pages` pages of keys and values. Nothing is taken for that.
///
/// # Errors
/// If there is no device.
pub(crate) fn needs(
    decoder: &dyn Architecture,
    sizes: &Sizes,
    (geometry, pages): (Geometry, usize),
) -> Result<DeviceNeeds, Error> {
    let limits = device()?.limits()?;
    let parts = Parts::of(decoder);
    Ok(DeviceNeeds {
        integrated: limits.integrated,
        weights: parts.bytes(),
        activations: Buffers::bytes(sizes),
        kv_cache: pages.saturating_mul(geometry.token_bytes().saturating_mul(PAGE)),
        pieces: parts.pieces_bytes(),
        here: Buffers::bytes_here(sizes),
        free: limits.memory_bytes.0,
    })
}

/// The backend of one model.
#[derive(Debug)]
pub(crate) struct Cuda {
    device: Arc<Device>,
    weights: Weights,
    buffers: Buffers,
    sizes: Sizes,
    positions: Positions,
    graphs: Graphs,
    read: Read,
}

impl Cuda {
    /// The backend of a decoder that is covered, and room for `pages` pages of keys and values; `None` if it was given up:
    /// before each piece of the weights `goes_on` is asked, and told how many bytes of the files were sent, and of how many.
    /// All of the room is taken before. Where it is this machine's memory, each piece's pages of the files are given back.
    ///
    /// # Errors
    /// If there is no device, it has no room, or it fails. What was taken of it is free again then.
    pub(crate) fn new(
        decoder: &dyn Architecture,
        from: crate::weights::Weights<'_>,
        sizes: &Sizes,
        room: (Geometry, usize),
        goes_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(Cuda, CudaPages)>, Error> {
        let device = device()?;
        let made = Cuda::made(&device, decoder, from, sizes, room, goes_on);
        if !matches!(made, Ok(Some(_))) {
            // Memory goes back where work comes to its end.
            let _ = device.finish();
        }
        made
    }

    fn made(
        device: &Arc<Device>,
        decoder: &dyn Architecture,
        from: crate::weights::Weights<'_>,
        sizes: &Sizes,
        (geometry, pages): (Geometry, usize),
        goes_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(Cuda, CudaPages)>, Error> {
        let integrated = device.limits()?.integrated;
        let buffers = Buffers::new(device, sizes, pages)?;
        let pages = CudaPages::new(Arc::clone(device), geometry, pages)?;
        let mut upload = Upload::begin(device, Parts::of(decoder))?;
        loop {
            let (sent, all) = upload.sent();
            if !goes_on(sent, all) {
                return Ok(None);
            }
            if !upload.send(from, integrated)? {
                break;
            }
        }
        let cuda = Cuda {
            weights: upload.finish()?,
            buffers,
            sizes: *sizes,
            positions: Positions::of(decoder, sizes),
            graphs: Graphs::new(),
            read: Read::default(),
            device: Arc::clone(device),
        };
        Ok(Some((cuda, pages)))
    }

    /// The sizes of the largest batch.
    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Has passes of few tokens be recorded as graphs, or not.
    pub(crate) fn record(&mut self, wanted: bool) {
        self.graphs.want(wanted);
    }

    /// Runs a batch. Breaks where the pass was interrupted.
    ///
    /// # Errors
    /// What went wrong on the device, since the last pass.
    pub(crate) fn forward(
        &mut self,
        decoder: &dyn Architecture,
        pages: &mut CudaPages,
        batch: &Batch,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<ControlFlow<()>, Error> {
        pages.failed.map_or(Ok(()), Err)?;
        self.read.begin();
        let (tokens, outputs) = (batch.tokens.len(), batch.outputs.len());
        let length = batch.positions.iter().max().map_or(0, |last| last + 1);
        let kind = Kind::of(tokens, outputs, length, self.sizes.context);
        let recorded = tokens <= FEW_TOKENS && self.graphs.are_wanted();
        let reach = if recorded { kind.reach } else { length };
        let places = &mut self.buffers.places;
        self.positions.give(&self.device, batch, reach, places)?;
        if recorded && interrupted() {
            return Ok(ControlFlow::Break(()));
        }
        if !(recorded && self.start(decoder, pages, batch, kind)?) {
            let flow = self.walk(decoder, pages, batch, interrupted)?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        if outputs == 0 {
            // What was asked for goes wrong here, not in the next pass.
            self.device.finish()?;
        } else {
            let best = &mut self.buffers.best;
            self.read.end(&self.device, best, outputs)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Asks for one step after the other.
    fn walk(
        &mut self,
        decoder: &dyn Architecture,
        pages: &mut CudaPages,
        batch: &Batch,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<ControlFlow<()>, Error> {
        let mut pass = Pass {
            cuda: self,
            pages,
            batch,
            interrupted,
            pending: None,
            layer_end: None,
            heads: None,
            done: Ok(()),
        };
        let flow = decoder.forward(&mut pass);
        pass.done.map(|()| flow)
    }

    /// Starts the graph of such passes, recorded before or now; false if there is none.
    fn start(
        &mut self,
        decoder: &dyn Architecture,
        pages: &mut CudaPages,
        batch: &Batch,
        kind: Kind,
    ) -> Result<bool, Error> {
        if self.graphs.find(&kind).is_none() {
            if !self.graphs.is_worth_recording(kind) {
                return Ok(false);
            }
            let device = Arc::clone(&self.device);
            let recorded = device.record(|| {
                let whole = self.walk(decoder, pages, batch, &|| false)?;
                debug_assert!(whole.is_continue(), "nobody interrupts it");
                Ok(())
            });
            self.graphs.keep(kind, recorded)?;
        }
        let Some(graph) = self.graphs.find(&kind) else {
            return Ok(false);
        };
        match graph.launch(Some(&self.buffers.places)) {
            Ok(()) => {
                self.graphs.counts.started += 1;
                Ok(true)
            }
            // Nothing of it was asked for.
            Err(error) => self.graphs.not_started(error).map(|()| false),
        }
    }
}
