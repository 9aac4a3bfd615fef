//! What waits to be written, and who waits for it.
//!
//! Of each record only what comes of all its changes is held, so that a disk that fails for long makes nothing grow beyond the
//! records there are. Whoever waits is told once: by the writer, when everything up to their change is on the disk, or by
//! [`be_patient`], when that takes longer than the patience, be it that the disk fails, hangs or is busy with a rewriting.
//!
//! Invariant: a number is used once, so that nothing brings back a record that was dropped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Inner;
use super::error::SpoolError;
use super::record::{Header, State};
use super::store::Change;
use super::writer::{Kept, Then, unkept};

/// Longest that a change waits that nobody waits for.
pub(super) const LAZY_MAX: Duration = Duration::from_millis(500);

/// What comes of all changes of a record.
#[derive(Default)]
struct Net {
    dropped: bool,
    unanswered: bool,
    header: Option<Box<Header>>,
    request: Option<Bytes>,
    answer: Option<Bytes>,
}

impl Net {
    fn bytes(&self) -> u64 {
        let of = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len) as u64;
        of(&self.request) + of(&self.answer)
    }

    fn then(&mut self, later: Net) {
        if self.dropped || later.dropped {
            *self = Net {
                dropped: true,
                ..Net::default()
            };
            return;
        }
        if later.unanswered {
            self.unanswered = true;
            self.answer = None;
        }
        self.header = later.header.or(self.header.take());
        self.request = later.request.or(self.request.take());
        self.answer = later.answer.or(self.answer.take());
    }
}

impl From<Change> for Net {
    fn from(change: Change) -> Net {
        match change {
            Change::Put {
                header,
                request,
                answer,
                ..
            } => Net {
                header: Some(header),
                request,
                answer,
                ..Net::default()
            },
            Change::Unanswer(_) => Net {
                unanswered: true,
                ..Net::default()
            },
            Change::Drop(_) => Net {
                dropped: true,
                ..Net::default()
            },
        }
    }
}

/// Changes of records, merged.
#[derive(Default)]
pub(super) struct Changes {
    of: BTreeMap<u64, Net>,
    bytes: u64,
    /// The states that they make of records, for the names of places where a test may end the daemon.
    makes: [bool; State::ALL.len()],
}

impl Changes {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// How many records they are of.
    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Bytes of what was asked and answered in them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The states that they make of records.
    pub(super) fn makes(&self) -> Vec<State> {
        let made = State::ALL.into_iter().zip(self.makes);
        made.filter_map(|(state, made)| made.then_some(state))
            .collect()
    }

    fn add(&mut self, change: Change, makes: State) {
        let number = match &change {
            Change::Put { number, .. } | Change::Unanswer(number) | Change::Drop(number) => *number,
        };
        if let Some(made) = self.makes.get_mut(makes as usize) {
            *made = true;
        }
        self.then(number, change.into());
    }

    fn then(&mut self, number: u64, later: Net) {
        let net = self.of.entry(number).or_default();
        self.bytes -= net.bytes();
        net.then(later);
        self.bytes += net.bytes();
    }

    /// Adds what came later.
    pub(super) fn merge(&mut self, later: Changes) {
        for (made, also) in self.makes.iter_mut().zip(later.makes) {
            *made |= also;
        }
        for (number, net) in later.of {
            self.then(number, net);
        }
    }

    /// As the store takes them.
    pub(super) fn list(&self) -> Vec<Change> {
        let mut list = Vec::with_capacity(self.of.len());
        for (number, net) in &self.of {
            let number = *number;
            if net.dropped {
                list.push(Change::Drop(number));
                continue;
            }
            if net.unanswered {
                list.push(Change::Unanswer(number));
            }
            if let Some(header) = &net.header {
                list.push(Change::Put {
                    number,
                    header: header.clone(),
                    request: net.request.clone(),
                    answer: net.answer.clone(),
                });
            }
        }
        list
    }
}

