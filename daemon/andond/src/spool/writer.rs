//! The thread that writes: everything that waits goes into one transaction, with one sync for all of it.
//!
//! While a sync runs, more gathers; so the more there is to do, the less each costs. What is not urgent (that a request
//! runs, that an answer was taken) waits for the next transaction, or for [`LAZY_MAX`].
//!
//! Invariant: what a caller was told is safe is on the disk, and no later change gets there before an earlier one.
//! After a failure the store is opened anew and everything not committed is applied again, with pauses that grow.
//! Whoever waits for that too long is told elsewhere, see [`queue`](super::queue): a new request is then as if it had never
//! come; an answer stays to be written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Inner;
use super::error::SpoolError;
use super::file::Folder;
use super::killed;
use super::queue::{Batch, Changes, LAZY_MAX};
use super::record::{Header, State};
use super::store::Store;
use crate::fault::{Fault, FaultCode};

/// Between two looks at what has become too old.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Before a file that could not be written anew is tried again: what was erased is still in it.
const REWRITE_PAUSE: Duration = Duration::from_secs(30);
/// How much of the machine's life may go unnoted while there are records and nothing else is written: the spool's clock goes on
/// from the last note.
const NOTE_EVERY: Duration = Duration::from_secs(600);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What is done with an outcome.
pub type Then<T> = Box<dyn FnOnce(Result<T, Fault>) + Send>;

/// A record whole.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What it says.
    pub header: Header,
    /// What was asked.
    pub request: Bytes,
    /// What was answered.
    pub answer: Option<Bytes>,
}

/// The place of the store.
pub(super) enum Place {
    /// A file.
    Disk(Folder),
    /// Nowhere: what is kept ends with the daemon.
    Memory,
}

