//! The audit stream: a line of JSON for every answer, and for every request that was taken and has none.
//!
//! It says who asked what kind of thing of which model and how that ended, and holds no text: prompts and answers are there as
//! keyed digests ([`Mac`]), which only who has the key can compare with a text. Records are put into a bounded queue and
//! written by a thread of its own, so that no answer waits for the disk. Where that fails, answers go on and what does not fit is
//! counted, unless `[audit] required` says that requests are refused meanwhile: as soon as it fails, takes longer than a few seconds
//! for something or has half the queue waiting, so that there is room for the records of all requests that are open.
//!
//! Invariant: a file holds whole lines, but for the last one after a power cut, which the next start removes.

mod date;
mod files;
mod key;
mod record;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::files::Files;
pub use self::key::{Digest, Mac};
pub use self::record::{Record, Sampler};
use crate::config::Config;
use crate::config::audit::AuditConfig;
use crate::fault::{Fault, FaultCode};
use crate::telemetry::Telemetry;

/// Most bytes of a record: names are bounded, and so is the number of digests.
const RECORD_BYTES_MAX: usize = 4096;
/// Records that may wait beside one of each request that can be open.
const WAITING_MIN: usize = 256;
/// When a client may ask again that was refused for want of a record.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long the disk may take for one thing before it counts as failing; twice as long is waited for it at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there can be no audit stream.
#[derive(Debug)]
pub enum AuditError {
    /// A file or folder, what was done with it, and what the system said.
    Io(PathBuf, &'static str, std::io::Error),
    /// Another daemon writes to this folder.
    InUse(PathBuf),
    /// The key is none.
    Key(PathBuf),
    /// No thread, or no random bytes, are to be had.
    System(&'static str),
    /// The disk has not failed, and takes too long: how many records wait for it.
    Slow(usize),
}

impl AuditError {
    /// Whether only a person can mend it.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        matches!(self, AuditError::Key(_))
    }

    fn io(path: &std::path::Path, what: &'static str) -> impl FnOnce(std::io::Error) -> AuditError {
        let path = path.to_path_buf();
        move |error| AuditError::Io(path, what, error)
    }
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuditError::Io(path, what, error) => {
                write!(f, "cannot {what} {}: {error}", path.display())
            }
            AuditError::InUse(path) => {
                write!(
                    f,
                    "another daemon writes the audit stream in {}",
                    path.display()
                )
            }
            AuditError::Key(path) => write!(
                f,
                "{} is no key: it holds {} bytes; remove it to have a new one made",
                path.display(),
                key::BYTES
            ),
            AuditError::System(what) => f.write_str(what),
            AuditError::Slow(records) => {
                write!(f, "the disk takes too long, and {records} records wait")
            }
        }
    }
}

impl std::error::Error for AuditError {}

/// The way to the audit stream; cheap to clone, and nothing where there is none.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    config: AuditConfig,
    telemetry: Arc<Telemetry>,
    queue: Mutex<Queue>,
    changed: Condvar,
    waiting_max: usize,
    /// Known once the folder could be used.
    mac: OnceLock<Mac>,
    /// Set where the queue is locked, so that what the thread does next cannot be overtaken.
    failing: AtomicBool,
    patience: Duration,
    thread: Mutex<Option<Thread>>,
}

/// The thread that writes.
#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// Disconnected once it has ended.
    ended: mpsc::Receiver<()>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<String>,
    busy: Option<Busy>,
    closed: bool,
}

/// What the thread has begun and not ended.
#[derive(Debug, Clone, Copy)]
struct Busy {
    since: Instant,
    /// Records that it has taken out of the queue.
    records: usize,
}

impl Queue {
    /// Records that are not written.
    fn unwritten(&self) -> usize {
        self.lines.len() + self.busy.map_or(0, |busy| busy.records)
    }
}

