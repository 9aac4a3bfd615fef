//! Threads, and work shared out to them.

use andon_kernels::Share;
use andon_os::Pool;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};

/// A pool of threads and what deals tiles out to them.
#[derive(Debug)]
pub(crate) struct Threads {
    pub(crate) pool: Pool,
    /// One for each thread.
    pub(crate) shares: Box<[Share]>,
    /// One for each thread, of [`SCRATCH_ELEMENTS`], for what is used up within a phase.
    pub(crate) scratch: Box<[Mutex<Box<[f32]>>]>,
}

/// Elements of a thread's scratch: they fit L2 beside activations and weights.
pub(crate) const SCRATCH_ELEMENTS: usize = 1 << 14;

impl Threads {
    /// `count` threads, the caller's included.
    ///
    /// # Errors
    /// If the system does not give them.
    pub(crate) fn new(count: NonZero<usize>) -> std::io::Result<Threads> {
        let pool = Pool::new(count)?;
        Ok(Threads {
            shares: (0..pool.threads()).map(|_| Share::default()).collect(),
            scratch: (0..pool.threads())
                .map(|_| Mutex::new(vec![0.0; SCRATCH_ELEMENTS].into()))
                .collect(),
            pool,
        })
    }

    /// Number of threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// [`Pool::run`].
    pub(crate) fn run(&mut self, phase: &(dyn Fn(usize) + Sync)) {
        self.pool.run(phase);
    }
}

/// Runs `work` on every item, shared out over the threads. Items are borrowed pieces of buffers, taken one at a time
/// under a lock: make them large enough that the lock is not felt.
pub(super) fn share<I>(threads: &mut Threads, items: I, work: impl Fn(usize, I::Item) + Sync)
where
    I: Iterator + Send,
{
    let items = Mutex::new(items);
    threads.run(&|thread| {
        loop {
            let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = item else { return };
            work(thread, item);
        }
    });
}
