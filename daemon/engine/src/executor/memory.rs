//! What memory an executor takes.
//!
//! Invariant: what is counted is what it takes once everything in it is full.

use super::Executor;
use crate::backend::Running;

impl Executor {
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

    /// Bytes of this machine's memory that activations take, with as many rows of logits as there is room for from the start,
    /// and the KV cache when it is full.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let activations = self.running.bytes(self.threads_max);
        activations
            .max(self.fallback_bytes())
            .saturating_add(self.kv_bytes())
    }

    /// Bytes of activations where the processor may have to go on.
    fn fallback_bytes(&self) -> usize {
        if self.falls_back {
            let bytes = self.running.sizes().bytes(self.threads_max);
            bytes.unwrap_or(usize::MAX)
        } else {
            0
        }
    }

    /// Those of the KV cache.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        match &self.running {
            Running::Cuda(cuda) if !cuda.is_integrated() && !self.falls_back => 0,
            Running::Cpu(_) | Running::Cuda(_) => self
                .kv_tokens_max()
                .saturating_mul(self.kv_bytes_per_token()),
        }
    }

    /// Bytes of this machine's memory that copies of the weights take; `None` if they are used where the model's files are
    /// mapped.
    #[must_use]
    pub fn weights_bytes(&self) -> Option<usize> {
        match &self.running {
            Running::Cpu(_) => None,
            Running::Cuda(cuda) => Some(cuda.weights_bytes()),
        }
    }

    /// Largest number of tokens of a sequence: the model's context, or less if the KV cache is smaller.
    #[must_use]
    pub fn context_tokens_max(&self) -> usize {
        self.running.sizes().context
    }
}
