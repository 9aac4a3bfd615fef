//! A backend at work on one model.

use super::Backend;
use super::cpu::{Cpu, Pass, Probe, Sizes};
use super::cuda::Cuda;
use super::steps::Batch;
use crate::kv::Cache;
use crate::model::Model;
use crate::sample::LogitRow;
use andon_cuda::Error;
use andon_kernels::Isa;
use std::ops::ControlFlow;

/// What a device did for a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Passes that were recorded.
    pub recorded: u64,
    /// Passes that were started as a whole, from what was recorded.
    pub started: u64,
    /// Rows of logits that were read as a whole: mostly the best of a row are enough.
    pub rows_read: u64,
}

/// What computes a model's batches.
#[derive(Debug)]
pub(crate) enum Running {
    /// This machine's processor.
    Cpu(Box<Cpu>),
    /// A card.
    Cuda(Box<Cuda>),
}

impl Running {
    /// Which it is.
    pub(crate) fn backend(&self) -> Backend {
        match self {
            Running::Cpu(_) => Backend::Cpu,
            Running::Cuda(_) => Backend::Cuda,
        }
    }

    /// The processor, if it is that.
    pub(crate) fn cpu(&mut self) -> Option<&mut Cpu> {
        match self {
            Running::Cpu(cpu) => Some(cpu),
            Running::Cuda(_) => None,
        }
    }

    /// The sizes of the largest batch.
    pub(crate) fn sizes(&self) -> &Sizes {
        match self {
            Running::Cpu(cpu) => &cpu.buffers.sizes,
            Running::Cuda(cuda) => cuda.sizes(),
        }
    }

    /// The instruction set of what is computed here.
    pub(crate) fn isa(&self) -> Isa {
        match self {
            Running::Cpu(cpu) => cpu.table.isa(),
            Running::Cuda(_) => Isa::best(),
        }
    }

    /// Threads that compute, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        match self {
            Running::Cpu(cpu) => cpu.pool.threads(),
            Running::Cuda(_) => 1,
        }
    }

    /// What times are taken of; `None` where there is nothing to be known of this machine by that.
    pub(crate) fn probe<'a>(&'a mut self, model: &'a Model) -> Option<Probe<'a>> {
        Some(Probe {
            cpu: self.cpu()?,
            pack: model.pack(),
            model,
        })
    }

    /// Runs a batch, of which `kept` are the tokens that are to have logits, if those are not all. Breaks where `interrupted`
    /// said so.
    ///
    /// # Errors
    /// What went wrong on a device.
    pub(crate) fn forward(
        &mut self,
        model: &Model,
        cache: &mut Cache,
        (batch, kept): (&Batch, Option<&Batch>),
        interrupted: &dyn Fn() -> bool,
    ) -> Result<ControlFlow<()>, Error> {
        // No executor is made of another model.
        let decoder = model.decoder().expect("the model is a decoder");
        match self {
            Running::Cpu(cpu) => loop {
                let pack = model.pack();
                let mut pass = Pass {
                    cpu,
                    // A cache is made where its backend computes.
                    cache: cache.host().expect("the pages are here"),
                    weights: model.weights(pack.as_deref()),
                    batch,
                    kept,
                    interrupted,
                };
                let done = decoder.forward(&mut pass);
                // A second pass writes the same places that the first did.
                if !model.leave_damaged(pack.as_ref()) {
                    return Ok(done);
                }
            },
            Running::Cuda(cuda) => {
                // A cache is made where its backend computes.
                let pages = cache.cuda().expect("the pages are on the device");
                cuda.forward(decoder, pages, batch, interrupted)
            }
        }
    }

    /// Output `index` of the last batch, of `row_length` logits.
    ///
    /// # Panics
    /// If there is no such output.
    pub(crate) fn row(&self, index: usize, row_length: usize) -> LogitRow<'_> {
        match self {
            Running::Cpu(cpu) => {
                let range = index * row_length..(index + 1) * row_length;
                LogitRow::from(&cpu.buffers.logits[range])
            }
            Running::Cuda(cuda) => cuda.row(index),
        }
    }

    /// Why a row of the last batch could not be read, if one could not.
    pub(crate) fn unread(&self) -> Option<Error> {
        match self {
            Running::Cpu(_) => None,
            Running::Cuda(cuda) => cuda.unread(),
        }
    }

    /// Has all logits of the last batch be in this machine's memory.
    ///
    /// # Errors
    /// If they cannot be read from a device.
    pub(crate) fn read_all(&mut self) -> Result<(), Error> {
        match self {
            Running::Cpu(_) => Ok(()),
            Running::Cuda(cuda) => cuda.read_all(),
        }
    }

    /// What a device did, in all batches.
    pub(crate) fn counts(&self) -> DeviceCounts {
        match self {
            Running::Cpu(_) => DeviceCounts::default(),
            Running::Cuda(cuda) => cuda.counts(),
        }
    }

    /// All logits of the last batch, after [`Running::read_all`].
    pub(crate) fn logits(&self) -> &[f32] {
        match self {
            Running::Cpu(cpu) => &cpu.buffers.logits,
            Running::Cuda(cuda) => cuda.logits(),
        }
    }
}
