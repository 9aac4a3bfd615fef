//! Read-only file maps that outlive their file's truncation.

use memmap2::{Advice, Mmap, MmapMut, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use crate::fault::Guard;

/// Bytes that are read ahead at a time.
const AHEAD_BYTES: usize = 1 << 20;

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

/// See [`Mapping::identity`]. Bytes that are no file's have none but their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Bytes of the file.
    pub bytes: u64,
    /// Its inode.
    pub inode: u64,
    /// Its time of change, seconds since 1970.
    pub changed_s: i64,
    /// Nanoseconds of that second.
    pub changed_ns: i64,
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

    /// Asks the system to read the file ahead, all of it. Advice only: it may do otherwise.
    pub fn will_need(&self) {
        let _ = self.map.advise(Advice::WillNeed);
    }

    /// Reads the file from its beginning to its end, so that what is read of the map after that need not wait for the disk;
    /// [`Mapping::will_need`] only begins with that. Ends early if `goes_on` says so, or something cannot be read.
    pub fn read_ahead(&self, goes_on: &dyn Fn() -> bool) {
        if self.file.is_none() {
            return;
        }
        let mut buffer = vec![0; AHEAD_BYTES];
        for start in (0..self.map.len()).step_by(AHEAD_BYTES) {
            let (piece, _) = buffer.split_at_mut(AHEAD_BYTES.min(self.map.len() - start));
            // Whoever reads the map finds out that it is damaged.
            if !goes_on() || self.read_at(start, piece).is_err() {
                return;
            }
        }
    }

    /// Gives the pages that were read back to the system: they do not count as this process's memory any more, and are
    /// read again when they are needed.
    pub fn release(&self) {
        if self.file.is_some() {
            // SAFETY: the pages are a file's, unchanged since they are read-only, so reading them again gives the same;
            // zeros that took the place of a damaged file's pages stay zeros.
            let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// [`Mapping::release`] of the pages that some of its bytes lie in.
    pub fn release_range(&self, range: Range<usize>) {
        let end = range.end.min(self.map.len());
        if self.file.is_some() && range.start < end {
            let len = end - range.start;
            // SAFETY: as for all of them.
            let _ = unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, len)
            };
        }
    }

    /// What tells this file from others without looking into it.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn identity(&self) -> io::Result<Identity> {
        let Some(file) = &self.file else {
            return Ok(Identity {
                bytes: self.map.len() as u64,
                inode: 0,
                changed_s: 0,
                changed_ns: 0,
            });
        };
        let metadata = file.metadata()?;
        Ok(Identity {
            bytes: metadata.len(),
            inode: metadata.ino(),
            changed_s: metadata.mtime(),
            changed_ns: metadata.mtime_nsec(),
        })
    }

    /// Reads bytes from the file rather than the map, so that they do not count as this process's memory.
    ///
    /// # Errors
    /// If they are not there or cannot be read.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        if let Some(file) = &self.file {
            return file.read_exact_at(bytes, offset as u64);
        }
        let there = self.map.get(offset..).unwrap_or_default();
        let there = there.get(..bytes.len());
        bytes.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// What fs-verity measured of the file ([`crate::verity::measured`]): then every byte that the map gives is one of the
    /// file that was measured, or the map is damaged. `None` where it is off.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn verity(&self) -> io::Result<Option<[u8; 32]>> {
        match &self.file {
            Some(file) => crate::verity::measured(file),
            None => Ok(None),
        }
    }

    /// Has the kernel keep the file from changing, and compare its pages as they are read from now on
    /// ([`crate::verity::protect`]). False where it cannot.
    ///
    /// # Errors
    /// If it can, and does not.
    pub fn protect(&self) -> io::Result<bool> {
        match &self.file {
            Some(file) => crate::verity::protect(file),
            None => Ok(false),
        }
    }

    fn is_short(&self, file: &File) -> bool {
        file.metadata()
            .is_ok_and(|metadata| metadata.len() < self.map.len() as u64)
    }
}

/// Lets the system forget what it holds in memory of a file that is on the disk. Of a file that was written piece by
/// piece, that is small pages; read anew from end to end, it comes in large ones, where the file system has them, and maps
/// of it cost few translations of addresses. Advice only.
pub fn forget_cached(file: &File) {
    // SAFETY: the descriptor is open, and the advice changes no data.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
