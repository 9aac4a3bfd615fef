//! Models on the CPU: a pool of threads, a table of kernels, and the activations of one batch.
//!
//! Every sum is taken in one thread in a fixed order, so the number of threads changes no byte of a result.
//!
//! Invariant: buffers are sized at start for the largest batch; running a batch allocates nothing.

mod attend;
mod buffers;
pub mod encode;
mod heads;
mod matmul;
mod pass;
mod probe;
mod residual;
mod threads;

pub use buffers::Sizes;
pub use pass::Pass;
pub(crate) use probe::Probe;

use andon_kernels::{Isa, Table};
use buffers::Buffers;
use std::num::NonZero;
use threads::share;

pub(crate) use threads::Threads;

/// The CPU backend of one model.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) table: Table,
    pub(crate) pool: Threads,
    pub(crate) buffers: Buffers,
}

/// Why the backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The instruction set was asked for and this machine lacks it.
    #[error("instruction set `{}` is not supported by this machine (it has: {supported})", isa.name())]
    Isa {
        /// What was asked for.
        isa: Isa,
        /// What there is.
        supported: String,
    },
    /// Threads could not be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl CpuError {
    /// This machine lacks `isa`.
    pub(crate) fn unsupported(isa: Isa) -> CpuError {
        CpuError::Isa {
            isa,
            supported: Table::runnable()
                .map(|table| table.isa().name())
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

impl Cpu {
    /// A backend with `threads` threads and buffers of `sizes`.
    ///
    /// # Errors
    /// If the instruction set is not there, or the threads cannot be had.
    pub fn new(isa: Option<Isa>, threads: NonZero<usize>, sizes: &Sizes) -> Result<Cpu, CpuError> {
        Cpu::for_threads(isa, threads, threads.get(), sizes)
    }

    /// A backend with `threads` threads, whose buffers do for `lent` if it is given those of another.
    ///
    /// # Errors
    /// As for [`Cpu::new`].
    pub(crate) fn for_threads(
        isa: Option<Isa>,
        threads: NonZero<usize>,
        lent: usize,
        sizes: &Sizes,
    ) -> Result<Cpu, CpuError> {
        let isa = isa.unwrap_or_else(Isa::best);
        let table = Table::new(isa).ok_or_else(|| CpuError::unsupported(isa))?;
        let pool = Threads::new(threads).map_err(|source| CpuError::Threads {
            threads: threads.get(),
            source,
        })?;
        Ok(Cpu {
            table,
            buffers: Buffers::new(sizes, pool.threads().max(lent)),
            pool,
        })
    }
}