impl Inner {
    fn new(config: &Config, telemetry: Arc<Telemetry>, patience: Duration) -> Inner {
        Inner {
            config: config.audit.clone(),
            telemetry,
            queue: Mutex::default(),
            changed: Condvar::new(),
            waiting_max: waiting_max(config),
            mac: OnceLock::new(),
            failing: AtomicBool::new(false),
            patience,
            thread: Mutex::new(None),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every critical section leaves the queue whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many records may wait.
fn waiting_max(config: &Config) -> usize {
    let open = config.limits.queue_max + config.engine.parallel_max;
    open.saturating_mul(2).max(WAITING_MIN)
}

impl Audit {
    /// Most bytes of memory that it takes.
    #[must_use]
    pub fn memory_bytes_max(config: &Config) -> u64 {
        if !config.audit.enabled {
            return 0;
        }
        // What waits, what is being written, and what is known of each open request.
        (waiting_max(config) as u64 * 3).saturating_mul(RECORD_BYTES_MAX as u64)
    }

    /// Opens the stream, if there is to be one: mends the last file and starts the thread that writes.
    ///
    /// # Errors
    /// What stands in the way where records are required, or where only a person can mend it. Else it is tried again as long
    /// as the daemon runs.
    pub fn open(config: &Config, telemetry: Arc<Telemetry>) -> Result<Audit, AuditError> {
        if !config.audit.enabled {
            return Ok(Audit::default());
        }
        let inner = Inner::new(config, telemetry, PATIENCE);
        let files = match inner.open_files() {
            Ok(files) => Some(files),
            Err(error) if inner.config.required || error.needs_a_person() => return Err(error),
            Err(error) => {
                inner.fails(error);
                None
            }
        };
        Audit::start(inner, files)
    }

    fn start(inner: Inner, files: Option<Files>) -> Result<Audit, AuditError> {
        let inner = Arc::new(inner);
        let writer = Arc::clone(&inner);
        let (running, ended) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                let _running: mpsc::Sender<()> = running;
                writer::run(&writer, files);
            })
            .map_err(|_| AuditError::System("cannot start a thread for the audit stream"))?;
        *inner.thread.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Thread { handle, ended });
        Ok(Audit { inner: Some(inner) })
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// What digests of texts are made with; `None` where there is no stream, or its folder could not be read yet.
    #[must_use]
    pub fn mac(&self) -> Option<&Mac> {
        self.inner.as_ref()?.mac.get()
    }

    /// Why requests are refused for want of a record, if they are.
    #[must_use]
    pub fn refuses(&self) -> Option<Fault> {
        let inner = self.inner.as_ref()?;
        if !inner.config.required {
            return None;
        }
        inner.look_at_the_disk(inner.queue());
        inner.failing.load(Ordering::Relaxed).then(|| {
            Fault::new(
                FaultCode::Unavailable,
                "the audit record cannot be written; see the journal",
            )
            .retry_after(RETRY_AFTER)
        })
    }

    /// Puts a record where the thread takes it. Never blocks: with no room left, it is counted and lost.
    pub fn put(&self, record: &Record<'_>) {
        let Some(inner) = &self.inner else {
            return;
        };
        let line = record.line();
        let mut queue = inner.queue();
        if line.len() > RECORD_BYTES_MAX || queue.lines.len() >= inner.waiting_max || queue.closed {
            drop(queue);
            return inner.telemetry.audit_lost();
        }
        queue.lines.push_back(line);
        inner.changed.notify_one();
        inner.look_at_the_disk(queue);
    }

    /// Writes what waits, if the disk takes it, and ends the thread. A disk that hangs is left behind after a while.
    pub fn close(&self) {
        let Some(inner) = &self.inner else {
            return;
        };
        inner.queue().closed = true;
        inner.changed.notify_one();
        let thread = inner
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(Thread { handle, ended }) = thread else {
            return;
        };
        if ended.recv_timeout(inner.patience * 2) == Err(mpsc::RecvTimeoutError::Timeout) {
            crate::event!(
                StopIncomplete,
                records = inner.queue().unwritten(),
                "the audit stream's disk hangs, and the daemon stops without it"
            );
        } else if handle.join().is_err() {
            crate::event!(Internal, "the thread of the audit stream ended badly");
        }
    }
}

impl Inner {
    /// Opens the folder, with the key in it.
    fn open_files(&self) -> Result<Files, AuditError> {
        let (files, mac) = Files::open(&self.config)?;
        self.mac.get_or_init(|| mac);
        Ok(files)
    }

    /// Notices a disk that hangs: it says nothing itself. The queue comes locked and is not when anything is logged.
    fn look_at_the_disk(&self, queue: MutexGuard<'_, Queue>) {
        let hangs = |busy: Busy| busy.since.elapsed() > self.patience;
        let is_slow = queue.lines.len() >= self.waiting_max / 2 || queue.busy.is_some_and(hangs);
        // The thread is busy, or is about to take these lines: in both cases it says once it works.
        if is_slow {
            self.has_failed(queue, AuditError::Slow);
        }
    }

    /// Nothing can be written.
    fn fails(&self, error: AuditError) {
        let mut queue = self.queue();
        queue.busy = None;
        self.has_failed(queue, |_| error);
    }

    fn has_failed(&self, queue: MutexGuard<'_, Queue>, error: impl FnOnce(usize) -> AuditError) {
        let records = queue.unwritten();
        if self.failing.swap(true, Ordering::Relaxed) {
            return;
        }
        self.telemetry.audit_failing(true);
        drop(queue);
        crate::event!(
            AuditFailing,
            error = %error(records),
            required = self.config.required,
            "audit records cannot be written"
        );
    }

    /// What was to be done is done.
    fn works(&self) {
        let mut queue = self.queue();
        queue.busy = None;
        if !self.failing.swap(false, Ordering::Relaxed) {
            return;
        }
        self.telemetry.audit_failing(false);
        drop(queue);
        crate::event!(AuditRecovered, "audit records are written again");
    }

    /// The thread begins something that the disk has to do, with so many records in its hands.
    fn begins(&self, records: usize) {
        self.queue().busy = Some(Busy {
            since: Instant::now(),
            records,
        });
    }
}

#[cfg(test)]
mod tests;
