//! What errors of the system mean.

use std::io;

/// Whether the system refuses something for now or to this process, which says nothing of the file it was asked about:
/// too many files are open, there is no memory, it was interrupted, or it may not.
#[must_use]
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EACCES | libc::EPERM | libc::EINTR)
    )
}

/// Whether the same may go well when it is tried again: the system lacks something for now, was interrupted, or a disk did
/// not answer.
#[must_use]
pub fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::EINTR
                | libc::EAGAIN
                | libc::EIO
                | libc::ESTALE
                | libc::ETIMEDOUT
        )
    )
}

#[cfg(test)]
mod tests {
    use super::{is_refusal, may_pass};
    use std::io;

    #[test]
    fn a_refusal_is_none_of_the_file() {
        assert!(is_refusal(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(is_refusal(&io::Error::from_raw_os_error(libc::EACCES)));
        for error in [libc::EIO, libc::ENOENT, libc::EISDIR] {
            assert!(!is_refusal(&io::Error::from_raw_os_error(error)));
        }
        assert!(!is_refusal(&io::ErrorKind::UnexpectedEof.into()));
    }

    #[test]
    fn what_is_not_there_or_not_allowed_does_not_pass() {
        for error in [libc::EMFILE, libc::ENOMEM, libc::EIO, libc::ESTALE] {
            assert!(may_pass(&io::Error::from_raw_os_error(error)));
        }
        for error in [libc::ENOENT, libc::EACCES, libc::EPERM, libc::EISDIR] {
            assert!(!may_pass(&io::Error::from_raw_os_error(error)));
        }
    }
}
