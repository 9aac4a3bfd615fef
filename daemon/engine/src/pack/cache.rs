//! The folder of packs: bounded, and safe to be cut off at any moment.
//!
//! ```text
//! <dir>/<key>-<family>-<layout>.pack     a pack; its time of change is when it was last opened
//! <dir>/.<number>.tmp                    one that is being written, locked by whoever writes it
//! ```
//!
//! A pack is written beside its place, brought to the disk and renamed, so what has a name is whole. What has no name
//! and no lock is left over from a program that was killed. Anybody may remove any of the files at any time: a pack in
//! use lives on in its map. Several programs may use one folder; what has other names there is left alone.

use super::header::Header;
use super::{Key, Pack, PackError, Progress, write};
use crate::model::Model;
use crate::temporary::{self, Temporary};
use andon_kernels::pack;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

const ENDING: &str = ".pack";
/// Most entries of the folder that are looked at; what else lies there was put by hand.
const ENTRIES_MAX: usize = 1 << 14;

/// Where packs are kept, and how much room they may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder; it is made when the first pack is.
    pub dir: PathBuf,
    /// Most bytes of all packs together, those included that are being written.
    pub bytes_max: u64,
    /// Room on the disk that no pack may take.
    pub free_bytes_min: u64,
}

/// A folder of packs. Shared by reference; all of it may be called from any thread, and blocks.
#[derive(Debug)]
pub struct Cache {
    options: CacheOptions,
    /// Keys whose packs do not give way.
    held: Mutex<HashSet<Key>>,
}

/// Digits of a key in a name.
const KEY_DIGITS: usize = 64;

/// Whether a file of this name is a pack, of whatever layout.
fn is_pack(name: &str) -> bool {
    let parts = name.split_at_checked(KEY_DIGITS);
    let is_key = parts.is_some_and(|(key, rest)| {
        key.bytes().all(|byte| byte.is_ascii_hexdigit()) && rest.starts_with('-')
    });
    is_key && name.ends_with(ENDING)
}

