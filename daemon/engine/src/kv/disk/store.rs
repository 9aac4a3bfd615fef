//! The folder of pages.

use super::StoreError;
use super::file::{self, HEADER_BYTES, PageReader, Place};
use super::index::{FileId, Index};
use crate::kv::PAGE;
use crate::kv::name::PageName;
use crate::temporary::{self, Temporary};
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Most files of the folder that are looked at; what else lies there was put by hand.
const ENTRIES_MAX: usize = 1 << 17;

/// Where pages are kept, and how much room they may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageStoreOptions {
    /// The folder. It is made if it is not there, for nobody else to enter.
    pub dir: PathBuf,
    /// Most bytes of all pages together, of whatever model.
    pub bytes_max: u64,
    /// Room on the disk that no page may take.
    pub free_bytes_min: u64,
}

/// A page's content on its way to the disk: [`crate::Executor::page_to_keep`].
#[derive(Debug)]
pub struct PageCopy {
    pub(crate) parent: PageName,
    pub(crate) name: PageName,
    pub(crate) depth: u32,
    pub(crate) tokens: Box<[u32]>,
    pub(crate) content: Vec<u8>,
    /// When it was last used, in microseconds since 1970; `None` is now.
    pub(crate) used: Option<u64>,
    /// How often pages had been erased when it was taken.
    pub(crate) generation: u64,
}

/// What became of pages since the folder was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreCounts {
    /// Pages that are there, of whatever model.
    pub pages: usize,
    /// Bytes that they take.
    pub bytes: u64,
    /// Pages that were read back.
    pub restored: u64,
    /// Pages that were written.
    pub written: u64,
    /// Pages that were found to be damaged and removed.
    pub damaged: u64,
}

/// The pages of one model, as one program computes them, in a folder. Shared by reference; all of it may be called from any
/// thread, and blocks.
#[derive(Debug)]
pub struct PageStore {
    options: PageStoreOptions,
    root: PageName,
    content_bytes: u64,
    index: Mutex<Index>,
    /// Held by whoever writes or erases files, before the index is.
    files: Mutex<()>,
    /// How often pages were erased.
    generation: AtomicU64,
    restored: AtomicU64,
    written: AtomicU64,
    damaged: AtomicU64,
}

