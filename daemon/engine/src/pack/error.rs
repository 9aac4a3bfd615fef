//! Why there is no pack, or one is of no use.

use std::io;
use std::path::PathBuf;

/// Why a pack is not made or not used. None of these keeps a model from being run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
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
    /// The file ends before its header does, or is shorter or longer than its header says.
    #[error("{} has {actual} bytes, {expected} belong there", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        actual: u64,
        /// Bytes that belong there.
        expected: u64,
    },
    /// The file does not begin as packs do.
    #[error("{} is no pack of weights", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
    },
    /// It was written in another version of the format.
    #[error("{} is in version {version} of the format, this program reads {}", path.display(), super::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Its matrices have another layout.
    #[error(
        "{} has the layout {family} {version}, this program's is {} {}",
        path.display(),
        andon_kernels::pack::FAMILY,
        andon_kernels::pack::LAYOUT_VERSION
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// Name of its layout.
        family: String,
        /// Version of its layout.
        version: u32,
    },
    /// It was made of another model.
    #[error("{} is of another model", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
    },
    /// The header differs from what was written.
    #[error("the header of {} is damaged", path.display())]
    HeaderChecksum {
        /// The file.
        path: PathBuf,
    },
    /// A field of the header has a value that no writer gives it.
    #[error("{}: byte {offset}: {field} is {value}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Where the field is.
        offset: usize,
        /// What it says.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A block of a matrix differs from what was written.
    #[error("{} is damaged between the bytes {offset} and {}", path.display(), offset + bytes)]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Where the block starts.
        offset: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// Bytes of a matrix are not what packing the model gives.
    #[error(
        "{} was not made of this model: it differs between the bytes {offset} and {}",
        path.display(),
        offset + bytes
    )]
    OtherBytes {
        /// The file.
        path: PathBuf,
        /// Where the piece starts.
        offset: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// The file became shorter under its map, or cannot be read any more.
    #[error("{} became shorter while it was in use, or cannot be read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The model has no matrix of a format that has a packed layout.
    #[error("the model has no weights that would gain by being packed")]
    Nothing,
    /// The pack would be larger than all packs together may be.
    #[error("the pack takes {bytes} bytes, all packs together may take {max}")]
    TooLarge {
        /// Bytes of the pack.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The disk has no room for it.
    #[error("the pack takes {bytes} bytes, {} has {free} to give", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes of the pack.
        bytes: u64,
        /// Bytes that the disk has beyond what is to be left free.
        free: u64,
    },
    /// The model's files changed while they were packed, or cannot be read any more.
    #[error("the model's files changed while they were packed, or cannot be read")]
    ModelChanged,
    /// Whoever asked for it does not want it any more.
    #[error("the packing was broken off")]
    Stopped,
}

impl PackError {
    pub(super) fn io(
        path: &std::path::Path,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> PackError {
        let path = path.to_owned();
        move |source| PackError::Io {
            path,
            action,
            source,
        }
    }
}
