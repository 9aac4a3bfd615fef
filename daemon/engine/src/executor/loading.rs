//! How a device comes to compute, beside others that answer: made in pieces, changed over to, and back where it fails.
//!
//! Invariant: sequences and what is remembered outlive a change to a device; whoever changes back has given all of them away.

use super::{Executor, ExecutorError, ExecutorOptions, ForwardError};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DeviceError, Running};
use crate::model::Model;
use std::num::NonZero;
use std::sync::Arc;

/// Bytes of pages at most that are copied to a device while answers wait, unless sequences hold more: some tenths of a second.
const COPIED_BYTES_MAX: usize = 64 << 20;

/// Whoever has an executor made while others answer.
pub trait Loading {
    /// Asked before each piece of the weights that goes to a device: `sent` bytes of the files are on their way, of `all`.
    /// False ends it.
    fn goes_on(&mut self, sent: usize, all: usize) -> bool;

    /// Does `pass`, which computes on all threads or on the device, at a time at which it may. It is told by what it may be
    /// given up for something more urgent; it is then asked for again. False, and not done, ends it.
    fn pass(&mut self, pass: &mut dyn FnMut(&dyn Fn() -> bool)) -> bool;
}

/// Where nobody else answers.
#[derive(Clone, Copy, Debug)]
pub struct AtOnce;

impl Loading for AtOnce {
    fn goes_on(&mut self, _sent: usize, _all: usize) -> bool {
        true
    }

    fn pass(&mut self, pass: &mut dyn FnMut(&dyn Fn() -> bool)) -> bool {
        pass(&|| false);
        true
    }
}

/// An executor whose device has not been compared with the processor yet.
#[derive(Debug)]
#[must_use = "it is of use once it was compared"]
pub struct Uncompared {
    executor: Executor,
    options: ExecutorOptions,
}

impl Uncompared {
    /// Compares the device's logits of a few tokens with the processor's, in passes of both.
    ///
    /// # Errors
    /// If they differ, or the device fails; [`ExecutorError::GivenUp`] where `loading` ends it.
    pub fn compared(mut self, loading: &mut dyn Loading) -> Result<Executor, ExecutorError> {
        if self.executor.backend() != Backend::Cpu {
            self.executor.compare(&self.options, loading)?;
        }
        Ok(self.executor)
    }
}

impl Executor {
    /// [`Executor::new`] beside others that answer, without the comparison: a device has all of its memory and the weights in
    /// it. [`ExecutorError::GivenUp`] where `loading` ends it. What was read of the model's files for a device that has a
    /// memory of its own stays in this machine's until [`Model::release`].
    ///
    /// # Errors
    /// As for [`Executor::new`].
    pub fn load(
        model: Arc<Model>,
        options: &ExecutorOptions,
        loading: &mut dyn Loading,
    ) -> Result<Uncompared, ExecutorError> {
        let executor = Executor::made(model, options, None, None, loading)?;
        let options = options.clone();
        Ok(Uncompared { executor, options })
    }

    /// Has a device compute from now on: that of `other`, which was made of the same model and with the same options but for
    /// the backend. Sequences stay what they are, and what is remembered is copied as far as that takes no more than a moment.
    ///
    /// # Errors
    /// If the device fails; then all is as it was, but that what is remembered may be forgotten, and `other` is gone.
    ///
    /// # Panics
    /// If `other` is of another model, or made with other options.
    pub fn change_over(&mut self, other: Executor) -> Result<(), DeviceError> {
        assert!(Arc::ptr_eq(&self.model, &other.model), "one model");
        assert_eq!(self.cache.geometry(), other.cache.geometry());
        assert_eq!(self.cache.tokens_max(), other.cache.tokens_max());
        assert_eq!(self.running.sizes(), other.running.sizes());
        let Executor { running, cache, .. } = other;
        let Some(pages) = cache.into_cuda() else {
            return Ok(());
        };
        self.cache.go_to(pages, COPIED_BYTES_MAX)?;
        if let Running::Cpu(cpu) = std::mem::replace(&mut self.running, running) {
            self.resting = Some(cpu);
        }
        Ok(())
    }

    /// After a pass that `error` ended: has the processor compute from now on, if it is the device that failed and the options
    /// let it. What is remembered is forgotten. False, and nothing changed, if not, if there is a sequence that holds
    /// anything, or if the machine lacks threads or memory.
    pub fn fall_back(&mut self, error: &ForwardError) -> bool {
        let (ForwardError::Device(error), true) = (error, self.falls_back) else {
            return false;
        };
        let Some(threads) = NonZero::new(self.threads_max) else {
            return false;
        };
        if self.resting.is_none() {
            let sizes = *self.running.sizes();
            match Cpu::for_threads(self.isa, threads, self.threads_max, &sizes) {
                Ok(cpu) => self.resting = Some(Box::new(cpu)),
                Err(why) => {
                    tracing::warn!(%why, "the processor cannot go on for a device that failed");
                    return false;
                }
            }
        }
        if !self.cache.begin_here() {
            return false;
        }
        let Some(cpu) = self.resting.take() else {
            return false;
        };
        self.running = Running::Cpu(cpu);
        self.lost = Some(*error);
        self.model.will_need();
        true
    }
}
