//! What memory an executor takes.
//!
//! Invariant: what is counted is what it takes once everything in it is full, and is known before any of it is taken.

use super::{Executor, ExecutorError, ExecutorOptions};
use crate::backend::{self, Backend, DeviceNeeds};
use crate::model::Model;

/// Bytes that an executor takes beside the model's files, as many rows of logits included as there is room for from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Of this machine's memory: activations. Where the processor may have to go on for a device, those that it takes then.
    pub activations: usize,
    /// The KV cache here when it is full; of a device's executor that of the processor, if that may have to go on.
    pub kv_cache: usize,
    /// The content of a page of it, wherever it is.
    pub page: usize,
    /// What a device takes, where one computes. A device that failed gives nothing back before the program ends, so all of
    /// it counts beside what the processor takes to go on.
    pub device: Option<DeviceNeeds>,
}

impl Needs {
    /// Bytes of this machine's memory, the device's included where it has no other.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let shared = self.device.filter(|device| device.integrated);
        // Pieces are there and here.
        let both = |device: DeviceNeeds| device.there().saturating_add(device.pieces);
        let shared = shared.map_or(0, both);
        self.activations
            .saturating_add(self.kv_cache)
            .saturating_add(shared)
    }

    /// Checks that a device that has a memory of its own has enough of it free. How much of this machine's there is for it is
    /// not for its driver to say.
    ///
    /// # Errors
    /// [`ExecutorError::NoRoom`], of this backend, where it has not.
    pub fn fits(&self, backend: Backend) -> Result<(), ExecutorError> {
        let Some(device) = self.device.filter(|device| !device.integrated) else {
            return Ok(());
        };
        let (needs, free) = (device.there(), device.free);
        if needs > free {
            return Err(ExecutorError::NoRoom {
                backend,
                needs,
                free,
            });
        }
        Ok(())
    }
}

impl Executor {
    /// What an executor of `model` takes; of a device's its memory, of which nothing is taken for that.
    ///
    /// # Errors
    /// As for [`Executor::new`], if it would fail before it takes anything.
    pub fn needs_of(model: &Model, options: &ExecutorOptions) -> Result<Needs, ExecutorError> {
        let plan = Executor::plan(model, options, None)?;
        let page = plan.geometry.token_bytes().saturating_mul(crate::kv::PAGE);
        let kv_cache = page.saturating_mul(plan.page_count);
        let processor = plan.sizes.bytes(plan.threads.get()).unwrap_or(usize::MAX);
        let backend = options.backend;
        let device = match (backend, model.decoder()) {
            (Backend::Cuda, Some(decoder)) => {
                if let Some(why) = model.not_covered(backend) {
                    return Err(ExecutorError::NotCovered { backend, why });
                }
                let room = (plan.geometry, plan.page_count);
                let needs = backend::needs(decoder, &plan.sizes, room);
                Some(needs.map_err(|source| ExecutorError::Device { backend, source })?)
            }
            _ => None,
        };
        let goes_on = device.is_none() || options.falls_back;
        let here = device.map_or(0, |device| device.here);
        Ok(Needs {
            activations: here.saturating_add(if goes_on { processor } else { 0 }),
            kv_cache: if goes_on { kv_cache } else { 0 },
            page,
            device,
        })
    }

    /// What it takes.
    #[must_use]
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Largest number of tokens of a batch.
    #[must_use]
    pub fn batch_tokens_max(&self) -> usize {
        self.running.sizes().tokens_max
    }

    /// Tokens that the KV cache holds in all.
    #[must_use]
    pub fn kv_tokens_max(&self) -> usize {
        self.cache.tokens_max()
    }

    /// Tokens that the pages of the KV cache hold which no sequence does; what is only remembered counts as free. A
    /// sequence takes whole pages of [`crate::kv::PAGE`] tokens.
    #[must_use]
    pub fn kv_tokens_free(&self) -> usize {
        self.cache.tokens_free()
    }

    /// Bytes of KV cache that one token takes.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> usize {
        self.cache.geometry().token_bytes()
    }

    /// Largest number of tokens of a sequence: the model's context, or less if the KV cache is smaller.
    #[must_use]
    pub fn context_tokens_max(&self) -> usize {
        self.running.sizes().context
    }
}
