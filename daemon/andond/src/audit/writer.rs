//! The thread that writes records.
//!
//! What a disk does not take it keeps, and tries again; meanwhile others wait in the queue, up to its bound. What was written is
//! brought to the disk once a second: a power cut costs no more than that. Once an hour it looks for files that have become too old.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use super::files::Files;
use super::{AuditError, Inner};

/// How long what was written may be on its way to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long files may be too old before they go.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// How long is waited after a failure: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Writes until the stream is closed and what waits is written.
pub(super) fn run(inner: &Inner, mut files: Option<Files>) {
    let mut pending = VecDeque::new();
    let mut unsynced: Option<Instant> = None;
    let mut looked: Option<Instant> = None;
    let mut pause = PAUSE.0;
    let left = |every: Duration, since: Instant| every.saturating_sub(since.elapsed());
    loop {
        let wait = if files.is_none() {
            pause
        } else {
            let look = looked.map_or(Duration::ZERO, |since| left(LOOK_EVERY, since));
            unsynced.map_or(look, |since| left(SYNC_EVERY, since).min(look))
        };
        let closed = next(inner, &mut pending, wait, files.is_none());
        let due = closed || unsynced.is_some_and(|since| since.elapsed() >= SYNC_EVERY);
        let looks = looked.is_none_or(|since| since.elapsed() >= LOOK_EVERY);
        inner.begins(pending.len());
        match write(inner, &mut files, &mut pending, looks, due) {
            Ok(()) => {
                if looks {
                    looked = Some(Instant::now());
                }
                pause = PAUSE.0;
                unsynced = if due {
                    None
                } else {
                    unsynced.or_else(|| Some(Instant::now()))
                };
                inner.works();
            }
            Err(error) => {
                inner.fails(error);
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
fn next(inner: &Inner, pending: &mut VecDeque<String>, wait: Duration, failing: bool) -> bool {
    let until = Instant::now() + wait;
    let mut queue = inner.queue();
    while !queue.closed && (failing || queue.lines.is_empty()) {
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

/// Writes what is pending, opening the folder and looking for old files if need be.
fn write(
    inner: &Inner,
    files: &mut Option<Files>,
    pending: &mut VecDeque<String>,
    look: bool,
    sync: bool,
) -> Result<(), AuditError> {
    let files = match files {
        Some(files) => files,
        none => none.insert(inner.open_files()?),
    };
    if look {
        files.look(SystemTime::now())?;
    }
    while let Some(line) = pending.front() {
        inner.begins(pending.len());
        files.append(line, SystemTime::now())?;
        pending.pop_front();
        inner.telemetry.audit_written();
    }
    if sync {
        inner.begins(0);
        files.sync()?;
    }
    Ok(())
}
