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
pub mod record;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use self::book::{Book, Bounds, Filter, begin_attempts};
use self::cipher::Secret;
use self::clock::Clock;
use self::file::Folder;
use self::record::{CRASHES_MAX, Door, Due, Fingerprint, Header, Key, State};
use self::store::{Change, Store};
use self::writer::{Job, Place, Queue, Writer};
use crate::config::spool::{Durable, SpoolConfig};
use crate::fault::{Fault, FaultCode};
use crate::request::Priority;
use crate::telemetry::Telemetry;

pub use error::SpoolError;
pub use writer::{Kept, Then};

/// What is known of a request in memory, in bytes: names of at most 300 bytes, numbers and their place in two maps.
const BOOK_BYTES: u64 = 512;

/// When a client may ask again that found the spool full.
const RETRY_AFTER: Duration = Duration::from_secs(5);

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
    orders: Mutex<Vec<(Door, mpsc::UnboundedSender<Order>)>>,
    clock: Clock,
    patience: Duration,
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
                tracing::error!(
                    client = header.key.client,
                    id = header.key.id,
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

    fn push(&self, change: Change, makes: State, then: Option<Then<()>>, forgets: Option<u64>) {
        let mut queue = self.queue();
        let wakes = then.is_some() || queue.jobs.is_empty();
        queue.jobs.push(Job {
            change,
            makes,
            since: Instant::now(),
            then,
            forgets,
        });
        drop(queue);
        if wakes {
            self.changed.notify_one();
        }
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
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
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
            tracing::warn!(
                "the spool is in memory (spool.durable): requests do not survive the daemon"
            );
        }
        let inner = Arc::new(Inner {
            book: Mutex::new(book),
            queue: Mutex::default(),
            changed: Condvar::new(),
            orders: Mutex::default(),
            clock,
            patience: Duration::from_millis(config.patience_ms),
            durable: matches!(place, Place::Disk(_)),
            telemetry,
        });
        inner.drop_outdated();
        inner.report();
        let writer = Writer::new(Arc::clone(&inner), place, store);
        let thread = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| SpoolError::Storage(format!("no thread to write with: {error}")))?;
        Ok(Spool {
            inner,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Most bytes of memory that it takes: the store's cache, and what is known of each request. Without a file, all that is
    /// kept.
    pub fn memory_bytes_max(config: &SpoolConfig) -> u64 {
        let book = (config.requests_max as u64).saturating_mul(BOOK_BYTES);
        match config.durable {
            Durable::On => book.saturating_add(store::CACHE_BYTES as u64),
            Durable::Off => book.saturating_add(config.bytes_max),
        }
    }

    /// Whether what is kept survives the daemon.
    pub fn is_durable(&self) -> bool {
        self.inner.durable
    }

    /// Why nothing can be kept now, if that has been so for a while.
    pub fn failing(&self) -> Option<Fault> {
        let since = self.inner.queue().failing?;
        (since.elapsed() >= self.inner.patience).then(|| {
            writer::unkept(&SpoolError::Storage(
                "the disk has failed for a while; see the journal".to_owned(),
            ))
        })
    }

    /// Whether it holds as much as it may, all of it unanswered or undelivered.
    pub fn is_full(&self) -> bool {
        self.inner.book().room_for(1).is_none()
    }

    /// The record of a name.
    pub fn find(&self, key: &Key) -> Option<(u64, Header)> {
        let book = self.inner.book();
        let (number, header) = book.find(key)?;
        Some((number, header.clone()))
    }

    /// The record of a number.
    pub fn get(&self, number: u64) -> Option<Header> {
        self.inner.book().get(number).cloned()
    }

    /// Every record that a filter takes, in the order of arrival.
    pub fn list(&self, filter: &Filter) -> Vec<(u64, Header)> {
        let book = self.inner.book();
        let taken = book
            .iter()
            .filter(|(number, header)| filter.takes(*number, header));
        taken
            .map(|(number, header)| (number, header.clone()))
            .collect()
    }

    /// How many records are in each state, and what they take.
    pub fn holds(&self) -> ([usize; State::ALL.len()], u64) {
        let book = self.inner.book();
        (book.counts(), book.bytes())
    }

    /// When the answer of a record is worthless.
    pub fn deadline(&self, header: &Header) -> Option<Instant> {
        Instant::now().checked_add(self.left(header)?)
    }

    /// What is left until the deadline of a record.
    pub fn left(&self, header: &Header) -> Option<Duration> {
        let left_ms = (self.inner.book()).left_ms(header, &self.inner.clock.now())?;
        Some(Duration::from_millis(left_ms))
    }

    /// How long ago a record came and, if it is answered, was answered, as far as that is known.
    pub fn ages(&self, header: &Header) -> (Duration, Option<Duration>) {
        let now = self.inner.clock.now();
        let age = |since| Duration::from_millis(now.since(since));
        (age(&header.arrived), header.answered.as_ref().map(age))
    }

    /// Takes a request; `then` is called when it is safe, or if it cannot be kept and is forgotten. Says its number.
    ///
    /// # Errors
    /// The spool is full, or has failed for a while.
    pub fn accept(&self, new: New, then: Then<()>) -> Result<u64, Fault> {
        if let Some(fault) = self.failing() {
            return Err(fault);
        }
        let now = self.inner.clock.now();
        let header = Header {
            key: new.key,
            task: new.task,
            priority: new.priority,
            fingerprint: new.fingerprint,
            state: State::Accepted,
            attempt: 1,
            seed: new.seed,
            arrived: now,
            due: new.left.map(|left| Due::new(left, now)),
            answered: None,
            delivered: None,
            fault: None,
            request_bytes: new.request.len() as u64,
            answer_bytes: 0,
            crashes: 0,
        };
        let mut book = self.inner.book();
        let Some(gone) = book.room_for(header.bytes()) else {
            let fault = Fault::new(
                FaultCode::Busy,
                "the spool is full of requests without answers, or answers without readers",
            );
            return Err(fault.retry_after(RETRY_AFTER));
        };
        for number in &gone {
            book.remove(*number);
        }
        let number = book.put(header.clone());
        // The order on the disk is that of the book.
        for number in gone {
            self.inner
                .push(Change::Drop(number), State::Delivered, None, None);
        }
        let put = Change::Put {
            number,
            header: Box::new(header),
            request: Some(new.request),
            answer: None,
        };
        self.inner
            .push(put, State::Accepted, Some(then), Some(number));
        drop(book);
        Ok(number)
    }

    /// Begins another attempt at a request that is answered, by a client or an operator who asks for one; `then` is
    /// called when that is safe. Returns what the record now says.
    pub fn again(&self, number: u64, left: Option<Duration>, then: Then<()>) -> Option<Header> {
        let now = self.inner.clock.now();
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            header.state = State::Accepted;
            header.attempt = header.attempt.saturating_add(1);
            header.arrived = now;
            header.due = left.map(|left| Due::new(left, now));
            header.answered = None;
            header.delivered = None;
            header.fault = None;
            header.answer_bytes = 0;
            // Whoever asks for it gets one.
            header.crashes = header.crashes.min(CRASHES_MAX - 1);
            true
        })?;
        let put = Change::Put {
            number,
            header: Box::new(header.clone()),
            request: None,
            answer: None,
        };
        self.inner
            .push(Change::Unanswer(number), State::Accepted, None, None);
        self.inner.push(put, State::Accepted, Some(then), None);
        drop(book);
        Some(header)
    }

    /// Notes that an answer is being made.
    pub fn running(&self, number: u64) {
        self.note(number, State::Running);
    }

    /// Notes that the answer was taken by whom it is for.
    pub fn delivered(&self, number: u64) {
        self.note(number, State::Delivered);
    }

    fn note(&self, number: u64, state: State) {
        let now = self.inner.clock.now();
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            let forward = header.state < state
                && (state != State::Delivered || header.state == State::Answered);
            header.state = header.state.max(state);
            header.delivered = (header.state == State::Delivered).then_some(now);
            forward
        });
        if let Some(header) = header {
            // If the daemon has ended over it before, that it runs should be on the disk before it can do so again.
            let soon = state == State::Running && header.attempt > 1;
            let then = soon.then(|| Box::new(drop) as Then<()>);
            let put = Change::Put {
                number,
                header: Box::new(header),
                request: None,
                answer: None,
            };
            self.inner.push(put, state, then, None);
        }
    }

    /// Keeps an answer; `then` is called when it is safe, or if that takes longer than the patience. False if there is
    /// nothing to answer: the record was dropped, or has an answer.
    pub fn answer(&self, number: u64, answer: Bytes, fault: Option<&str>, then: Then<()>) -> bool {
        let now = self.inner.clock.now();
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            if header.state.is_answered() {
                return false;
            }
            header.state = State::Answered;
            header.answered = Some(now);
            header.fault = fault.map(str::to_owned);
            header.answer_bytes = answer.len() as u64;
            true
        });
        let Some(header) = header else {
            return false;
        };
        let put = Change::Put {
            number,
            header: Box::new(header),
            request: None,
            answer: Some(answer),
        };
        self.inner.push(put, State::Answered, Some(then), None);
        true
    }

    /// Fetches a record whole.
    pub fn read(&self, number: u64, then: Then<Option<Kept>>) {
        self.inner.queue().reads.push((number, then));
        self.inner.changed.notify_one();
    }

    /// Drops a record that its front end has turned away after all.
    pub fn forget(&self, number: u64) {
        let mut book = self.inner.book();
        if book.remove(number).is_some() {
            self.inner
                .push(Change::Drop(number), State::Delivered, None, None);
        }
    }

    /// Drops the records that a filter takes, whatever their state, and tells their front ends. Says how many.
    pub fn drop_all(&self, filter: &Filter) -> usize {
        let taken = self.list(filter);
        for (number, header) in &taken {
            self.forget(*number);
            self.inner
                .order(&Order::Dropped(*number, header.key.clone()));
        }
        taken.len()
    }

    /// Writes the file anew, so that nothing of what was dropped is left in it.
    pub fn rewrite(&self, then: Then<()>) {
        self.inner.queue().rewrites.push(then);
        self.inner.changed.notify_one();
    }

    /// Has a record answered, or its answer delivered, once more. False if there is none.
    pub fn retry(&self, number: u64) -> bool {
        let there = self.get(number).is_some();
        if there {
            self.inner.order(&Order::Again(number));
        }
        there
    }

    /// What operators want of the records of a front end, from now on.
    pub fn orders(&self, door: Door) -> mpsc::UnboundedReceiver<Order> {
        let (sender, orders) = mpsc::unbounded_channel();
        let mut senders = (self.inner.orders.lock()).unwrap_or_else(PoisonError::into_inner);
        senders.push((door, sender));
        orders
    }

    /// Writes what is left and ends the thread. Blocks.
    pub fn close(&self) {
        // What runs now was not ended by what it asks.
        for (number, _) in self.list(&Filter::default()) {
            let mut book = self.inner.book();
            let header = book.change(number, |header| {
                let runs = header.state == State::Running;
                header.state = if runs { State::Accepted } else { header.state };
                runs
            });
            if let Some(header) = header {
                let put = Change::Put {
                    number,
                    header: Box::new(header),
                    request: None,
                    answer: None,
                };
                self.inner.push(put, State::Accepted, None, None);
            }
        }
        self.inner.queue().stopping = true;
        self.inner.changed.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the spool's thread ended badly");
        }
    }
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
            tracing::error!("{KILL_VARIABLE}={text} is no place to be killed at");
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
