//! The spool: every accepted request, until its answer was delivered and for a while after. `README.md` beside this
//! file says what holds and why.
//!
//! Front ends hold a [`Spool`] and never wait for the disk: what they hand over is in the [`book`] at once, and they are
//! called back when it is safe. What was asked and answered is bytes here; only the front end that took a request knows
//! how to read it.
//!
//! Invariant: what a caller was told is safe survives the daemon, the machine's power and, where the disk does what it
//! says, the disk's cache. No two attempts of which anything was published have the same number.

pub mod book;
pub mod cipher;
pub mod clock;
mod error;
mod file;
mod handle;
pub mod image;
mod queue;
pub mod record;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod walked;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::book::{Book, Bounds, Filter, begin_attempts};
use self::cipher::Secret;
use self::clock::Clock;
use self::file::Folder;
use self::queue::{Queue, be_patient};
use self::record::{Door, Fingerprint, Key, State};
use self::store::{Change, Store};
use self::writer::{Place, Writer};
use crate::config::spool::{Durable, SpoolConfig};
use crate::request::Priority;
use crate::telemetry::Telemetry;

pub use error::SpoolError;
pub use writer::{Kept, Then};

/// A request that is to be kept.
#[derive(Debug, Clone)]
pub struct New {
    /// Its name.
    pub key: Key,
    /// The task it asks.
    pub task: Option<String>,
    /// How urgent it is.
    pub priority: Priority,
    /// What was asked, shortened.
    pub fingerprint: Fingerprint,
    /// What draws begin with where nobody says.
    pub seed: u64,
    /// How long the answer is worth something.
    pub left: Option<Duration>,
    /// What was asked, as its front end reads it.
    pub request: Bytes,
}

/// What an operator wants of a record, for the front end that took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// It is gone; what runs for it is to end.
    Dropped(u64, Key),
    /// It is to be answered, or its answer delivered, once more.
    Again(u64),
}

pub(crate) struct Inner {
    book: Mutex<Book>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Somebody waits.
    waiting: Condvar,
    /// Of the requests over which the daemon may have ended, the one that is answered.
    suspect: Mutex<Option<u64>>,
    orders: Mutex<Vec<(Door, mpsc::UnboundedSender<Order>)>>,
    clock: Clock,
    /// In milliseconds.
    patience_ms: AtomicU64,
    durable: bool,
    telemetry: Arc<Telemetry>,
}

impl Inner {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change leaves the book whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &'a self,
        queue: MutexGuard<'a, Queue>,
        longest: Duration,
    ) -> MutexGuard<'a, Queue> {
        self.changed
            .wait_timeout(queue, longest)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Waits until somebody waits, or for so long.
    fn wait_for_waits<'a>(
        &'a self,
        queue: MutexGuard<'a, Queue>,
        longest: Option<Duration>,
    ) -> MutexGuard<'a, Queue> {
        // Looked at once more now and then, which costs nothing.
        let longest = longest.unwrap_or(Duration::from_secs(60));
        (self.waiting.wait_timeout(queue, longest))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::Relaxed))
    }

    /// Takes what has become too old out of the book; the writer takes it off the disk.
    fn drop_outdated(&self) {
        let now = self.clock.now();
        let mut gone = Vec::new();
        let mut book = self.book();
        for number in book.outdated(&now) {
            gone.extend(book.remove(number).map(|header| (number, header)));
        }
        drop(book);
        for (number, header) in gone {
            if header.state != State::Delivered {
                crate::event!(
                    RequestGivenUp,
                    client = header.key.client,
                    request_id = header.key.id,
                    state = header.state.name(),
                    "a request was given up: it is older than spool.age-max-s"
                );
                self.order(&Order::Dropped(number, header.key));
            }
            self.push(Change::Drop(number), State::Delivered, None, None);
        }
    }

    fn report(&self) {
        let book = self.book();
        self.telemetry.spool_holds(&book.counts(), book.bytes());
    }

    fn order(&self, order: &Order) {
        let door = match order {
            Order::Dropped(_, key) => Some(key.door),
            Order::Again(number) => self.book().get(*number).map(|header| header.key.door),
        };
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        for (of, sender) in orders.iter() {
            if Some(*of) == door {
                // A front end that is gone needs no orders.
                drop(sender.send(order.clone()));
            }
        }
    }
}