/// Somebody who waits for a change to be safe.
pub(super) struct Wait {
    since: Instant,
    then: Then<()>,
    /// A new request, which is forgotten if it cannot be kept.
    forgets: Option<u64>,
}

/// What the writer is asked to do.
#[derive(Default)]
pub(super) struct Queue {
    changes: Changes,
    waits: BTreeMap<u64, Wait>,
    /// The number of the next wait.
    next: u64,
    /// Whether somebody waits for what was not taken yet, and since when it is there.
    asked: bool,
    since: Option<Instant>,
    pub(super) reads: Vec<(u64, Then<Option<Kept>>)>,
    /// Write the file anew, so that nothing is left of what was dropped.
    pub(super) rewrites: Vec<Then<()>>,
    /// Bytes that were taken and are not on the disk.
    pub(super) taken_bytes: u64,
    /// Since when nothing can be written.
    pub(super) failing: Option<Instant>,
    /// Since when the writer is at what it has taken.
    pub(super) busy: Option<Instant>,
    pub(super) stopping: bool,
    /// The writer takes nothing any more.
    stopped: bool,
}

/// What the writer has taken to do.
pub(super) struct Batch {
    pub(super) changes: Changes,
    /// Waits before this number are for these and earlier changes.
    pub(super) until: u64,
    pub(super) reads: Vec<(u64, Then<Option<Kept>>)>,
    pub(super) rewrites: Vec<Then<()>>,
    pub(super) stopping: bool,
}

impl Queue {
    /// Whether something should not wait for more to gather.
    pub(super) fn is_urgent(&self) -> bool {
        self.stopping
            || self.asked
            || !self.reads.is_empty()
            || !self.rewrites.is_empty()
            || self.since.is_some_and(|since| since.elapsed() >= LAZY_MAX)
    }

    /// Whether there are changes.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Bytes that are in memory because they are not on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.changes.bytes().saturating_add(self.taken_bytes)
    }

    /// Takes all there is to do.
    pub(super) fn take(&mut self) -> Batch {
        self.asked = false;
        self.since = None;
        self.busy = Some(Instant::now());
        self.taken_bytes = self.taken_bytes.saturating_add(self.changes.bytes());
        Batch {
            changes: std::mem::take(&mut self.changes),
            until: self.next,
            reads: std::mem::take(&mut self.reads),
            rewrites: std::mem::take(&mut self.rewrites),
            stopping: self.stopping,
        }
    }

    /// Those who waited for what is on the disk by now.
    pub(super) fn done(&mut self, until: u64) -> Vec<Then<()>> {
        let later = self.waits.split_off(&until);
        let told = std::mem::replace(&mut self.waits, later);
        told.into_values().map(|wait| wait.then).collect()
    }

    /// Takes nothing any more. Returns whoever is left, and whoever wants to read.
    pub(super) fn stop(&mut self) -> (Vec<Then<()>>, Vec<Then<Option<Kept>>>) {
        self.stopped = true;
        let mut left = self.done(u64::MAX);
        left.append(&mut self.rewrites);
        let reads = std::mem::take(&mut self.reads);
        (left, reads.into_iter().map(|(_, then)| then).collect())
    }
}

impl Inner {
    /// Puts a change in; `then` is called when it is safe, or when that takes too long.
    pub(super) fn push(
        &self,
        change: Change,
        makes: State,
        then: Option<Then<()>>,
        forgets: Option<u64>,
    ) {
        let mut queue = self.queue();
        if queue.stopped {
            drop(queue);
            if let Some(then) = then {
                then(Err(unkept(&SpoolError::Stopped)));
            }
            return;
        }
        let since = Instant::now();
        let wakes = then.is_some() || queue.changes.is_empty();
        queue.changes.add(change, makes);
        queue.since.get_or_insert(since);
        if let Some(then) = then {
            let number = queue.next;
            queue.next += 1;
            queue.asked = true;
            let wait = Wait {
                since,
                then,
                forgets,
            };
            queue.waits.insert(number, wait);
            self.waiting.notify_one();
        }
        drop(queue);
        if wakes {
            self.changed.notify_one();
        }
    }

