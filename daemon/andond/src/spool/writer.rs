//! The thread that writes: everything that waits goes into one transaction, with one sync for all of it.
//!
//! While a sync runs, more gathers; so the more there is to do, the less each costs. What is not urgent (that a request
//! runs, that an answer was taken) waits for the next transaction, or for [`LAZY_MAX`].
//!
//! Invariant: what a caller was told is safe is on the disk, and changes get there in the order in which they were made.
//! After a failure the store is opened anew and everything not committed is applied again, with pauses that grow;
//! whoever waits longer than the patience is told, once. A new request is then as if it had never come; an answer
//! stays to be written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Inner;
use super::error::SpoolError;
use super::file::Folder;
use super::killed;
use super::record::{Header, State};
use super::store::{Change, Store};
use crate::fault::{Fault, FaultCode};

/// Longest that a change waits that nobody waits for.
const LAZY_MAX: Duration = Duration::from_millis(500);
/// Between two looks at what has become too old.
const TIDY_EVERY: Duration = Duration::from_secs(5);
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

/// A change on its way to the disk.
pub(super) struct Job {
    pub(super) change: Change,
    /// What it makes of the record, for the names of places where a test may end the daemon.
    pub(super) makes: State,
    pub(super) since: Instant,
    pub(super) then: Option<Then<()>>,
    /// A new request, which is forgotten if it cannot be kept.
    pub(super) forgets: Option<u64>,
}

/// What the writer is asked to do.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) jobs: Vec<Job>,
    pub(super) reads: Vec<(u64, Then<Option<Kept>>)>,
    /// Write the file anew, so that nothing is left of what was dropped.
    pub(super) rewrites: Vec<Then<()>>,
    /// Since when nothing can be written.
    pub(super) failing: Option<Instant>,
    pub(super) stopping: bool,
}

impl Queue {
    fn is_urgent(&self) -> bool {
        let urgent = |job: &Job| job.then.is_some() || job.since.elapsed() >= LAZY_MAX;
        self.stopping
            || !self.reads.is_empty()
            || !self.rewrites.is_empty()
            || self.jobs.iter().any(urgent)
    }
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
    /// Not committed, in order.
    pending: Vec<Job>,
    pause: Duration,
    tidied: Instant,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, place: Place, store: Store) -> Writer {
        Writer {
            inner,
            place,
            store: Some(store),
            pending: Vec::new(),
            pause: PAUSE.0,
            tidied: Instant::now(),
        }
    }

    /// Writes until told to stop, and then what is left.
    pub(super) fn run(mut self) {
        loop {
            let (jobs, reads, rewrites, stopping) = self.wait();
            self.pending.extend(jobs);
            self.commit();
            for (number, then) in reads {
                then(self.read(number));
            }
            if !rewrites.is_empty() {
                let outcome = self.rewrite();
                for then in rewrites {
                    then(outcome.clone());
                }
            }
            self.tidy();
            if stopping && (self.pending.is_empty() || self.store.is_none()) {
                break;
            }
        }
        if !self.pending.is_empty() {
            tracing::error!(
                changes = self.pending.len(),
                "the spool could not be written before the daemon stopped"
            );
        }
        for job in self.pending.drain(..) {
            if let Some(then) = job.then {
                then(Err(unkept(&SpoolError::Stopped)));
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "the parts of a queue")]
    fn wait(
        &self,
    ) -> (
        Vec<Job>,
        Vec<(u64, Then<Option<Kept>>)>,
        Vec<Then<()>>,
        bool,
    ) {
        let mut queue = self.inner.queue();
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
                return (
                    std::mem::take(&mut queue.jobs),
                    std::mem::take(&mut queue.reads),
                    std::mem::take(&mut queue.rewrites),
                    queue.stopping,
                );
            }
            let longest = if failing {
                self.pause.saturating_sub(waited)
            } else if queue.jobs.is_empty() {
                TIDY_EVERY.saturating_sub(waited)
            } else {
                LAZY_MAX
            };
            queue = self.inner.wait(queue, longest);
        }
    }

    /// Commits what is pending, or tells those who have waited long enough.
    fn commit(&mut self) {
        if self.store.is_none() {
            self.open_again();
        }
        if self.store.is_none() {
            self.impatient();
            return;
        }
        // What failed works again once something was written, be it nothing.
        if self.pending.is_empty() && self.inner.queue().failing.is_none() {
            return;
        }
        let makes = |state: State| self.pending.iter().any(|job| job.makes == state);
        let made: Vec<State> = State::ALL
            .into_iter()
            .filter(|state| makes(*state))
            .collect();
        for state in &made {
            killed(before(*state));
        }
        let changes = self.changes();
        let Some(store) = &mut self.store else {
            return;
        };
        let began = Instant::now();
        match store.apply(&changes, &self.inner.clock.seen()) {
            Ok(()) => {
                self.inner.telemetry.spool_committed(began.elapsed());
                for state in &made {
                    killed(after(*state));
                }
                self.recovered();
                self.inner.report();
                for job in self.pending.drain(..) {
                    if let Some(then) = job.then {
                        then(Ok(()));
                    }
                }
            }
            Err(error) => {
                self.failed(&error);
                self.impatient();
            }
        }
    }

    /// What is pending, of records that are still there: one dropped meanwhile is not put again.
    fn changes(&self) -> Vec<Change> {
        let book = self.inner.book();
        let changes = self.pending.iter().map(|job| match &job.change {
            Change::Put { number, .. } if book.get(*number).is_none() => Change::Drop(*number),
            change => change.clone(),
        });
        changes.collect()
    }

    fn failed(&mut self, error: &SpoolError) {
        let mut queue = self.inner.queue();
        if queue.failing.is_none() {
            tracing::error!(%error, "the spool fails; requests that cannot be kept are refused until it works again");
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
            tracing::warn!(
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

    /// Tells those who have waited too long. A new request is forgotten, also where the failed transaction may have
    /// left it on the disk.
    fn impatient(&mut self) {
        let patience = self.inner.patience;
        let mut told = Vec::new();
        for job in &mut self.pending {
            if job.since.elapsed() < patience {
                continue;
            }
            if let Some(then) = job.then.take() {
                told.push((then, job.forgets));
            }
            if let Some(number) = job.forgets.take() {
                job.change = Change::Drop(number);
            }
        }
        for (then, forgets) in told {
            if let Some(number) = forgets {
                self.inner.book().remove(number);
            }
            then(Err(unkept(&SpoolError::Storage(
                "see the journal".to_owned(),
            ))));
        }
    }

    fn read(&mut self, number: u64) -> Result<Option<Kept>, Fault> {
        let Some(header) = self.inner.book().get(number).cloned() else {
            return Ok(None);
        };
        let Some(store) = &self.store else {
            return Err(unkept(&SpoolError::Storage("it fails".to_owned())));
        };
        let read = || {
            let request = store.request(number)?;
            let answer = store.answer(number)?;
            Ok(request.map(|request| Kept {
                header,
                request,
                answer,
            }))
        };
        let outcome: Result<_, SpoolError> = read();
        outcome.map_err(|error| match error {
            // One value is damaged; nothing is wrong with the disk, and opening the file again mends nothing.
            SpoolError::Damaged(_) => {
                tracing::error!(number, %error, "a record of the spool cannot be read");
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
        let (Place::Disk(folder), Some(store)) = (&self.place, self.store.take()) else {
            return match self.place {
                Place::Memory => Ok(()),
                Place::Disk(_) => Err(unkept(&SpoolError::Storage("it fails".to_owned()))),
            };
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
