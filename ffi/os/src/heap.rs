//! An allocator that counts, for tests that hold the engine to its limits: a program installs [`Counting`] as its
//! global allocator and runs what it measures in [`measure`].
//!
//! Bytes are counted for each thread by itself, so that several may measure at once; calls for all together, so that
//! what worker threads do is seen too ([`calls`]). A measured function that asks for more than its
//! limit ends the process, naming the label it was given: an allocation that fails would end it too, without saying
//! what asked for it.
//!
//! Invariant: counting allocates nothing and takes no lock, so it may run inside any allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting;

#[derive(Clone, Copy)]
struct Count {
    /// Bytes taken since the measurement began, less those given back; negative where older ones were.
    now: isize,
    most: isize,
    limit: isize,
    label: u64,
}

thread_local! {
    /// Initialized at compile time and never dropped, so that it can be used inside allocations.
    static COUNT: Cell<Option<Count>> = const { Cell::new(None) };
}

/// Times that memory was asked for, by all threads together.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often the process has asked for memory so far, whichever thread it was.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// What the measured function gave, and the most bytes that it held at once.
///
/// If it asks for more than `limit` bytes, the process ends with a message that has `label`. Measurements do not nest:
/// an inner one takes the place of the outer.
pub fn measure<R>(limit: usize, label: u64, run: impl FnOnce() -> R) -> (R, usize) {
    COUNT.set(Some(Count {
        now: 0,
        most: 0,
        limit: isize::try_from(limit).unwrap_or(isize::MAX),
        label,
    }));
    let result = run();
    let most = COUNT.take().map_or(0, |count| count.most);
    (result, usize::try_from(most).unwrap_or(0))
}

/// Ends a measurement whose function did not return: it panicked.
pub fn forget() {
    COUNT.set(None);
}

fn count(bytes: isize) {
    // Not there any more while the thread ends.
    let _ = COUNT.try_with(|cell| {
        let Some(mut count) = cell.get() else {
            return;
        };
        count.now = count.now.saturating_add(bytes);
        count.most = count.most.max(count.now);
        if count.now > count.limit {
            cell.set(None);
            let Count { limit, label, .. } = count;
            let _ = writeln!(
                std::io::stderr(),
                "heap limit: {label} asks for {bytes} bytes more; its limit is {limit} in all"
            );
            std::process::abort();
        }
        cell.set(Some(count));
    });
}

fn signed(bytes: usize) -> isize {
    // No layout is larger than this.
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call goes to the system's allocator as it came; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        count(signed(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        count(signed(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // Both may be there at once.
        count(signed(size));
        // SAFETY: the caller's promise is passed on.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        count(-signed(if moved.is_null() { size } else { layout.size() }));
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) };
        count(-signed(layout.size()));
    }
}