pub(super) struct Writer {
    inner: Arc<Inner>,
    place: Place,
    store: Option<Store>,
    /// Not committed.
    pending: Changes,
    /// Waits before this number are for that.
    until: u64,
    /// When to try again to write the file anew, which was to be done and has failed.
    owed_at: Option<Instant>,
    pause: Duration,
    tidied: Instant,
    /// When the clock was noted.
    noted: Instant,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, place: Place, store: Store) -> Writer {
        Writer {
            inner,
            place,
            store: Some(store),
            pending: Changes::default(),
            until: 0,
            owed_at: None,
            pause: PAUSE.0,
            tidied: Instant::now(),
            noted: Instant::now(),
        }
    }

    /// Writes until told to stop, and then what is left.
    pub(super) fn run(mut self) {
        loop {
            let batch = self.wait();
            self.pending.merge(batch.changes);
            self.until = batch.until;
            self.inner.queue().taken_bytes = self.pending.bytes();
            self.commit(batch.stopping);
            for (number, then) in batch.reads {
                then(self.read(number));
            }
            let owed = self.owed_at.is_some_and(|at| at <= Instant::now());
            if owed || !batch.rewrites.is_empty() {
                let outcome = self.rewrite();
                let again = Instant::now() + REWRITE_PAUSE;
                self.owed_at = outcome.is_err().then_some(again);
                for then in batch.rewrites {
                    then(outcome.clone());
                }
            }
            self.tidy();
            if batch.stopping && (self.pending.is_empty() || self.store.is_none()) {
                break;
            }
        }
        if !self.pending.is_empty() {
            crate::event!(
                SpoolUnwritten,
                records = self.pending.len(),
                "the spool could not be written before the daemon stopped"
            );
        }
        let (left, reads) = self.inner.queue().stop();
        self.inner.waiting.notify_one();
        for then in left {
            then(Err(unkept(&SpoolError::Stopped)));
        }
        for then in reads {
            then(Err(unkept(&SpoolError::Stopped)));
        }
    }

    fn wait(&self) -> Batch {
        let mut queue = self.inner.queue();
        queue.busy = None;
        let began = Instant::now();
        loop {
            let failing = self.store.is_none();
            let waited = began.elapsed();
            let enough = if failing {
                queue.stopping || waited >= self.pause
            } else {
                queue.is_urgent() || !self.pending.is_empty() || waited >= TIDY_EVERY
            };
            if enough {
                return queue.take();
            }
            let longest = if failing {
                self.pause.saturating_sub(waited)
            } else if queue.has_changes() {
                LAZY_MAX
            } else {
                TIDY_EVERY.saturating_sub(waited)
            };
            queue = self.inner.wait(queue, longest);
        }
    }

    /// Commits what is pending, and what the clock says: in any case if `stopping`, and now and then.
    fn commit(&mut self, stopping: bool) {
        if self.store.is_none() {
            self.open_again();
        }
        let Some(store) = &mut self.store else {
            return;
        };
        // What failed works again once something was written, be it nothing.
        let failing = self.inner.queue().failing.is_some();
        let overdue = self.noted.elapsed() >= NOTE_EVERY && !self.inner.book().is_empty();
        if self.pending.is_empty() && !failing && !stopping && !overdue {
            return;
        }
        let made = self.pending.makes();
        for state in &made {
            killed(before(*state));
        }
        let began = Instant::now();
        match store.apply(&self.pending.list(), &self.inner.clock.seen()) {
            Ok(()) => {
                self.inner.telemetry.spool_committed(began.elapsed());
                for state in &made {
                    killed(after(*state));
                }
                self.pending = Changes::default();
                self.noted = Instant::now();
                self.recovered();
                self.inner.report();
                let told = {
                    let mut queue = self.inner.queue();
                    queue.taken_bytes = 0;
                    queue.done(self.until)
                };
                for then in told {
                    then(Ok(()));
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &SpoolError) {
        let mut queue = self.inner.queue();
        if queue.failing.is_none() {
            crate::event!(SpoolFailing, %error, "the spool fails; requests that cannot be kept are refused until it works again");
            queue.failing = Some(Instant::now());
        } else {
            tracing::debug!(%error, "the spool still fails");
        }
        drop(queue);
        self.inner.telemetry.spool_failing(true);
        self.store = None;
    }

    fn recovered(&mut self) {
        let failing = self.inner.queue().failing.take();
        if let Some(since) = failing {
            crate::event!(
                SpoolRecovered,
                failed_s = since.elapsed().as_secs(),
                "the spool works again"
            );
            self.inner.telemetry.spool_failing(false);
        }
        self.pause = PAUSE.0;
    }

    fn open_again(&mut self) {
        let opened = match &self.place {
            Place::Disk(folder) => folder.open(false),
            Place::Memory => Store::open(redb::backends::InMemoryBackend::new(), None),
        };
        match opened {
            // Whether it can be written shows with the next transaction, and only then it works again.
            Ok(store) => self.store = Some(store),
            Err(error) => self.failed(&error),
        }
        self.pause = self.pause.saturating_mul(2).min(PAUSE.1);
    }

    fn read(&mut self, number: u64) -> Result<Option<Kept>, Fault> {
        let Some(header) = self.inner.book().get(number).cloned() else {
            return Ok(None);
        };
        let Some(store) = &self.store else {
            return Err(unkept(&SpoolError::Storage("it fails".to_owned())));
        };
        let read = || {
            // What the book knows was committed before this.
            let request = store.request(number)?.ok_or_else(|| {
                SpoolError::Damaged("what was asked is not there any more".to_owned())
            })?;
            let answer = store.answer(number)?;
            Ok(Some(Kept {
                header,
                request,
                answer,
            }))
        };
        let outcome: Result<_, SpoolError> = read();
        outcome.map_err(|error| match error {
            // One value is damaged; nothing is wrong with the disk, and opening the file again mends nothing.
            SpoolError::Damaged(_) => {
                crate::event!(RecordUnreadable, number, %error, "a record of the spool cannot be read");
                Fault::new(
                    FaultCode::Internal,
                    format!("the record cannot be read: {error}"),
                )
            }
            error => {
                self.failed(&error);
                unkept(&error)
            }
        })
    }

    fn rewrite(&mut self) -> Result<(), Fault> {
        let Place::Disk(folder) = &self.place else {
            return Ok(());
        };
        let Some(store) = self.store.take() else {
            return Err(unkept(&SpoolError::Storage("it fails".to_owned())));
        };
        match folder.rewrite(store) {
            Ok(store) => {
                self.store = Some(store);
                Ok(())
            }
            Err(error) => {
                let fault = unkept(&error);
                self.failed(&error);
                Err(fault)
            }
        }
    }

    /// Drops what has become too old.
    fn tidy(&mut self) {
        if self.tidied.elapsed() < TIDY_EVERY {
            return;
        }
        self.tidied = Instant::now();
        self.inner.drop_outdated();
        self.inner.report();
    }
}

/// Why something could not be kept, as clients are told.
pub(super) fn unkept(error: &SpoolError) -> Fault {
    Fault::new(
        FaultCode::Unavailable,
        format!("the request cannot be kept: {error}"),
    )
    .retry_after(Duration::from_secs(5))
}

fn before(state: State) -> &'static str {
    match state {
        State::Accepted => "before-accepted",
        State::Running => "before-running",
        State::Answered => "before-answered",
        State::Delivered => "before-delivered",
    }
}

fn after(state: State) -> &'static str {
    match state {
        State::Accepted => "after-accepted",
        State::Running => "after-running",
        State::Answered => "after-answered",
        State::Delivered => "after-delivered",
    }
}
