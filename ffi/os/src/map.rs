//! Read-only file maps.

use memmap2::{Advice, Mmap};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file mapped read-only, shared with the page cache.
///
/// The bytes are the file's as long as nobody writes to it: a model file must be replaced by renaming another over
/// it, never edited in place. Reading beyond a file that was truncated meanwhile raises SIGBUS.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
}

impl Mapping {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened or mapped, or is not a regular file, or is empty.
    pub fn open(path: &Path) -> io::Result<Mapping> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if metadata.len() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is empty",
            ));
        }
        // SAFETY: the map is private and read-only. That the file does not change under it is what the type's
        // documentation asks of whoever installs models; every value read from it is checked before use.
        let map = unsafe { Mmap::map(&file)? };
        // Advice only: the kernel may ignore it.
        let _ = map.advise(Advice::WillNeed);
        Ok(Mapping { map })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
