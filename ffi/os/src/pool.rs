//! Worker threads for hundreds of short phases per token.
//!
//! A phase is one call of [`Pool::run`]: the caller and the workers run the same closure, which takes pieces of work
//! until none are left. Waiting is a bounded spin, since the next phase usually starts within microseconds, then a
//! sleep in the kernel, so that a busy machine is not made busier and an idle pool costs nothing. When the caller
//! finds no more work it closes the phase: it waits for the workers that entered, not for those that other programs
//! kept from running, so a busy machine does not stall it.
//!
//! On a busy machine the system may put two of the threads on one processor and leave them there, since it counts how
//! many run on each and not who waits for whom. A thread that finds another beside it yields instead of spinning:
//! what it waits for cannot happen until the other runs.
//!
//! Invariant: [`Pool::run`] returns only after every thread that entered the closure has left it, and none enters
//! later; that is what lets the closure borrow from the caller's stack.

use std::num::NonZero;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread, ThreadId};
use std::time::{Duration, Instant};

/// How long to spin before sleeping, unless [`Pool::set_spin`] says otherwise: longer than what lies between two phases,
/// choosing a token included, and short beside the milliseconds for which other programs take a core. Waking a sleeper
/// costs 5 to 50 microseconds.
const SPIN: Duration = Duration::from_micros(100);

/// Spins between two looks at the clock: a microsecond or a few, depending on what a pause costs the processor.
const SPINS_PER_LOOK: u32 = 64;

/// Stack of a worker: kernels need a few kilobytes.
const STACK_BYTES: usize = 256 * 1024;

/// The number of threads this process may keep busy: its CPU affinity, limited by its cgroup's CPU quota.
#[must_use]
pub fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What `Shared::state` says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    const ENTERED: u64 = (1 << 16) - 1;
    const CLOSED: u64 = 1 << 16;
    const PHASE_SHIFT: u32 = 17;

    /// Phase `phase`, open, entered by nobody.
    fn open(phase: u64) -> State {
        State(phase << Self::PHASE_SHIFT)
    }

    fn phase(self) -> u64 {
        self.0 >> Self::PHASE_SHIFT
    }

    fn is_closed(self) -> bool {
        self.0 & Self::CLOSED != 0
    }

    fn entered(self) -> usize {
        (self.0 & Self::ENTERED) as usize
    }
}

/// Most workers that a state can count.
const WORKERS_MAX: usize = State::ENTERED as usize;

type Phase<'a> = dyn Fn(usize) + Sync + 'a;

/// On cache lines of its own, two of them because processors fetch lines in pairs: who waits for one value is not
/// slowed down by writes to another.
#[repr(align(128))]
struct Alone<T>(T);

/// What workers look at to begin a phase.
struct Start {
    /// Number of the phase, whether it is closed, and how many workers entered it; see [`State`].
    state: AtomicU64,
    /// Points to the caller's `&Phase` while a phase runs.
    job: AtomicPtr<()>,
    /// Set when the pool is dropped; read after a change of phase.
    stopping: AtomicBool,
}

/// What the caller looks at to end a phase.
struct End {
    /// Workers that entered the phase and left it.
    left: AtomicUsize,
    /// Whether the caller sleeps or is about to.
    caller_sleeping: AtomicBool,
}

/// What the caller and the workers share.
struct Shared {
    start: Alone<Start>,
    end: Alone<End>,
    /// Whether each worker sleeps or is about to.
    sleeping: Box<[AtomicBool]>,
    /// The processor on which each thread, the caller first, began its last phase, or [`NOWHERE`].
    processors: Box<[Alone<AtomicI32>]>,
    /// How long to spin before sleeping, in nanoseconds.
    spin_ns: AtomicU32,
    /// The thread that called last, to be woken.
    caller: Mutex<Option<Thread>>,
}

