//! Why a page is not kept or not found again.

use std::io;
use std::path::PathBuf;

/// Why a page is not kept, or what is kept is of no use. It is computed again then, to the same bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or folder cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was to be done with it.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A single page takes more than all may.
    #[error("a page takes {bytes} bytes, all together may take {max}")]
    TooLarge {
        /// Bytes of a page.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The disk is full, as far as pages may fill it.
    #[error("a page takes {bytes} bytes, and {} has {free} for it", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes of the page.
        bytes: u64,
        /// Bytes that there are for pages.
        free: u64,
    },
    /// A file is not what its name says.
    #[error("{} is of no use: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl StoreError {
    /// Whether it says nothing of what lies on the disk: the daemon, or the machine, has too much of something open, or may
    /// not do what it could before.
    pub(crate) fn passes(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => andon_os::is_refusal(source),
            _ => false,
        }
    }

    /// For [`Result::map_err`].
    pub(super) fn io(
        path: &std::path::Path,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| StoreError::Io {
            path,
            action,
            source,
        }
    }
}
