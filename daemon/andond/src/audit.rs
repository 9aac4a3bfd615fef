//! The audit stream: a line of JSON for every answer, and for every request that was taken and has none.
//!
//! It says who asked what kind of thing of which model and how that ended, and holds no text: prompts and answers are there as
//! keyed digests ([`Mac`]), which only who has the key can compare with a text. Records are put into a bounded queue and
//! written by a thread of its own, so that no answer waits for the disk. Where that fails, answers go on and what does not fit is
//! counted, unless `[audit] required` says that requests are refused meanwhile.
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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

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
    failing: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<String>,
    closed: bool,
}

impl Inner {
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
        let inner = Arc::new(Inner {
            config: config.audit.clone(),
            telemetry,
            queue: Mutex::default(),
            changed: Condvar::new(),
            waiting_max: waiting_max(config),
            mac: OnceLock::new(),
            failing: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let files = match inner.open_files() {
            Ok(files) => Some(files),
            Err(error) if inner.config.required || error.needs_a_person() => return Err(error),
            Err(error) => {
                inner.fails(&error);
                None
            }
        };
        let writer = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer::run(&writer, files))
            .map_err(|_| AuditError::System("cannot start a thread for the audit stream"))?;
        *inner.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
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
        let refuses = inner.config.required && inner.failing.load(Ordering::Relaxed);
        refuses.then(|| {
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
        drop(queue);
        inner.changed.notify_one();
    }

    /// Writes what waits, if the disk takes it, and ends the thread.
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
        if thread.is_some_and(|thread| thread.join().is_err()) {
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

    /// Nothing can be written.
    fn fails(&self, error: &AuditError) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            crate::event!(
                AuditFailing,
                %error,
                required = self.config.required,
                "audit records cannot be written"
            );
            self.telemetry.audit_failing(true);
        }
    }

    /// It works again.
    fn recovers(&self) {
        if self.failing.swap(false, Ordering::Relaxed) {
            crate::event!(AuditRecovered, "audit records are written again");
            self.telemetry.audit_failing(false);
        }
    }
}

#[cfg(test)]
mod tests;
