//! Worker threads for hundreds of short phases per token.
//!
//! A phase is one call of [`Pool::run`]: every thread, the caller included, runs the same closure once. Waiting is a
//! bounded spin, since the next phase usually starts within microseconds, then a sleep in the kernel, so that a busy
//! machine is not made busier and an idle pool costs nothing.
//!
//! Invariant: [`Pool::run`] returns only after every thread has left the closure, which is what lets the closure
//! borrow from the caller's stack.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread, ThreadId};

/// Spins before sleeping: some 50 to 150 microseconds, depending on what a pause costs the processor.
const SPINS_MAX: u32 = 4000;

/// Stack of a worker: kernels need a few kilobytes.
const STACK_BYTES: usize = 256 * 1024;

/// The number of threads this process may keep busy: its CPU affinity, limited by its cgroup's CPU quota.
#[must_use]
pub fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

type Phase<'a> = dyn Fn(usize) + Sync + 'a;

/// What the caller and the workers share.
struct Shared {
    /// Counts phases; a change is the signal to start.
    phase: AtomicU32,
    /// Points to the caller's `&Phase` while a phase runs.
    job: AtomicPtr<()>,
    /// Workers that have not finished the phase.
    running: AtomicUsize,
    /// Set when the pool is dropped; read after a change of `phase`.
    stopping: AtomicBool,
    /// Whether each worker sleeps or is about to.
    sleeping: Box<[AtomicBool]>,
    /// Whether the caller sleeps or is about to.
    caller_sleeping: AtomicBool,
    /// The thread that called last, to be woken.
    caller: Mutex<Option<Thread>>,
}

/// A fixed set of threads that run phases together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The thread that `Shared::caller` stands for.
    caller: Option<ThreadId>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Pool")
            .field("threads", &self.threads())
            .finish()
    }
}

impl Pool {
    /// A pool of `threads` threads, of which the caller of [`Pool::run`] is one.
    ///
    /// # Errors
    /// If the system does not give the threads.
    pub fn new(threads: NonZero<usize>) -> std::io::Result<Pool> {
        let count = threads.get() - 1;
        let shared = Arc::new(Shared {
            phase: AtomicU32::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            running: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            sleeping: (0..count).map(|_| AtomicBool::new(false)).collect(),
            caller_sleeping: AtomicBool::new(false),
            caller: Mutex::new(None),
        });
        let mut pool = Pool {
            shared,
            workers: Vec::with_capacity(count),
            caller: None,
        };
        for index in 0..count {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("andon-compute-{}", index + 1))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `phase` once on every thread, with thread indices `0..threads()`; the caller is 0.
    ///
    /// A panic on a worker aborts the process: its part of the result would be missing.
    pub fn run(&mut self, phase: &Phase<'_>) {
        if self.workers.is_empty() {
            phase(0);
            return;
        }
        let shared = &*self.shared;
        let current = thread::current();
        if self.caller != Some(current.id()) {
            self.caller = Some(current.id());
            *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
        }
        let caller = CallerGuard { shared };
        let job: &&Phase<'_> = &phase;
        shared
            .job
            .store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        // SeqCst here and in `wait`: either the worker sees the new phase before it sleeps, or we see that it sleeps.
        shared.phase.fetch_add(1, Ordering::SeqCst);
        for (worker, sleeping) in self.workers.iter().zip(&shared.sleeping) {
            if sleeping.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        phase(0);
        drop(caller);
    }
}

/// Waits for the workers when dropped, also when the caller's own part panics.
struct CallerGuard<'a> {
    shared: &'a Shared,
}

impl Drop for CallerGuard<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        wait(&shared.caller_sleeping, || {
            shared.running.load(Ordering::SeqCst) == 0
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.phase.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker that panicked has aborted the process already.
            let _ = worker.join();
        }
    }
}

/// Spins for a bounded time, then sleeps, until `done`; `sleeping` tells the other side to unpark this thread.
fn wait(sleeping: &AtomicBool, done: impl Fn() -> bool) {
    for _ in 0..SPINS_MAX {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
    sleeping.store(true, Ordering::SeqCst);
    while !done() {
        thread::park();
    }
    sleeping.store(false, Ordering::Relaxed);
}

/// Aborts when dropped during a panic.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait(&shared.sleeping[index], || {
            shared.phase.load(Ordering::SeqCst) != seen
        });
        seen = shared.phase.load(Ordering::SeqCst);
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let guard = AbortOnPanic;
        // SAFETY: `run` stored a pointer to a `&Phase` on its stack before it changed `phase`, and does not return
        // before `running` is zero, which this worker lets happen only after the call.
        let phase = unsafe { *shared.job.load(Ordering::Relaxed).cast::<&Phase<'_>>() };
        phase(index + 1);
        drop(guard);
        finish(shared);
    }
}

/// Tells the caller that this worker is done.
fn finish(shared: &Shared) {
    if shared.running.fetch_sub(1, Ordering::SeqCst) == 1
        && shared.caller_sleeping.load(Ordering::SeqCst)
        && let Some(caller) = &*shared.caller.lock().unwrap_or_else(PoisonError::into_inner)
    {
        caller.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::Pool;
    use std::num::NonZero;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_thread_runs_every_phase_once() {
        let mut pool = Pool::new(NonZero::new(4).expect("four")).expect("threads");
        for round in 0..2000 {
            let counts: [AtomicUsize; 4] = Default::default();
            pool.run(&|thread| {
                counts[thread].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) == 1),
                "round {round}"
            );
        }
    }

    #[test]
    fn wakes_threads_that_slept() {
        let mut pool = Pool::new(NonZero::new(2).expect("two")).expect("threads");
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let count = AtomicUsize::new(0);
            pool.run(&|thread| {
                if thread == 1 {
                    // Longer than the caller spins: it must sleep and be woken.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn serves_callers_on_different_threads() {
        let mut pool = Pool::new(NonZero::new(2).expect("two")).expect("threads");
        for _ in 0..3 {
            pool = std::thread::spawn(move || {
                pool.run(&|thread| {
                    std::thread::sleep(std::time::Duration::from_millis(thread as u64 * 3))
                });
                pool
            })
            .join()
            .expect("no panic");
        }
    }
}