/// A fixed set of threads that run phases together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The thread that `Shared::caller` stands for.
    caller: Option<ThreadId>,
    /// Phases so far.
    phase: u64,
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
        let count = (threads.get() - 1).min(WORKERS_MAX);
        let shared = Arc::new(Shared {
            start: Alone(Start {
                state: AtomicU64::new(State::CLOSED),
                job: AtomicPtr::new(std::ptr::null_mut()),
                stopping: AtomicBool::new(false),
            }),
            end: Alone(End {
                left: AtomicUsize::new(0),
                caller_sleeping: AtomicBool::new(false),
            }),
            sleeping: (0..count).map(|_| AtomicBool::new(false)).collect(),
            processors: (0..=count)
                .map(|_| Alone(AtomicI32::new(NOWHERE)))
                .collect(),
            spin_ns: AtomicU32::new(nanoseconds(SPIN)),
            caller: Mutex::new(None),
        });
        let mut pool = Pool {
            shared,
            workers: Vec::with_capacity(count),
            caller: None,
            phase: 0,
        };
        for index in 0..count {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("andon-compute-{}", index + 1))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        // What starting a thread takes, memory for one, is over when this returns.
        while pool.shared.end.0.left.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Has threads spin for so long, at most four seconds, before they sleep: what sleeping and waking cost on this
    /// machine, where that is known.
    pub fn set_spin(&self, spin: Duration) {
        self.shared
            .spin_ns
            .store(nanoseconds(spin), Ordering::Relaxed);
    }

    /// Runs `phase` on the caller (thread 0) and on the workers (`1..threads()`) that come before the caller is
    /// through with it, once each at most. So `phase` must take its share of the work from where all find it, and
    /// return when none is left.
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
        shared.comes(0);
        let closing = CloseOnDrop { shared };
        let job: &&Phase<'_> = &phase;
        let Start {
            state, job: place, ..
        } = &shared.start.0;
        place.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        shared.end.0.left.store(0, Ordering::Relaxed);
        self.phase += 1;
        // SeqCst here and in `wait`: either the worker sees the new phase before it sleeps, or we see that it sleeps.
        state.store(State::open(self.phase).0, Ordering::SeqCst);
        for (worker, sleeping) in self.workers.iter().zip(&shared.sleeping) {
            if sleeping.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        phase(0);
        drop(closing);
    }
}

/// Closes the phase when dropped, also when the caller's own part panics, and waits for those inside.
struct CloseOnDrop<'a> {
    shared: &'a Shared,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        let state = &shared.start.0.state;
        let entered = State(state.fetch_or(State::CLOSED, Ordering::SeqCst)).entered();
        let End {
            left,
            caller_sleeping,
        } = &shared.end.0;
        shared.wait(0, caller_sleeping, || {
            left.load(Ordering::SeqCst) == entered
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let start = &self.shared.start.0;
        start.stopping.store(true, Ordering::Relaxed);
        start
            .state
            .store(State::open(self.phase + 1).0, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker that panicked has aborted the process already.
            let _ = worker.join();
        }
    }
}

/// A time that fits a word.
fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

impl Shared {
    /// Notes where `thread`, which calls this, begins a phase.
    fn comes(&self, thread: usize) {
        let (now, place) = (processor(), &self.processors[thread].0);
        // Others read it all the time, so it is written only when it changes.
        if place.load(Ordering::Relaxed) != now {
            place.store(now, Ordering::Relaxed);
        }
    }

    /// Whether `thread`, which calls this, is on a processor on which another is that does not sleep, as far as is
    /// known. No other can go on there before this one lets it.
    fn is_crowded(&self, thread: usize) -> bool {
        let here = processor();
        here != NOWHERE
            && self
                .processors
                .iter()
                .enumerate()
                .any(|(other, place)| other != thread && place.0.load(Ordering::Relaxed) == here)
    }

    /// Spins for a bounded time, then sleeps, until `done`; `sleeping` tells the other side to unpark this thread.
    fn wait(&self, thread: usize, sleeping: &AtomicBool, done: impl Fn() -> bool) {
        let mut began = None;
        loop {
            for _ in 0..SPINS_PER_LOOK {
                if done() {
                    return;
                }
                std::hint::spin_loop();
            }
            if self.is_crowded(thread) {
                thread::yield_now();
                if done() {
                    return;
                }
            }
            let now = Instant::now();
            let spin = Duration::from_nanos(self.spin_ns.load(Ordering::Relaxed).into());
            if now.saturating_duration_since(*began.get_or_insert(now)) >= spin {
                break;
            }
        }
        self.processors[thread].0.store(NOWHERE, Ordering::Relaxed);
        sleeping.store(true, Ordering::SeqCst);
        while !done() {
            thread::park();
        }
        sleeping.store(false, Ordering::Relaxed);
    }
}

/// In place of a processor: of a thread that sleeps, or when the system does not tell.
const NOWHERE: i32 = -1;

