//! Sockets that the service manager listens on for this process (`sd_listen_fds(3)`).
//!
//! Invariant: a descriptor is handed out at most once in the life of a process, and only if the manager said that it is
//! meant for this one and nothing in this process has opened it.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that a manager passes.
const FIRST: RawFd = 3;

/// Most descriptors that are taken.
const COUNT_MAX: RawFd = 16;

/// What a manager says of them.
const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Whether they have an owner already.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors that were passed to this process, in their order, from now on closed in programs that it starts; none if it
/// was started otherwise, or at any later call. What the manager said of them is then taken out of the environment, as long as
/// no other thread could be reading that: to be called first of all.
///
/// # Errors
/// The manager's words cannot be understood, or a descriptor that it names is not open, or is not the manager's.
pub fn take_passed() -> io::Result<Vec<OwnedFd>> {
    let count = match (env::var("LISTEN_PID"), env::var("LISTEN_FDS")) {
        (Ok(pid), Ok(count)) if pid.parse() == Ok(std::process::id()) => count,
        _ => return Ok(Vec::new()),
    };
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    forget();
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    let count = count
        .parse::<RawFd>()
        .ok()
        .filter(|count| (0..=COUNT_MAX).contains(count))
        .ok_or_else(|| {
            invalid(format!(
                "LISTEN_FDS is {count:?}, which is no number from 0 to {COUNT_MAX}"
            ))
        })?;
    let passed = FIRST..FIRST + count;
    // All of them first, so that none has an owner if one is wrong.
    for descriptor in passed.clone() {
        let wrong = |why: &dyn std::fmt::Display| {
            invalid(format!("descriptor {descriptor} of LISTEN_FDS: {why}"))
        };
        // SAFETY: the call takes numbers only, and fails on one that is not open.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
        if flags < 0 {
            return Err(wrong(&io::Error::last_os_error()));
        }
        // One with this mark would not have come through the start of this program, and the standard library opens none
        // without it: it is somebody's in here.
        if flags & libc::FD_CLOEXEC != 0 {
            return Err(wrong(&"it was opened by this process"));
        }
        // SAFETY: as above.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, flags | libc::FD_CLOEXEC) } != 0 {
            return Err(wrong(&io::Error::last_os_error()));
        }
    }
    // SAFETY: each is open, came through the start of this program, and by the protocol is this process's to own. `TAKEN` lets
    // nobody have it twice.
    Ok(passed
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .collect())
}

/// Takes what the manager said out of the environment, for programs that this one starts. Not where there are several threads:
/// `TAKEN` keeps it from being believed again in here.
fn forget() {
    let alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone {
        for name in VARIABLES {
            // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
            unsafe { env::remove_var(name) };
        }
    }
}

/// Whether a descriptor is a socket that connections of streams can be accepted from.
///
/// # Errors
/// It is no socket at all.
pub fn listens_for_streams(socket: impl AsFd) -> io::Result<bool> {
    let descriptor = socket.as_fd().as_raw_fd();
    let option = |name| {
        let mut value: libc::c_int = 0;
        let mut bytes = size_of_val(&value) as libc::socklen_t;
        let place = (&raw mut value).cast();
        // SAFETY: there is room for as many bytes as it is told, all of whose patterns are numbers.
        let done =
            unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, name, place, &raw mut bytes) };
        if done == 0 {
            Ok(value)
        } else {
            Err(io::Error::last_os_error())
        }
    };
    Ok(option(libc::SO_TYPE)? == libc::SOCK_STREAM && option(libc::SO_ACCEPTCONN)? != 0)
}

#[cfg(test)]
mod tests {
    use super::listens_for_streams;
    use std::fs::File;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn only_what_streams_can_be_accepted_from_listens() {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("s")).expect("a socket");
        assert!(listens_for_streams(&listener).expect("a socket"));
        let (stream, _other) = UnixStream::pair().expect("sockets");
        assert!(!listens_for_streams(&stream).expect("a socket"));
        let datagram = UnixDatagram::bind(folder.path().join("d")).expect("a socket");
        assert!(!listens_for_streams(&datagram).expect("a socket"));
        let file = File::open("/dev/null").expect("a file");
        assert!(listens_for_streams(&file).is_err());
    }
}
