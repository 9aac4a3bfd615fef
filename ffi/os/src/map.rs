//! Read-only file maps that outlive their file's truncation.

use memmap2::{Advice, Mmap, MmapMut};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use crate::fault::Guard;

/// A file mapped read-only, shared with the page cache.
///
/// The bytes are the file's as long as nobody writes to it: a model file must be replaced by renaming another over
/// it, never edited in place. If it is truncated all the same, or its disk fails, reads give zeros from some place on
/// and [`Mapping::is_damaged`] says so; the process goes on.
#[derive(Debug)]
pub struct Mapping {
    // Before the map, which it guards: fields are dropped in order.
    guard: Guard,
    map: Mmap,
    /// `None` for bytes that were copied.
    file: Option<File>,
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
        Mapping::guarded(map, Some(file))
    }

    /// A map of a copy of `bytes`: what needs the bytes of a file can be given any.
    ///
    /// # Errors
    /// If `bytes` is empty, or there is no memory.
    pub fn copy(bytes: &[u8]) -> io::Result<Mapping> {
        if bytes.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "there are no bytes",
            ));
        }
        let mut map = MmapMut::map_anon(bytes.len())?;
        map.copy_from_slice(bytes);
        Mapping::guarded(map.make_read_only()?, None)
    }

    fn guarded(map: Mmap, file: Option<File>) -> io::Result<Mapping> {
        // SAFETY: the map starts at a page and lives as long as the guard, next to it; that reads may give zeros is
        // in the type's documentation.
        let guard = unsafe { Guard::new(map.as_ptr(), map.len())? };
        Ok(Mapping { guard, map, file })
    }

    /// Whether bytes of the file could not be read, or it has become shorter than its map: then nothing that was
    /// computed from the map is to be trusted. Once it is true it stays true, unless the file grows again before
    /// anybody has read what was missing.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.guard.is_damaged() || self.file.as_ref().is_some_and(|file| self.is_short(file))
    }

    fn is_short(&self, file: &File) -> bool {
        file.metadata()
            .is_ok_and(|metadata| metadata.len() < self.map.len() as u64)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
