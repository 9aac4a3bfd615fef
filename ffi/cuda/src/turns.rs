//! Whose turn the device's stream is: everybody's, but while one thread records launches.
//!
//! Invariant: from the beginning of a recording to its end nothing of another thread is asked of the stream, and nothing that
//! takes, frees or copies memory of the recording thread: so what is recorded is what that thread launched, and all of it
//! can be repeated.

use cudarc::driver::CudaStream;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    /// Calls of this thread that have a turn, one within the other.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// What this thread records with: the address of its [`Turns`], 0 for none.
    static RECORDS: Cell<usize> = const { Cell::new(0) };
}

/// The turns of one device.
#[derive(Default)]
pub(crate) struct Turns {
    /// Read by whoever has a turn, written by who records.
    lock: RwLock<()>,
    /// Memory that the recording thread had no more use for.
    unused: Mutex<Vec<Box<dyn Send>>>,
}

/// Something that is dropped in its turn, after the recording if the dropping thread records.
#[derive(Debug)]
pub(crate) struct InTurn<T: Send + 'static> {
    /// Until it is dropped.
    value: Option<T>,
    turns: Arc<Turns>,
}

/// The stream, for as long as this is kept.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    stream: &'a Arc<CudaStream>,
    _entry: Entry<'a>,
}

/// A thread among those that have a turn.
#[derive(Debug)]
struct Entry<'a> {
    counts: bool,
    // The thread that records has its turn for the whole time, and one that has one already does not ask again: it would
    // wait behind who waits for it.
    _guard: Option<RwLockReadGuard<'a, ()>>,
}

/// The time of a recording.
#[derive(Debug)]
pub(crate) struct Only<'a> {
    turns: &'a Turns,
    guard: Option<RwLockWriteGuard<'a, ()>>,
}

impl Deref for Turn<'_> {
    type Target = Arc<CudaStream>;

    fn deref(&self) -> &Arc<CudaStream> {
        self.stream
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.counts {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
}

impl Turns {
    fn name(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether the calling thread records.
    pub(crate) fn records(&self) -> bool {
        RECORDS.try_with(Cell::get) == Ok(self.name())
    }

    fn enter(&self) -> Entry<'_> {
        if self.records() {
            return Entry {
                counts: false,
                _guard: None,
            };
        }
        // A thread that ends has none.
        let depth = DEPTH.try_with(|depth| depth.replace(depth.get() + 1));
        let first = depth.unwrap_or(0) == 0;
        let guard = || self.lock.read().unwrap_or_else(PoisonError::into_inner);
        Entry {
            counts: depth.is_ok(),
            _guard: first.then(guard),
        }
    }

    /// Waits for a turn to use `stream`.
    pub(crate) fn turn<'a>(&'a self, stream: &'a Arc<CudaStream>) -> Turn<'a> {
        Turn {
            stream,
            _entry: self.enter(),
        }
    }

    /// Waits until nobody else has a turn, and has the calling thread record.
    ///
    /// # Panics
    /// If it does already.
    pub(crate) fn only(&self) -> Only<'_> {
        assert!(RECORDS.get() == 0, "one graph is recorded at a time");
        let guard = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        RECORDS.set(self.name());
        Only {
            turns: self,
            guard: Some(guard),
        }
    }

    fn unused(&self) -> MutexGuard<'_, Vec<Box<dyn Send>>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl<T: Send> InTurn<T> {
    pub(crate) fn new(value: T, turns: &Arc<Turns>) -> InTurn<T> {
        InTurn {
            value: Some(value),
            turns: Arc::clone(turns),
        }
    }
}

impl<T: Send> Deref for InTurn<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
            .as_ref()
            .expect("it is there until it is dropped")
    }
}

impl<T: Send> DerefMut for InTurn<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value
            .as_mut()
            .expect("it is there until it is dropped")
    }
}

impl<T: Send + 'static> Drop for InTurn<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if self.turns.records() {
            self.turns.unused().push(Box::new(value));
        } else {
            let _entry = self.turns.enter();
            drop(value);
        }
    }
}

impl Drop for Only<'_> {
    fn drop(&mut self) {
        RECORDS.set(0);
        self.guard.take();
        let unused = std::mem::take(&mut *self.turns.unused());
        let _entry = self.turns.enter();
        drop(unused);
    }
}