/// The way to the spool; cheap to clone.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens the spool and begins a new attempt at everything that has no answer. Reads and writes the disk.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn open(config: &SpoolConfig, telemetry: Arc<Telemetry>) -> Result<Spool, SpoolError> {
        let (place, store) = match config.durable {
            Durable::Off => {
                let backend = redb::backends::InMemoryBackend::new();
                (Place::Memory, Store::open(backend, None)?)
            }
            Durable::On => {
                let secret = config.key_file.as_deref().map(Secret::read).transpose()?;
                let folder = Folder::take(&config.dir, secret)?;
                let store = folder.open(true)?;
                (Place::Disk(folder), store)
            }
        };
        Spool::start(config, telemetry, place, store)
    }

    fn start(
        config: &SpoolConfig,
        telemetry: Arc<Telemetry>,
        place: Place,
        mut store: Store,
    ) -> Result<Spool, SpoolError> {
        let clock = Clock::after(&store.seen()?);
        let mut records = store.headers()?;
        let begun = begin_attempts(&mut records, clock.is_same_start());
        let puts = begun.iter().filter_map(|number| {
            Some(Change::Put {
                number: *number,
                header: Box::new(records.get(number)?.clone()),
                request: None,
                answer: None,
            })
        });
        killed("before-attempts");
        store.apply(&puts.collect::<Vec<_>>(), &clock.seen())?;
        killed("after-attempts");
        let book = Book::new(bounds(config), records);
        if let Place::Disk(folder) = &place {
            if folder.is_spare(book.bytes()) {
                store = folder.rewrite(store)?;
            }
            tracing::info!(
                dir = %config.dir.display(),
                records = book.iter().count(),
                unanswered = begun.len(),
                encrypted = store.is_encrypted(),
                file_bytes = folder.bytes(),
                "the spool is open"
            );
        } else {
            crate::event!(
                SpoolVolatile,
                "the spool is in memory (spool.durable): requests do not survive the daemon"
            );
        }
        let inner = Arc::new(Inner {
            book: Mutex::new(book),
            queue: Mutex::default(),
            changed: Condvar::new(),
            waiting: Condvar::new(),
            suspect: Mutex::default(),
            orders: Mutex::default(),
            clock,
            patience_ms: AtomicU64::new(config.patience_ms),
            durable: matches!(place, Place::Disk(_)),
            telemetry,
        });
        inner.drop_outdated();
        inner.report();
        let writer = Writer::new(Arc::clone(&inner), place, store);
        let patient = Arc::clone(&inner);
        let threads = vec![
            thread("spool", move || writer.run())?,
            thread("spool-patience", move || be_patient(&patient))?,
        ];
        Ok(Spool {
            inner,
            threads: Arc::new(Mutex::new(threads)),
        })
    }

    /// Goes by other times from now on: how long what was delivered is kept, what cannot be answered, and a request waits for
    /// the disk.
    pub fn set_times(&self, config: &SpoolConfig) {
        let Bounds {
            keep_ms,
            age_max_ms,
            ..
        } = bounds(config);
        self.inner.book().set_ages(keep_ms, age_max_ms);
        let patience_ms = &self.inner.patience_ms;
        patience_ms.store(config.patience_ms, Ordering::Relaxed);
        // Who waits for the patience to be over reckons anew.
        self.inner.waiting.notify_all();
    }

    /// Writes what is left and ends the thread. Blocks.
    pub fn close(&self) {
        // What runs now was not ended by what it asks.
        for (number, _) in self.list(&Filter::default()) {
            self.rest(number);
        }
        self.inner.queue().stopping = true;
        self.inner.changed.notify_one();
        let threads =
            std::mem::take(&mut *(self.threads.lock()).unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                crate::event!(Internal, "a thread of the spool ended badly");
            }
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, SpoolError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| SpoolError::Storage(format!("no thread to write with: {error}")))
}

fn bounds(config: &SpoolConfig) -> Bounds {
    Bounds {
        requests_max: config.requests_max,
        bytes_max: config.bytes_max,
        keep_ms: config.keep_s.saturating_mul(1000),
        age_max_ms: config.age_max_s.saturating_mul(1000),
    }
}

/// Where a test may end the daemon as a kill would: `POINT` or `POINT:N`, the N-th time it comes there.
const KILL_VARIABLE: &str = "ANDOND_KILL_AT";

/// What `POINT` may be.
pub const KILL_POINTS: [&str; 15] = [
    "before-accepted",
    "after-accepted",
    "acknowledging",
    "after-running",
    "publishing",
    "before-answered",
    "after-answered",
    "confirmed",
    "before-delivered",
    "after-delivered",
    "unsynced",
    "before-attempts",
    "after-attempts",
    "before-running",
    "replacing",
];

/// Ends the process on the spot if a test asked for it here. What a crash may find half done is to be tried where it
/// matters, not where a timer happens to hit.
pub fn killed(point: &'static str) {
    // In builds for tests alone: an environment is no way to end a daemon in service.
    if !cfg!(debug_assertions) {
        return;
    }
    debug_assert!(KILL_POINTS.contains(&point), "{point}");
    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var(KILL_VARIABLE).ok()?;
        let (point, count) = text.split_once(':').unwrap_or((&text, "1"));
        let count = count.parse().ok();
        // A test that asks for what there is not would try nothing.
        let Some(count) = count.filter(|_| KILL_POINTS.contains(&point)) else {
            crate::event!(
                Internal,
                "{KILL_VARIABLE}={text} is no place to be killed at"
            );
            std::process::exit(2);
        };
        Some((point.to_owned(), AtomicU64::new(count)))
    });
    if let Some((wanted, count)) = wanted
        && wanted == point
        && count.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let this = nix::unistd::Pid::this();
        if nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGKILL).is_err() {
            std::process::abort();
        }
    }
}