impl PageStore {
    /// The pages below `root`, each with `content_bytes` bytes of content ([`crate::Executor::page_root`],
    /// [`crate::Executor::page_bytes`]). What a killed program left half written is removed.
    ///
    /// # Errors
    /// If the folder can be neither made nor read.
    pub fn open(
        options: PageStoreOptions,
        root: PageName,
        content_bytes: usize,
    ) -> Result<PageStore, StoreError> {
        let dir = &options.dir;
        // What it lies in is for others to look into.
        let made = dir.parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(dir))
            .map_err(StoreError::io(dir, "make"))?;
        // What somebody else made it as may let others read what clients asked.
        let permissions = Permissions::from_mode(0o700);
        let private = fs::metadata(dir).and_then(|metadata| {
            if metadata.permissions().mode() & 0o077 == 0 {
                return Ok(());
            }
            fs::set_permissions(dir, permissions)
        });
        private.map_err(StoreError::io(dir, "keep others out of"))?;
        let index = list(dir)?;
        Ok(PageStore {
            options,
            root,
            content_bytes: content_bytes as u64,
            index: Mutex::new(index),
            files: Mutex::default(),
            generation: AtomicU64::new(0),
            restored: AtomicU64::new(0),
            written: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Every critical section leaves it whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the empty text, below which all of its pages are.
    #[must_use]
    pub fn root(&self) -> PageName {
        self.root
    }

    /// What there is, and what became of it.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        let index = self.index();
        StoreCounts {
            pages: index.len(),
            bytes: index.bytes(),
            restored: self.restored.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }

    /// How often pages were erased: a copy of a page that was taken before is not written any more.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn id(&self, depth: u32, name: PageName) -> FileId {
        FileId {
            root: self.root,
            depth,
            name,
        }
    }

    /// Whether the page `name` is there, which is number `depth` of its text.
    #[must_use]
    pub fn contains(&self, depth: u32, name: PageName) -> bool {
        self.index().contains(&self.id(depth, name))
    }

    /// Notes that the first pages of a text are used, be it from memory.
    pub(crate) fn touch(&self, names: &[PageName]) {
        let ids = (0..).zip(names).map(|(depth, &name)| self.id(depth, name));
        self.index().touch(ids, now());
    }

    /// Begins to read a page; `None` if it is not there. One that is damaged is removed.
    pub(crate) fn read(&self, depth: u32, name: PageName) -> Option<PageReader> {
        let id = self.id(depth, name);
        if !self.index().contains(&id) {
            return None;
        }
        match file::open(
            &id.path(&self.options.dir),
            self.root,
            name,
            self.content_bytes,
        ) {
            Ok((header, reader)) if header.place.depth == depth => Some(reader),
            Ok(_) => {
                self.discard(depth, name, "it is of another place in a text");
                None
            }
            Err(error) => {
                self.give_up(depth, name, &error);
                None
            }
        }
    }

    /// Takes in that a page could not be read: it is removed if that is its own fault.
    pub(crate) fn give_up(&self, depth: u32, name: PageName, error: &StoreError) {
        if error.passes() {
            tracing::debug!(%error, "a kept page of keys and values is computed again this time");
        } else {
            self.discard(depth, name, error);
        }
    }

    /// Notes that a page was read and was right; it is behind the page `parent`.
    pub(crate) fn was_read(&self, depth: u32, name: PageName, parent: PageName) {
        self.restored.fetch_add(1, Ordering::Relaxed);
        let before = self.before(depth, parent);
        let id = self.id(depth, name);
        self.index().follow(&id, before.as_ref(), now());
    }

    /// The page before number `depth` of a text; `None` before the first.
    fn before(&self, depth: u32, parent: PageName) -> Option<FileId> {
        let depth = depth.checked_sub(1)?;
        Some(self.id(depth, parent))
    }

    /// Removes a page that is of no use.
    pub(crate) fn discard(&self, depth: u32, name: PageName, why: impl core::fmt::Display) {
        let id = self.id(depth, name);
        self.index().remove(&id);
        match fs::remove_file(id.path(&self.options.dir)) {
            // Somebody removed it, who may.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "a kept page of keys and values is removed and computed again: {why}"
                );
            }
        }
    }

    /// Keeps a page; others give way to it. False if it is there already, or the page before it is not, without which it
    /// is of no use, or pages were erased since it was copied.
    ///
    /// # Errors
    /// [`StoreError`] if there is no room, or the disk does not take it; then nothing of it stays.
    pub fn write(&self, page: &PageCopy) -> Result<bool, StoreError> {
        let dir = &self.options.dir;
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let id = self.id(page.depth, page.name);
        let before = self.before(page.depth, page.parent);
        let follows = |index: &Index| before.is_none_or(|before| index.contains(&before));
        {
            let index = self.index();
            if page.generation != self.generation() || index.contains(&id) || !follows(&index) {
                return Ok(false);
            }
        }
        let bytes = HEADER_BYTES as u64 + page.content.len() as u64;
        self.make_room(bytes)?;
        if !follows(&self.index()) {
            return Ok(false);
        }
        let mut temporary = Temporary::new(dir).map_err(StoreError::io(dir, "write into"))?;
        let path = id.path(dir);
        let place = Place {
            parent: page.parent,
            name: page.name,
            depth: page.depth,
        };
        let used = self.index().time(before.as_ref(), now(), page.used);
        let file = temporary.file();
        file::write(file, self.root, &place, &page.tokens, &page.content)
            .and_then(|()| file.set_modified(time(used)))
            .and_then(|()| temporary.keep(&path))
            .map_err(StoreError::io(&path, "write"))?;
        self.index().insert(id, bytes, used);
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Removes pages until there is room for `bytes` bytes more.
    fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let PageStoreOptions {
            dir,
            bytes_max,
            free_bytes_min,
        } = &self.options;
        if bytes > *bytes_max {
            let max = *bytes_max;
            return Err(StoreError::TooLarge { bytes, max });
        }
        loop {
            let on_disk =
                andon_os::free_bytes(dir).map_err(StoreError::io(dir, "ask for the room of"))?;
            let on_disk = on_disk.saturating_sub(*free_bytes_min);
            let mut index = self.index();
            let taken = index.bytes();
            let free = on_disk.min(bytes_max.saturating_sub(taken));
            if free >= bytes {
                return Ok(());
            }
            // Nothing gives way to what would find no room all the same.
            let oldest = index
                .oldest()
                .filter(|_| on_disk.saturating_add(taken) >= bytes);
            let Some(oldest) = oldest else {
                return Err(StoreError::NoSpace {
                    path: dir.clone(),
                    bytes,
                    free,
                });
            };
            index.remove(&oldest);
            drop(index);
            let path = oldest.path(dir);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io(&path, "remove")(error));
                }
                _ => {}
            }
        }
    }

    /// Brings to the disk when pages were used, so that the order is known at the next start.
    pub fn note_uses(&self) {
        let unnoted = self.index().take_unnoted();
        for (id, used) in unnoted {
            // Where its time cannot be set it is the sooner to give way, no more.
            if let Ok(file) = File::open(id.path(&self.options.dir)) {
                drop(file.set_modified(time(used)));
            }
        }
    }

    /// Removes all pages, of whatever model, and says how many there were. They are gone for good when this returns, and
    /// copies that were taken before are not written any more. What is in memory is another matter:
    /// [`crate::kv::Remembered::forget`].
    ///
    /// # Errors
    /// If the folder cannot be read or a file cannot be removed; others may have been.
    pub fn erase(&self) -> Result<usize, StoreError> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        *self.index() = Index::default();
        let erased = erase(&self.options.dir);
        // Also what was copied of pages that were read while they were being erased.
        self.generation.fetch_add(1, Ordering::SeqCst);
        erased
    }

    /// The texts whose pages were used last, `pages_max` pages at most, to have them in memory before they are asked for.
    #[must_use]
    pub fn chains(&self, pages_max: usize) -> Chains {
        let mut latest: Vec<(u64, FileId)> = {
            let index = self.index();
            let own = index.iter().filter(|(id, _)| id.root == self.root);
            own.map(|(id, entry)| (entry.used, *id)).collect()
        };
        latest.sort_unstable_by_key(|&(used, id)| (std::cmp::Reverse(used), id.depth));
        latest.truncate(pages_max);
        let mut chains = Chains::default();
        let mut above = HashSet::new();
        for (_, id) in &latest {
            let path = id.path(&self.options.dir);
            match file::open(&path, self.root, id.name, self.content_bytes) {
                Ok((header, _)) => {
                    above.insert(header.place.parent);
                    let page = (header.place.parent, header.tokens);
                    chains.pages.insert(id.name, page);
                }
                Err(error) => self.give_up(id.depth, id.name, &error),
            }
        }
        chains.root = Some(self.root);
        chains.ends = latest
            .iter()
            .map(|(_, id)| id.name)
            .filter(|name| !above.contains(name))
            .collect();
        chains
    }
}

