//! The thread that writes records.
//!
//! What a disk does not take it keeps, and tries again; meanwhile others wait in the queue, up to its bound. What was written is
//! brought to the disk once a second: a power cut costs no more than that.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use super::files::Files;
use super::{AuditError, Inner};

/// How long what was written may be on its way to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long is waited after a failure: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Writes until the stream is closed and what waits is written.
pub(super) fn run(inner: &Inner, mut files: Option<Files>) {
    let mut pending = VecDeque::new();
    let mut unsynced: Option<Instant> = None;
    let mut pause = PAUSE.0;
    loop {
        let wait = if files.is_none() {
            Some(pause)
        } else {
            unsynced.map(|since| SYNC_EVERY.saturating_sub(since.elapsed()))
        };
        let closed = next(inner, &mut pending, wait, files.is_none());
        let due = closed || unsynced.is_some_and(|since| since.elapsed() >= SYNC_EVERY);
        match write(inner, &mut files, &mut pending, due) {
            Ok(()) => {
                pause = PAUSE.0;
                unsynced = if due {
                    None
                } else {
                    unsynced.or_else(|| Some(Instant::now()))
                };
                inner.recovers();
            }
            Err(error) => {
                inner.fails(&error);
                // What is wrong with the folder is looked at anew.
                (files, unsynced) = (None, None);
                pause = pause.saturating_mul(2).min(PAUSE.1);
            }
        }
        if closed {
            let records = pending.len();
            if records > 0 {
                (0..records).for_each(|_| inner.telemetry.audit_lost());
                crate::event!(
                    StopIncomplete,
                    records,
                    "audit records could not be written before the daemon stopped"
                );
            }
            return;
        }
    }
}

/// Waits until there is something to do, for no longer than `wait`, and takes what there is to write. While the disk fails only
/// time and the end are something. Says whether the stream is closed.
fn next(
    inner: &Inner,
    pending: &mut VecDeque<String>,
    wait: Option<Duration>,
    failing: bool,
) -> bool {
    let until = wait.map(|wait| Instant::now() + wait);
    let mut queue = inner.queue();
    while !queue.closed && (failing || queue.lines.is_empty()) {
        let Some(until) = until else {
            queue = inner
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let waited = inner.changed.wait_timeout(queue, left);
        queue = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    // What waits here already goes first, and the two together have a bound.
    if pending.is_empty() || queue.closed {
        pending.append(&mut queue.lines);
    }
    queue.closed
}

/// Writes what is pending, opening the folder if need be.
fn write(
    inner: &Inner,
    files: &mut Option<Files>,
    pending: &mut VecDeque<String>,
    sync: bool,
) -> Result<(), AuditError> {
    let files = match files {
        Some(files) => files,
        none => none.insert(inner.open_files()?),
    };
    while let Some(line) = pending.front() {
        files.append(line, SystemTime::now())?;
        pending.pop_front();
        inner.telemetry.audit_written();
    }
    if sync {
        files.sync()?;
    }
    Ok(())
}
