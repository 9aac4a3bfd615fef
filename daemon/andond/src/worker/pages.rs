//! What was computed for prompts and outlives their requests, and the daemon: pages of keys and values on the disk.
//!
//! Written is what proved to be asked again: pages that a second request begins with, as all of a task do, and all but the
//! last turns of conversations. When the daemon stops, what else it remembers is written, the last used first, within
//! [`STOP_TIME_MAX`] and a share of the room. Writing all that is asked once would wear out the memory cards of gateways.
//!
//! The engine's thread copies a page between two steps, while nobody asks for anything or once in a while; a thread of lower
//! rank writes it. Read is by the engine's thread, a page at a time: those that were used last at the start and right after it, and
//! what a request asks for when its prompt is read.
//!
//! Invariant: one page at most is on its way to the disk, so that no more memory is taken. Nothing here keeps a request
//! from being answered, and answers are the same bytes with and without.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use andon_engine::Executor;
use andon_engine::generate::{Forward, Generator};
use andon_engine::kv::disk::{self, Chains, PageCopy, PageStore, PageStoreOptions, StoreError};
use andon_engine::kv::{PAGE, Remembered};
use andon_engine::pack::Key;

use super::Shared;
use super::machine::Seat;
use crate::config::Config;

/// Where they are, in the folder of what can be made again.
const FOLDER: &str = "pages";
/// Which share of the KV cache is filled at the start.
const START_SHARE: usize = 2;
/// Most pages that are read at the start.
const START_PAGES_MAX: usize = 256;
/// Longest that the start waits for them: what was used last is there when the first request comes.
const START_TIME_MAX: Duration = Duration::from_millis(30);
/// How often a page is copied while requests are answered.
const COPY_EVERY: Duration = Duration::from_secs(1);
/// How often is brought to the disk when pages were used.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// How long is waited after the disk did not take a page.
const PAUSE: Duration = Duration::from_secs(60);
/// Longest that stopping takes to write what is remembered.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);
/// Which share of the room that takes at most.
const STOP_SHARE: u64 = 4;

/// The pages of the served model.
#[derive(Debug)]
pub(super) struct Pages {
    folder: PathBuf,
    store: Option<(Arc<PageStore>, Remembered)>,
    /// Most pages that are written when the daemon stops.
    stop_pages_max: usize,
    /// Most pages that are read at the start.
    start_pages_max: usize,
    /// Whether one is on its way to the disk.
    writing: AtomicBool,
    /// Whether there is no store although there should be, or the disk did not take the last page.
    failing: AtomicBool,
}

impl Pages {
    /// None, for a model that has none, or as the configuration says. What there is from earlier can be erased.
    pub(super) fn none(config: &Config) -> Pages {
        Pages {
            folder: config.cache.dir.join(FOLDER),
            store: None,
            stop_pages_max: 0,
            start_pages_max: 0,
            writing: AtomicBool::new(false),
            failing: AtomicBool::new(false),
        }
    }

    /// None where there should be some.
    pub(super) fn missing(config: &Config) -> Pages {
        Pages {
            failing: AtomicBool::new(true),
            ..Pages::none(config)
        }
    }