    /// Asks the writer for something that changes nothing; `then` hears of it, or that the writer has stopped.
    pub(super) fn ask<T>(&self, then: Then<T>, ask: impl FnOnce(&mut Queue, Then<T>)) {
        let mut queue = self.queue();
        if queue.stopped {
            drop(queue);
            return then(Err(unkept(&SpoolError::Stopped)));
        }
        ask(&mut queue, then);
        drop(queue);
        self.changed.notify_one();
    }

    /// Tells one who has waited too long. A new request is forgotten, also where it may be on the disk by then.
    fn impatient(&self, wait: Wait) {
        if let Some(number) = wait.forgets {
            let mut book = self.book();
            if book.remove(number).is_some() {
                self.push(Change::Drop(number), State::Delivered, None, None);
            }
        }
        (wait.then)(Err(unkept(&SpoolError::Storage(
            "it takes longer than spool.patience-ms; see the journal".to_owned(),
        ))));
    }
}

/// Tells whoever has waited too long, until the writer has stopped.
pub(super) fn be_patient(inner: &Inner) {
    let mut queue = inner.queue();
    // Those who wait since the disk has begun to hang hear of it one after the other; the journal once.
    let mut reported = None;
    while !queue.stopped {
        let now = Instant::now();
        let first = queue.waits.first_key_value();
        let Some(due) = first.map(|(_, wait)| wait.since + inner.patience()) else {
            queue = inner.wait_for_waits(queue, None);
            continue;
        };
        if due > now {
            queue = inner.wait_for_waits(queue, Some(due - now));
            continue;
        }
        let Some((_, wait)) = queue.waits.pop_first() else {
            continue;
        };
        if queue.failing.is_none() && queue.busy != reported {
            reported = queue.busy;
            crate::event!(
                SpoolSlow,
                "the spool's disk takes longer than spool.patience-ms to write"
            );
        }
        drop(queue);
        inner.impatient(wait);
        queue = inner.queue();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::header;
    use super::*;

    fn put(state: State, request: Option<&'static [u8]>, answer: Option<&'static [u8]>) -> Change {
        Change::Put {
            number: 1,
            header: Box::new(header(1, state)),
            request: request.map(Bytes::from_static),
            answer: answer.map(Bytes::from_static),
        }
    }

    #[test]
    fn many_changes_of_a_record_are_one() {
        let mut changes = Changes::default();
        changes.add(put(State::Accepted, Some(b"why"), None), State::Accepted);
        for _ in 0..100 {
            changes.add(put(State::Answered, None, Some(b"no")), State::Answered);
            changes.add(Change::Unanswer(1), State::Accepted);
            let mut later = Changes::default();
            later.add(put(State::Accepted, None, None), State::Accepted);
            changes.merge(later);
        }
        assert_eq!((changes.len(), changes.bytes()), (1, 3));
        changes.add(
            put(State::Answered, None, Some(b"because")),
            State::Answered,
        );
        assert_eq!(changes.makes(), [State::Accepted, State::Answered]);
        let list = changes.list();
        let [
            Change::Unanswer(1),
            Change::Put {
                header,
                request,
                answer,
                ..
            },
        ] = list.as_slice()
        else {
            panic!("{list:?}");
        };
        assert_eq!(header.state, State::Answered);
        assert_eq!(request.as_deref(), Some(b"why".as_slice()));
        assert_eq!(answer.as_deref(), Some(b"because".as_slice()));
    }

    #[test]
    fn what_was_dropped_stays_so() {
        let mut changes = Changes::default();
        changes.add(put(State::Accepted, Some(b"why"), None), State::Accepted);
        changes.add(Change::Drop(1), State::Delivered);
        changes.add(put(State::Running, None, None), State::Running);
        assert!(matches!(changes.list().as_slice(), [Change::Drop(1)]));
        assert_eq!(changes.bytes(), 0);
    }
}
