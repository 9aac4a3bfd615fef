//! The signal that asks for a configuration to be read again, until there is somebody who watches for it.

use std::io;

/// Has the process ignore SIGHUP, whose default is to end it, until a handler for it is installed.
///
/// # Errors
/// What the system says; there is no known case.
pub fn ignore_hangups() -> io::Result<()> {
    // SAFETY: the call takes numbers only, and installs no code that would run in a signal.
    if unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) } == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
