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

#[cfg(test)]
mod tests {
    use super::is_refusal;
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
}