    /// Whether pages should be kept on the disk and cannot be.
    pub(super) fn fails(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Those of the model of `executor`, which looks for pages there from then on. `key` is that of its pack, if it is known.
    pub(super) fn open(
        shared: &Shared,
        key: Option<&Key>,
        executor: &mut Executor,
        seat: &mut Seat,
    ) -> Pages {
        let config = &shared.config;
        let none = Pages::none(config);
        let page_bytes = executor.page_bytes();
        let bytes_max = config.cache.kv_bytes_max;
        match Pages::store(shared, &none.folder, key, executor, seat) {
            Ok(store) => {
                let share = bytes_max / STOP_SHARE / (page_bytes.max(1) as u64);
                executor.keep_pages_in(Arc::clone(&store));
                Pages {
                    store: Some((store, executor.remembered())),
                    stop_pages_max: usize::try_from(share).unwrap_or(usize::MAX),
                    start_pages_max: (executor.kv_tokens_max() / PAGE / START_SHARE)
                        .min(START_PAGES_MAX),
                    ..none
                }
            }
            Err(why) => {
                tracing::warn!("nothing is kept of prompts for the next start: {why}");
                Pages::missing(config)
            }
        }
    }

    fn store(
        shared: &Shared,
        folder: &std::path::Path,
        key: Option<&Key>,
        executor: &mut Executor,
        seat: &mut Seat,
    ) -> Result<Arc<PageStore>, String> {
        let key = match key {
            Some(key) => key.clone(),
            None => executor
                .model()
                .pack_key()
                .map_err(|error| error.to_string())?,
        };
        // What pages are known by is computed. Nobody who computes waits for the disk.
        let taken = shared.take_to_load(seat);
        taken.map_err(|failure| failure.message)?;
        let root = executor.page_root(&key);
        seat.release();
        let root = root.map_err(|error| error.to_string())?;
        let config = &shared.config;
        let options = PageStoreOptions {
            dir: folder.to_path_buf(),
            bytes_max: config.cache.kv_bytes_max,
            free_bytes_min: config.cache.free_bytes_min,
        };
        let store = PageStore::open(options, root, executor.page_bytes());
        store.map(Arc::new).map_err(|error| error.to_string())
    }

    fn disk(&self) -> Option<&PageStore> {
        self.store.as_ref().map(|(store, _)| &**store)
    }

    /// How many there are on the disk, and their bytes.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn kept(&self) -> Result<(usize, u64), StoreError> {
        match self.disk() {
            Some(store) => {
                let counts = store.counts();
                Ok((counts.pages, counts.bytes))
            }
            None => disk::kept(&self.folder),
        }
    }

    /// Erases all, on the disk and in memory, and says how many there were on the disk. Of what is being answered nothing is
    /// kept any more.
    ///
    /// # Errors
    /// If a file cannot be removed; others may have been.
    pub(super) fn erase(&self) -> Result<usize, StoreError> {
        match &self.store {
            Some((store, remembered)) => {
                // First memory, so that no copy is taken of it once the disk is; and what came back from there meanwhile.
                remembered.forget();
                let erased = store.erase();
                remembered.forget();
                erased
            }
            None => disk::erase(&self.folder),
        }
    }

    /// The two ends of the way to the disk, if there is one.
    pub(super) fn way(self: &Arc<Pages>) -> Option<(Keeping, Receiver<PageCopy>)> {
        self.store.as_ref()?;
        let (outgoing, incoming) = sync_channel(1);
        let keeping = Keeping {
            pages: Arc::clone(self),
            outgoing,
            start: Start::Listing,
            nothing_more: false,
            copied: Instant::now(),
        };
        Some((keeping, incoming))
    }
}

/// The engine's thread's part.
#[derive(Debug)]
pub(super) struct Keeping {
    pages: Arc<Pages>,
    outgoing: SyncSender<PageCopy>,
    start: Start,
    /// Whether there was nothing to be copied, and no step since.
    nothing_more: bool,
    copied: Instant,
}

/// What is read at the start.
#[derive(Debug)]
enum Start {
    /// It is to be seen what there is.
    Listing,
    /// Texts that are yet to be read, the one that is being, and of how many of its pages that was tried. Between two pages
    /// nothing of it is held: all room is that of requests.
    Reading(Chains, Vec<u32>, usize),
    /// All is there.
    Over,
}

impl Keeping {
    /// Whether pages are yet to be read for what may be asked.
    pub(super) fn has_more_to_read(&self) -> bool {
        !matches!(self.start, Start::Over)
    }

    /// Reads what was used last, before anybody asks.
    pub(super) fn read_first<F: Forward>(&mut self, generator: &mut Generator<F>) {
        let until = Instant::now() + START_TIME_MAX;
        while self.has_more_to_read() && Instant::now() < until {
            self.read(generator);
        }
    }