/// The processor that the calling thread runs on.
fn processor() -> i32 {
    // SAFETY: the call takes nothing and touches no memory of ours.
    unsafe { libc::sched_getcpu() }
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
    let Start {
        state: word,
        job,
        stopping,
    } = &shared.start.0;
    let state = || State(word.load(Ordering::SeqCst));
    // Phases set it anew.
    shared.end.0.left.fetch_add(1, Ordering::SeqCst);
    let mut seen = 0;
    loop {
        shared.wait(index + 1, &shared.sleeping[index], || {
            state().phase() != seen
        });
        let current = state();
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        if current.is_closed() {
            seen = current.phase();
            continue;
        }
        let entering = word.compare_exchange(
            current.0,
            current.0 + 1,
            Ordering::SeqCst,
            Ordering::Relaxed,
        );
        if entering.is_err() {
            continue;
        }
        seen = current.phase();
        shared.comes(index + 1);
        let guard = AbortOnPanic;
        // SAFETY: `run` stored a pointer to a `&Phase` on its stack before it opened the phase, and does not return
        // before everyone who entered it, as this worker just did, has left.
        let phase = unsafe { *job.load(Ordering::Relaxed).cast::<&Phase<'_>>() };
        phase(index + 1);
        drop(guard);
        let end = &shared.end.0;
        end.left.fetch_add(1, Ordering::SeqCst);
        if end.caller_sleeping.load(Ordering::SeqCst)
            && let Some(caller) = &*shared.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, processor};
    use std::num::NonZero;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[test]
    fn every_piece_of_work_is_done_once_per_phase() {
        let mut pool = Pool::new(NonZero::new(4).expect("four")).expect("threads");
        for round in 0..5000 {
            let next = AtomicUsize::new(0);
            let done: [AtomicUsize; 16] = Default::default();
            let threads: [AtomicUsize; 4] = Default::default();
            pool.run(&|thread| {
                threads[thread].fetch_add(1, Ordering::Relaxed);
                while let Some(piece) = done.get(next.fetch_add(1, Ordering::Relaxed)) {
                    piece.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(
                done.iter().all(|count| count.load(Ordering::Relaxed) == 1),
                "round {round}"
            );
            assert!(
                threads
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) <= 1),
                "round {round}"
            );
        }
    }

    #[test]
    fn workers_that_slept_take_part() {
        let mut pool = Pool::new(NonZero::new(2).expect("two")).expect("threads");
        for round in 0..5 {
            // Also threads that do not spin at all.
            pool.set_spin(std::time::Duration::from_micros(100 * (round % 2)));
            std::thread::sleep(std::time::Duration::from_millis(5));
            let worker_came = AtomicBool::new(false);
            pool.run(&|thread| {
                if thread == 1 {
                    worker_came.store(true, Ordering::SeqCst);
                    // Longer than the caller spins: it must sleep and be woken.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                } else {
                    while !worker_came.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                }
            });
        }
    }

    #[test]
    fn a_caller_that_panics_waits_for_those_inside() {
        let mut pool = Pool::new(NonZero::new(2).expect("two")).expect("threads");
        for _ in 0..20 {
            let (entered, left) = (AtomicBool::new(false), AtomicBool::new(false));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|thread| {
                    if thread == 1 {
                        entered.store(true, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(2));
                        left.store(true, Ordering::SeqCst);
                        return;
                    }
                    while !entered.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    // A panic without a message.
                    resume_unwind(Box::new(()));
                });
            }));
            assert!(outcome.is_err() && left.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn threads_on_one_processor_are_noticed_and_get_their_work_done() {
        let inside = std::thread::spawn(|| {
            // Workers inherit where they may run.
            let here = processor();
            // SAFETY: a set of processors is numbers, for which zeros stand for none, and the number is within it.
            let outcome = unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(usize::try_from(here).expect("a processor"), &mut set);
                libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
            };
            assert_eq!(outcome, 0, "the thread stays where it is");
            let mut pool = Pool::new(NonZero::new(3).expect("three")).expect("threads");
            assert!(!pool.shared.is_crowded(0), "nobody began a phase");
            let shared = Arc::clone(&pool.shared);
            for _ in 0..100 {
                let came = AtomicUsize::new(0);
                pool.run(&|thread| {
                    came.fetch_add(1, Ordering::SeqCst);
                    // Nobody is through before the last has come.
                    while came.load(Ordering::SeqCst) < 3 {
                        std::thread::yield_now();
                    }
                    assert!(shared.is_crowded(thread));
                });
            }
        });
        inside.join().expect("no panic");
    }

    #[test]
    fn serves_callers_on_different_threads() {
        let mut pool = Pool::new(NonZero::new(2).expect("two")).expect("threads");
        for _ in 0..3 {
            pool = std::thread::spawn(move || {
                pool.run(&|thread| {
                    std::thread::sleep(std::time::Duration::from_millis(thread as u64 * 3));
                });
                pool
            })
            .join()
            .expect("no panic");
        }
    }
}
