//! How a model is to be run, and why it cannot be.
//!
//! Invariant: an option that is out of range is named with the range.

use crate::backend::cpu::CpuError;
use crate::backend::{Backend, DeviceError};
use crate::kv::KvType;
use andon_kernels::Isa;

/// How a model is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// What computes.
    pub backend: Backend,
    /// Whether the processor goes on where a device that computes fails.
    pub falls_back: bool,
    /// Threads; `None` for as many as the process may keep busy.
    pub threads: Option<usize>,
    /// Instruction set; `None` for the best of this machine.
    pub isa: Option<Isa>,
    /// Largest number of tokens of one batch.
    pub batch_tokens_max: usize,
    /// Rows of logits of one batch that there is room for from the start, which [`crate::Needs`] counts; a batch that
    /// gives more makes room for more.
    pub output_rows_max: usize,
    /// Tokens that the KV cache holds over all sequences, rounded up to whole pages.
    pub kv_tokens_max: usize,
    /// How the KV cache keeps keys and values.
    pub kv_type: KvType,
    /// Whether the KV cache remembers what sequences began with, for [`crate::Executor::sequence_of`].
    pub prefix_cache: bool,
    /// Whether passes of few tokens on a device are recorded and repeated; results are the same bytes without.
    pub graphs: bool,
}

impl Default for ExecutorOptions {
    fn default() -> ExecutorOptions {
        ExecutorOptions {
            backend: Backend::Cpu,
            falls_back: false,
            threads: None,
            isa: None,
            batch_tokens_max: 512,
            output_rows_max: 1,
            kv_tokens_max: 8192,
            kv_type: KvType::F16,
            prefix_cache: false,
            graphs: true,
        }
    }
}

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The backend cannot start.
    #[error(transparent)]
    Backend(#[from] CpuError),
    /// The device that is to compute has no room, or refuses.
    #[error("{backend}: {source}")]
    Device {
        /// What is to compute.
        backend: Backend,
        /// What its driver says.
        source: DeviceError,
    },
    /// The device has less memory free than the model takes there.
    #[error(
        "{backend}: the device has no room: the model takes {needs} bytes there, and {free} are free"
    )]
    NoRoom {
        /// What is to compute.
        backend: Backend,
        /// Bytes that it takes.
        needs: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// A device computes something else than the processor.
    #[error("{backend} does not compute what the processor does: {what}")]
    Differs {
        /// What is to compute.
        backend: Backend,
        /// Where that shows.
        what: String,
    },
    /// The backend cannot compute the model.
    #[error("{backend} cannot compute it: {why}")]
    NotCovered {
        /// What is to compute.
        backend: Backend,
        /// What it lacks.
        why: String,
    },
    /// The model generates no text.
    #[error("architecture `{architecture}` makes embeddings; it generates no text")]
    Encoder {
        /// The model's architecture.
        architecture: String,
    },
    /// An option is out of range.
    #[error("{option} is {value}: it must be between 1 and {max}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// Its largest value.
        max: usize,
    },
    /// The activations of a batch would take more memory than any model of this file's size has use for.
    #[error(
        "a batch of {tokens} tokens takes {bytes} bytes of activations: at most {max} are taken for this file; is it damaged?"
    )]
    Activations {
        /// Tokens of a batch.
        tokens: usize,
        /// Bytes that it takes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Whoever had it made wants it no more.
    #[error("it was given up")]
    GivenUp,
    /// There is not enough memory for the KV cache.
    #[error("not enough memory for a KV cache of {tokens} tokens")]
    KvMemory {
        /// Tokens asked for.
        tokens: usize,
    },
}