    /// Reads a page, while nobody asks for anything.
    pub(super) fn read<F: Forward>(&mut self, generator: &mut Generator<F>) {
        let store = self.pages.disk().filter(|_| self.pages.start_pages_max > 0);
        let (Some(executor), Some(store)) = (generator.executor_mut(), store) else {
            self.start = Start::Over;
            return;
        };
        match &mut self.start {
            Start::Listing => {
                let chains = store.chains(self.pages.start_pages_max);
                self.start = Start::Reading(chains, Vec::new(), 0);
            }
            Start::Reading(chains, text, tried) => {
                *tried += 1;
                // Also where pages give way at once.
                if *tried <= text.len() / PAGE && executor.remember_next(text) {
                    return;
                }
                match chains.next() {
                    Some(next) => {
                        *text = next;
                        // A sequence never has all of a text; this token stands for what is asked behind it.
                        text.push(0);
                        *tried = 0;
                    }
                    None => self.start = Start::Over,
                }
            }
            Start::Over => {}
        }
    }

    /// Whether a page may be copied now, if there is one.
    pub(super) fn may_copy(&self) -> bool {
        !self.nothing_more && !self.pages.writing.load(Ordering::Acquire)
    }

    /// Copies a page and hands it over to be written.
    pub(super) fn copy<F: Forward>(&mut self, generator: &mut Generator<F>) {
        let page = generator
            .executor_mut()
            .and_then(|executor| executor.page_to_keep());
        let Some(page) = page else {
            self.nothing_more = true;
            return;
        };
        self.copied = Instant::now();
        self.pages.writing.store(true, Ordering::Release);
        match self.outgoing.try_send(page) {
            Ok(()) => {}
            // Nobody writes.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.nothing_more = true,
        }
    }

    /// After a step: copies a page if none was for a while.
    pub(super) fn stepped<F: Forward>(&mut self, generator: &mut Generator<F>) {
        self.nothing_more = false;
        if self.copied.elapsed() >= COPY_EVERY && self.may_copy() {
            self.copy(generator);
            self.copied = Instant::now();
        }
    }

    /// Notes what became of pages.
    pub(super) fn tell(&self, shared: &Shared) {
        if let Some(store) = self.pages.disk() {
            shared.telemetry.pages(&store.counts());
        }
    }

    /// Hands over what is remembered when the daemon stops.
    pub(super) fn finish<F: Forward>(self, generator: &mut Generator<F>) {
        let until = Instant::now() + STOP_TIME_MAX;
        let Some(executor) = generator.executor_mut() else {
            return;
        };
        // What was copied already is written first; a disk that takes nothing is not waited for.
        executor.keep_all(self.pages.stop_pages_max);
        while let Some(page) = executor.page_to_keep() {
            let mut page = Some(page);
            while let Some(next) = page.take() {
                if Instant::now() >= until {
                    return;
                }
                match self.outgoing.try_send(next) {
                    Ok(()) => {}
                    Err(TrySendError::Full(back)) => {
                        std::thread::sleep(Duration::from_millis(2));
                        page = Some(back);
                    }
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
        }
    }
}

/// Writes pages, until the engine's thread is through.
pub(super) fn run(shared: &Shared, pages: &Pages, incoming: &Receiver<PageCopy>) {
    let Some(store) = pages.disk() else {
        return;
    };
    if let Err(error) = andon_os::give_way() {
        tracing::debug!(%error, "writing has the rank of an answer");
    }
    let mut noted = Instant::now();
    // One that the disk did not take.
    let mut left: Option<PageCopy> = None;
    loop {
        let wait = if left.is_some() { PAUSE } else { NOTE_EVERY };
        let page = match incoming.recv_timeout(wait) {
            Ok(page) => {
                // While one is left, others come only when the daemon stops.
                if left.is_some() {
                    return;
                }
                Some(page)
            }
            Err(RecvTimeoutError::Timeout) => left.take(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if let Some(page) = page {
            match store.write(&page) {
                Ok(_) => {
                    pages.failing.store(false, Ordering::Relaxed);
                    pages.writing.store(false, Ordering::Release);
                    shared.wake();
                }
                Err(error) => {
                    tracing::warn!(%error, "what is kept of prompts for the next start is not written");
                    pages.failing.store(true, Ordering::Relaxed);
                    left = Some(page);
                }
            }
        }
        if noted.elapsed() >= NOTE_EVERY {
            store.note_uses();
            noted = Instant::now();
        }
    }
    store.note_uses();
}