/// A file in the folder.
struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// The cache in a folder. What a killed program left there half done is removed; that there is no folder yet, or
    /// none that can be read, shows when packs are asked for.
    #[must_use]
    pub fn new(options: CacheOptions) -> Cache {
        let cache = Cache {
            options,
            held: Mutex::default(),
        };
        cache.clear_away();
        cache
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    fn clear_away(&self) {
        temporary::clear_away(self.names(temporary::is_temporary));
    }

    /// Files of the folder by their names.
    fn names(&self, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.options.dir) else {
            return Vec::new();
        };
        entries
            .take(ENTRIES_MAX)
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
            .map(|entry| entry.path())
            .collect()
    }

    fn path(&self, key: &Key) -> PathBuf {
        let (family, layout) = (pack::FAMILY, pack::LAYOUT_VERSION);
        let name = format!("{key}-{family}-{layout}{ENDING}");
        self.options.dir.join(name)
    }

    /// Keeps the pack of a model from giving way to others: it is in use.
    pub fn hold(&self, key: &Key) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone());
    }

    /// Bytes of the pack of a model; `None` if there is none.
    #[must_use]
    pub fn bytes(&self, key: &Key) -> Option<u64> {
        Some(fs::metadata(self.path(key)).ok()?.len())
    }

    /// Opens the pack of a model; `None` if there is none.
    ///
    /// # Errors
    /// [`PackError`] if it is of no use: then it is to be made again.
    pub fn find(&self, key: &Key) -> Result<Option<Pack>, PackError> {
        let path = self.path(key);
        match Pack::open(&path, key) {
            Ok(pack) => {
                // Where its time cannot be set it is the first to give way, no more.
                if let Ok(file) = File::open(&path) {
                    drop(file.set_modified(SystemTime::now()));
                }
                Ok(Some(pack))
            }
            Err(PackError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Packs a model on so many threads, in place of whatever pack of it there is, and opens the pack. The oldest packs
    /// of other models give way to it.
    ///
    /// # Errors
    /// [`PackError`]; then nothing of it stays.
    pub fn make(
        &self,
        model: &Model,
        key: &Key,
        threads: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Pack, PackError> {
        let dir = &self.options.dir;
        let mut header =
            Header::of(key.clone(), model.matrices().iter()).ok_or(PackError::Nothing)?;
        fs::create_dir_all(dir).map_err(PackError::io(dir, "make"))?;
        self.clear_away();
        // It has its size before room is made for it, so that others who make room meanwhile count it.
        let mut temporary = Temporary::new(dir).map_err(PackError::io(dir, "write into"))?;
        let place = temporary.path().to_owned();
        temporary
            .file()
            .set_len(header.file_bytes)
            .map_err(PackError::io(&place, "write"))?;
        self.make_room(header.file_bytes, key, &place)?;
        write::write(
            &mut header,
            model.matrices(),
            model.files().maps(),
            (temporary.file(), &place),
            threads,
            progress,
        )?;
        let path = self.path(key);
        temporary
            .keep(&path)
            .map_err(PackError::io(&path, "write"))?;
        // It is read for as long as its model is served, and faster in large pages.
        if let Ok(file) = File::open(&path) {
            andon_os::forget_cached(&file);
        }
        // Those of other layouts are of no use any more.
        for other in self.of(key) {
            if other != path {
                drop(fs::remove_file(other));
            }
        }
        Pack::open(&path, key)
    }

    /// Removes the pack of a model, in whatever layout. False if there was none.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, key: &Key) -> Result<bool, PackError> {
        let mut found = false;
        for path in self.of(key) {
            match fs::remove_file(&path) {
                Ok(()) => found = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(PackError::io(&path, "remove")(error)),
            }
        }
        Ok(found)
    }

    /// Files that are packs of a model.
    fn of(&self, key: &Key) -> Vec<PathBuf> {
        let start = format!("{key}-");
        self.names(|name| is_pack(name) && name.starts_with(&start))
    }

    /// Removes packs, the longest unused first, until there is room for one of `bytes` bytes, which is to be written at
    /// `place`.
    fn make_room(&self, bytes: u64, key: &Key, place: &Path) -> Result<(), PackError> {
        let CacheOptions {
            dir,
            bytes_max,
            free_bytes_min,
        } = &self.options;
        if bytes > *bytes_max {
            let max = *bytes_max;
            return Err(PackError::TooLarge { bytes, max });
        }
        let is_of = |entry: &Entry, key: &Key| {
            let name = entry.path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&format!("{key}-")))
        };
        let mut entries = self.entries(is_pack);
        // What is replaced goes once its successor is there.
        let path = self.path(key);
        entries.retain(|entry| entry.path != path);
        let bytes_of = |sum: u64, entry: &Entry| sum.saturating_add(entry.bytes);
        // What others are writing takes room, and does not give way.
        let mut written = self.entries(temporary::is_temporary);
        written.retain(|entry| entry.path != place);
        let mut taken = entries.iter().chain(&written).fold(0, bytes_of);
        {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            entries.retain(|entry| !held.iter().any(|held| held != key && is_of(entry, held)));
        }
        // What comes last goes first: before all others the same model's of other layouts, which are of no use.
        entries.sort_by_key(|entry| (is_of(entry, key), std::cmp::Reverse(entry.used)));
        loop {
            let on_disk =
                andon_os::free_bytes(dir).map_err(PackError::io(dir, "ask for the room of"))?;
            let free = |removed: u64| {
                let on_disk = on_disk
                    .saturating_add(removed)
                    .saturating_sub(*free_bytes_min);
                on_disk.min(bytes_max.saturating_sub(taken.saturating_sub(removed)))
            };
            if free(0) >= bytes {
                return Ok(());
            }
            // Nothing gives way to what would find no room all the same.
            let most = free(entries.iter().fold(0, bytes_of));
            let Some(oldest) = entries.pop().filter(|_| most >= bytes) else {
                return Err(PackError::NoSpace {
                    path: dir.clone(),
                    bytes,
                    free: most,
                });
            };
            match fs::remove_file(&oldest.path) {
                Ok(()) => tracing::info!(
                    "removed {} to make room for another pack",
                    oldest.path.display()
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(PackError::io(&oldest.path, "remove")(error)),
            }
            taken = taken.saturating_sub(oldest.bytes);
        }
    }

    fn entries(&self, wanted: impl Fn(&str) -> bool) -> Vec<Entry> {
        let files = self.names(wanted);
        let entries = files.into_iter().filter_map(|path| {
            let metadata = fs::symlink_metadata(&path).ok()?;
            Some(Entry {
                bytes: metadata.len(),
                used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                path,
            })
        });
        entries.collect()
    }
}
