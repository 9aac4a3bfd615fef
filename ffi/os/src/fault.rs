//! What happens when a page of a mapped file cannot be had: the file was truncated, or its disk gives errors. The
//! kernel sends SIGBUS to the thread that reads, and by default that ends the process.
//!
//! Here one handler, installed once for the process, looks whether the address lies in a map of ours. If it does, the
//! map is marked as damaged and the rest of it, from the page that failed, is replaced by zeros; the thread reads on
//! and whoever owns the map finds the mark. The whole rest, because a truncated file would else cost a signal a page,
//! and nothing in a damaged map is to be used any more. Any other SIGBUS goes to the handler that was there before,
//! or, where there was none, ends the process as it always did.
//!
//! The handler calls what POSIX allows in handlers, and `mmap`, which is a bare system call on Linux. It takes no
//! lock: ranges stand in a fixed array of atomics, each guarded by a version that is odd while it changes. A thread
//! that faults is borrowing its map, so the map's own entry does not change meanwhile.
//!
//! Invariant: the entries that are in use are those of live maps, so the handler replaces nobody else's memory.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

/// Maps that may be registered at once: several models of as many parts as any has.
const ENTRIES: usize = 4096;

/// A registered range of addresses.
struct Entry {
    /// Odd while the range changes.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0 if the entry is free.
    end: AtomicUsize,
    damaged: AtomicBool,
}

impl Entry {
    const fn free() -> Entry {
        Entry {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            damaged: AtomicBool::new(false),
        }
    }

    /// Sets the range; under the lock of [`INSTALLED`].
    fn set(&self, start: usize, end: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.damaged.store(false, Ordering::Relaxed);
        self.version.store((version | 1) + 1, Ordering::Release);
    }

    /// The end of the range, if `address` is in it; `None` while it changes.
    fn end_if_holds(&self, address: usize) -> Option<usize> {
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let stable = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (stable && (start..end).contains(&address)).then_some(end)
    }
}

static TABLE: [Entry; ENTRIES] = [const { Entry::free() }; ENTRIES];
/// Entries from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Whether the handler is in place; the lock also keeps changes of the table apart.
static INSTALLED: Mutex<bool> = Mutex::new(false);
/// A power of two; set before the handler is installed.
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// What handled SIGBUS before us. Written once, before our handler is installed, and only read by it.
struct Previous(std::cell::UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: see the type: the only write comes before the handler that reads it, in the order of `sigaction`.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(std::cell::UnsafeCell::new(MaybeUninit::uninit()));

/// A range of addresses in which SIGBUS is survived. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Guard {
    index: usize,
}

impl Guard {
    /// Registers the `bytes` bytes from `start` on, which must be a map of a file or of nothing.
    ///
    /// # Safety
    /// The range must be mapped by the caller, start at a page, and stay mapped until the guard is dropped; reads may
    /// begin to give zeros at any time.
    pub(crate) unsafe fn new(start: *const u8, bytes: usize) -> io::Result<Guard> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            install()?;
            *installed = true;
        }
        let used = USED.load(Ordering::Relaxed);
        let free = TABLE[..used]
            .iter()
            .position(|entry| entry.end.load(Ordering::Relaxed) == 0);
        let index = match free {
            Some(index) => index,
            None if used < ENTRIES => {
                // An entry is free until it is set, so it may be looked at before.
                USED.store(used + 1, Ordering::Release);
                used
            }
            None => return Err(io::Error::other("too many files are mapped")),
        };
        let start = start.addr();
        TABLE[index].set(start, start.saturating_add(bytes));
        Ok(Guard { index })
    }

    /// Whether a page of the range could not be had.
    pub(crate) fn is_damaged(&self) -> bool {
        TABLE[self.index].damaged.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _lock = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.index].set(0, 0);
    }
}

fn install() -> io::Result<()> {
    // SAFETY: a query without pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE_BYTES.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
    // SAFETY: zeros are a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    action.sa_sigaction = handler as libc::sighandler_t;
    // On the alternate stack where a thread has one: the handler that was there before may count on it.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: a query; `PREVIOUS` is ours to write until the handler is installed, which the caller's lock makes
    // happen once.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), PREVIOUS.0.get().cast()) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `action` is whole, and the handler is one for SA_SIGINFO.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands over a whole `siginfo_t`, and SIGBUS has an address; `errno` is the
    // thread's own.
    let (code, address, errno) = unsafe {
        (
            (*info).si_code,
            (*info).si_addr().addr(),
            libc::__errno_location(),
        )
    };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // Zero and less is a signal that some process sent; an unaligned access is no matter of pages. A page that was
    // found to be bad before anybody read it is left alone: the thread that is told may not be borrowing the map.
    let of_a_page = code > 0 && code != BUS_ADRALN && code != BUS_MCEERR_AO;
    if !(of_a_page && replace(address)) {
        pass_on(signal, code, info, context);
    }
    // SAFETY: as above. What was interrupted finds its `errno` as it was.
    unsafe { *errno = before };
}

/// `BUS_ADRALN`: the access was not aligned.
const BUS_ADRALN: libc::c_int = 1;
/// `BUS_MCEERR_AO`: memory failed that the thread did not ask for.
const BUS_MCEERR_AO: libc::c_int = 5;

/// Puts zeros in place of the page at `address` and what follows it in its map. False if it is in none of ours.
fn replace(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(ENTRIES);
    for entry in &TABLE[..used] {
        let Some(end) = entry.end_if_holds(address) else {
            continue;
        };
        let page = address & !(PAGE_BYTES.load(Ordering::Relaxed) - 1);
        // Before the zeros are there: whoever reads them, on whichever thread, finds the mark afterwards.
        entry.damaged.store(true, Ordering::Release);
        // SAFETY: by `Guard::new` the range is mapped, and its owner expects zeros; the interrupted thread borrows
        // it, so it stays mapped. The rest of its last page is nobody else's.
        let zeros = unsafe {
            libc::mmap(
                ptr::with_exposed_provenance_mut(page),
                end - page,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        return zeros != libc::MAP_FAILED;
    }
    false
}

/// Does with the signal what would have been done without us.
fn pass_on(
    signal: libc::c_int,
    code: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: written before this handler was installed, and never again.
    let previous = unsafe { (*PREVIOUS.0.get()).assume_init_ref() };
    match previous.sa_sigaction {
        libc::SIG_IGN if code <= 0 => {}
        // The kernel does not let a fault be ignored either.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: zeros are a `sigaction` with the default action. A fault comes again when this handler
            // returns; a signal that was sent does not, so it is sent again.
            unsafe {
                let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it with SA_SIGINFO gave a function of this type.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO gave a function of this type.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
