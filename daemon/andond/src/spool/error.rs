//! What can go wrong with the spool, and whose affair it is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why the spool is of no use, for now or at all.
#[derive(Debug)]
pub enum SpoolError {
    /// The folder cannot be made, entered or written to.
    Folder(PathBuf, io::Error),
    /// Another daemon has the folder.
    InUse(PathBuf),
    /// The file was written by a later version of andond.
    Newer {
        /// The schema of the file.
        found: u32,
        /// The newest that this version knows.
        known: u32,
    },
    /// The key cannot be read or is none.
    Key(PathBuf, String),
    /// The file is encrypted, and no key is configured.
    NoKey,
    /// The file is encrypted with another key.
    WrongKey,
    /// The file does not hold what was written to it.
    Damaged(String),
    /// There is no room on the disk, of this folder where that is known.
    Full(Option<PathBuf>),
    /// The disk, the file system or the kernel said no.
    Storage(String),
    /// The daemon stops.
    Stopped,
}

/// Whether an error says that there is no room.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl SpoolError {
    /// What a folder's file system says.
    pub(super) fn folder(path: &Path, error: io::Error) -> SpoolError {
        if is_full(&error) {
            SpoolError::Full(Some(path.to_path_buf()))
        } else {
            SpoolError::Folder(path.to_path_buf(), error)
        }
    }

    /// The same, of what is in this folder.
    pub(super) fn of(self, folder: &Path) -> SpoolError {
        match self {
            SpoolError::Full(_) => SpoolError::Full(Some(folder.to_path_buf())),
            other => other,
        }
    }

    /// Whether trying again without anybody's help is of no use.
    pub fn needs_a_person(&self) -> bool {
        match self {
            SpoolError::Folder(_, error) => matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::ReadOnlyFilesystem
            ),
            SpoolError::Newer { .. }
            | SpoolError::Key(..)
            | SpoolError::NoKey
            | SpoolError::WrongKey
            | SpoolError::Damaged(_) => true,
            SpoolError::InUse(_)
            | SpoolError::Full(_)
            | SpoolError::Storage(_)
            | SpoolError::Stopped => false,
        }
    }
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolError::Folder(path, error) => write!(
                f,
                "the spool's folder {} cannot be written to: {error} (set spool.dir, give the unit a StateDirectory, or \
                 do without a durable spool: spool.durable = \"off\")",
                path.display()
            ),
            SpoolError::InUse(path) => {
                write!(f, "another daemon uses the spool in {}", path.display())
            }
            SpoolError::Newer { found, known } => write!(
                f,
                "the spool has schema {found}, and this version of andond knows {known}: it was written by a later one"
            ),
            SpoolError::Key(path, why) => {
                write!(f, "the spool's key in {}: {why}", path.display())
            }
            SpoolError::NoKey => f.write_str("the spool is encrypted: set spool.key-file"),
            SpoolError::WrongKey => {
                f.write_str("the spool is encrypted with another key than that of spool.key-file")
            }
            SpoolError::Damaged(what) => write!(
                f,
                "the spool is damaged ({what}); to begin with an empty one, move its file away"
            ),
            SpoolError::Full(None) => f.write_str("the disk of the spool's folder is full"),
            SpoolError::Full(Some(dir)) => write!(
                f,
                "the disk of the spool's folder {} is full: make room there, or set spool.dir to where there is some",
                dir.display()
            ),
            SpoolError::Storage(what) => write!(f, "the spool cannot be written: {what}"),
            SpoolError::Stopped => f.write_str("the spool is closed"),
        }
    }
}

impl std::error::Error for SpoolError {}

impl From<redb::Error> for SpoolError {
    fn from(error: redb::Error) -> SpoolError {
        match error {
            redb::Error::Corrupted(what) => SpoolError::Damaged(what),
            // What does not begin like a spool at all.
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                SpoolError::Damaged(error.to_string())
            }
            redb::Error::Io(error) if is_full(&error) => SpoolError::Full(None),
            other => SpoolError::Storage(other.to_string()),
        }
    }
}

/// The errors of each step are parts of one.
pub(super) fn storage(error: impl Into<redb::Error>) -> SpoolError {
    SpoolError::from(error.into())
}