/// Texts, the last used last, so that it is the last to give way.
#[derive(Debug, Default)]
pub struct Chains {
    root: Option<PageName>,
    /// Behind which page each is, and its tokens.
    pages: HashMap<PageName, (PageName, Vec<u32>)>,
    /// Their last pages; the last text comes first.
    ends: Vec<PageName>,
}

impl Iterator for Chains {
    type Item = Vec<u32>;

    fn next(&mut self) -> Option<Vec<u32>> {
        while let Some(end) = self.ends.pop() {
            let mut pages = Vec::new();
            let mut name = end;
            while let Some((parent, tokens)) = self.pages.get(&name) {
                pages.push(tokens);
                name = *parent;
            }
            // What has lost a page in its middle is of no use.
            if !pages.is_empty() && Some(name) == self.root {
                let mut text = Vec::with_capacity(pages.len() * PAGE);
                text.extend(pages.into_iter().rev().flatten());
                return Some(text);
            }
        }
        None
    }
}

/// How many pages of whatever model lie in a folder, and the bytes that they take; none where there is no folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn kept(dir: &Path) -> Result<(usize, u64), StoreError> {
    let index = if dir.exists() {
        list(dir)?
    } else {
        Index::default()
    };
    Ok((index.len(), index.bytes()))
}

/// Removes all pages of a folder that is not in use, of whatever model, and says how many there were. They are gone for good
/// when this returns.
///
/// # Errors
/// If the folder cannot be read or a file cannot be removed; others may have been.
pub fn erase(dir: &Path) -> Result<usize, StoreError> {
    if !dir.exists() {
        return Ok(0);
    }
    let mut removed = 0;
    for (id, _) in list(dir)?.iter() {
        let path = id.path(dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removal => {
                removal.map_err(StoreError::io(&path, "remove"))?;
                removed += 1;
            }
        }
    }
    // Else a file could be back after the power has failed.
    File::open(dir)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io(dir, "write"))?;
    Ok(removed)
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

fn time(used: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(used)
}

/// The pages in a folder. What was left half written is cleared away.
fn list(dir: &Path) -> Result<Index, StoreError> {
    let mut index = Index::default();
    let mut left = Vec::new();
    let entries = fs::read_dir(dir).map_err(StoreError::io(dir, "read"))?;
    for entry in entries.take(ENTRIES_MAX).filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        if temporary::is_temporary(name) {
            left.push(entry.path());
        }
        let Some((id, metadata)) = FileId::of(name).zip(entry.metadata().ok()) else {
            continue;
        };
        let used = metadata.modified().ok();
        let used = used.and_then(|used| used.duration_since(SystemTime::UNIX_EPOCH).ok());
        let used = used.map_or(0, |used| u64::try_from(used.as_micros()).unwrap_or(0));
        index.insert(id, metadata.len(), used);
    }
    temporary::clear_away(left);
    Ok(index)
}
