//! Sockets that the service manager listens on for this process (`sd_listen_fds(3)`).
//!
//! Invariant: a descriptor is handed out at most once in the life of a process, and only if the manager said that it is
//! meant for this one.

use std::env;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that the manager passes.
const FIRST: RawFd = 3;

/// Most descriptors that are taken.
const COUNT_MAX: RawFd = 16;

/// Whether they have an owner already.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors that were passed to this process, in their order, closed in programs that it starts; none if it was
/// started otherwise, or at any later call. To be called before the process opens anything at a number that the manager has
/// named, that is first of all.
///
/// # Errors
/// The manager's words cannot be understood, or a descriptor it names is not open.
pub fn take_passed() -> io::Result<Vec<OwnedFd>> {
    let count = match (env::var("LISTEN_PID"), env::var("LISTEN_FDS")) {
        (Ok(pid), Ok(count)) if pid.parse() == Ok(std::process::id()) => count,
        _ => return Ok(Vec::new()),
    };
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    let count = count
        .parse::<RawFd>()
        .ok()
        .filter(|count| (0..=COUNT_MAX).contains(count))
        .ok_or_else(|| invalid(format!("LISTEN_FDS is {count:?}")))?;
    let passed = FIRST..FIRST + count;
    // All of them first, so that none has an owner if one is wrong.
    for descriptor in passed.clone() {
        // SAFETY: the call takes numbers only, and fails on one that is not open.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            let error = io::Error::last_os_error();
            return Err(invalid(format!(
                "descriptor {descriptor} of LISTEN_FDS: {error}"
            )));
        }
    }
    // SAFETY: each is open, as was just seen. By the protocol the manager opened it for this process to own, and nothing here
    // has opened anything in its place: what opens takes the lowest free number, and these were not free. `TAKEN` lets
    // nobody have it twice.
    Ok(passed
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .collect())
}
