//! The file of the store: how it comes to be, how it is opened again after a failure, how it is written anew.
//!
//! Invariant: the file of this name is always a whole spool. A new one is written beside it, synced, and takes its
//! place by renaming, and the folder is synced before anybody relies on it. After a failed sync nobody relies on what is
//! written to the file: the kernel may hold pages that it believes are on the disk and are not, so everything is read once
//! more and written to a new file.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::cipher::Secret;
use super::error::SpoolError;
use super::killed;
use super::store::Store;

const NAME: &str = "spool.redb";
const NEW: &str = "spool.redb.new";
const LOCK: &str = "lock";

/// A file smaller than this is not worth writing anew.
const SPARE_BYTES_MIN: u64 = 4 << 20;
/// One is, once it is this many times as large as what it holds.
const SPARE_FACTOR: u64 = 4;

/// The spool's folder, which is this daemon's while the value lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    secret: Option<Secret>,
    sync_failed: Arc<AtomicBool>,
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be and takes it.
    ///
    /// # Errors
    /// If it cannot be made or written to, or another daemon has it.
    pub(super) fn take(path: &Path, secret: Option<Secret>) -> Result<Folder, SpoolError> {
        let failed = |error| SpoolError::folder(path, error);
        let there = path.is_dir();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        if !there && let Some(parent) = path.parent() {
            sync(parent).map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(SpoolError::InUse(path.to_path_buf()));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Folder {
            path: path.to_path_buf(),
            secret,
            sync_failed: Arc::default(),
            _lock: lock,
        })
    }

    /// Opens the store, which is written anew if it is to be encrypted from now on, and after a sync that failed. If there is
    /// none, `make` says whether that is the beginning, or a file that has gone: then an empty one in its place would pass
    /// for what was kept.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub(super) fn open(&self, make: bool) -> Result<Store, SpoolError> {
        let failed = |error| SpoolError::folder(&self.path, error);
        let place = self.path.join(NAME);
        match std::fs::remove_file(self.path.join(NEW)) {
            // What was being written when the daemon ended.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if !place.try_exists().map_err(failed)? {
            if !make {
                return Err(failed(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("{NAME} has gone"),
                )));
            }
            self.replace(None)?;
            return self.open_file(NAME);
        }
        let store = self.open_file(NAME)?;
        let unsealed = self.secret.is_some() && !store.is_encrypted();
        if unsealed || self.sync_failed.load(Ordering::Relaxed) {
            return self.rewrite(store);
        }
        Ok(store)
    }

    /// Writes a store to a new file, which takes the place of the old one, with nothing left of what was dropped.
    ///
    /// # Errors
    /// What the file system says; the old file is then still there.
    pub(super) fn rewrite(&self, store: Store) -> Result<Store, SpoolError> {
        self.replace(Some(store))?;
        self.sync_failed.store(false, Ordering::Relaxed);
        self.open_file(NAME)
    }

    /// Whether the file is so much larger than what it holds that it should be written anew.
    pub(super) fn is_spare(&self, held_bytes: u64) -> bool {
        self.bytes() > SPARE_BYTES_MIN && self.bytes() / SPARE_FACTOR > held_bytes
    }

    /// Size of the file.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(self.path.join(NAME)).map_or(0, |meta| meta.len())
    }

    fn replace(&self, old: Option<Store>) -> Result<(), SpoolError> {
        self.write_new(old).inspect_err(|_| {
            // Half a file is of no use, and its room may be needed.
            let _ = std::fs::remove_file(self.path.join(NEW));
        })
    }

    fn write_new(&self, old: Option<Store>) -> Result<(), SpoolError> {
        let failed = |error| SpoolError::folder(&self.path, error);
        let mut new = self.open_file(NEW)?;
        if let Some(old) = &old {
            (old.copy_to(&mut new)).map_err(|error| error.of(&self.path))?;
        }
        drop((new, old));
        File::open(self.path.join(NEW))
            .and_then(|file| file.sync_all())
            .map_err(failed)?;
        killed("replacing");
        std::fs::rename(self.path.join(NEW), self.path.join(NAME)).map_err(failed)?;
        sync(&self.path).map_err(failed)
    }

    fn open_file(&self, name: &str) -> Result<Store, SpoolError> {
        let failed = |error| SpoolError::folder(&self.path, error);
        let file = OpenOptions::new()
            .create(name == NEW)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(self.path.join(name))
            .map_err(failed)?;
        let inner =
            FileBackend::new(file).map_err(|error| SpoolError::Storage(error.to_string()))?;
        let backend = Disk {
            inner,
            sync_failed: Arc::clone(&self.sync_failed),
        };
        Store::open(backend, self.secret.as_ref()).map_err(|error| error.of(&self.path))
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The file, with an eye on its syncs.
#[derive(Debug)]
struct Disk {
    inner: FileBackend,
    sync_failed: Arc<AtomicBool>,
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        killed("unsynced");
        let began = Instant::now();
        let synced = self.inner.sync_data();
        tracing::trace!(micros = began.elapsed().as_micros(), "synced");
        if synced.is_err() {
            self.sync_failed.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_gone_is_not_made_again() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let folder = Folder::take(folder.path(), None).expect("taken");
        drop(folder.open(true).expect("made"));
        drop(folder.open(false).expect("there"));
        std::fs::rename(folder.path.join(NAME), folder.path.join("away")).expect("moved");
        let error = folder.open(false).expect_err("it has gone");
        assert!(matches!(error, SpoolError::Folder(..)), "{error}");
        assert!(!folder.path.join(NAME).exists());
        std::fs::rename(folder.path.join("away"), folder.path.join(NAME)).expect("moved");
        drop(folder.open(false).expect("there again"));
    }
}
