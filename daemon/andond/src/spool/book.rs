//! Every record's header, in memory: which requests are known, what they take, which give way.
//!
//! The book is ahead of the disk by what the writer has not committed yet; it is what decides, and the writer only
//! follows. It knows no thread and no disk.
//!
//! Invariant: a state only goes forward, but by an operator's word or a client who asks again for what has failed. What
//! has been delivered gives way to what comes, the oldest first; what has not never does. An eighth is for alarms, whoever has
//! filled the rest.

use std::collections::{BTreeMap, HashMap};

use super::clock::Stamp;
use super::record::{Header, Key, State};
use crate::request::Priority;

/// This part of the spool is for alarms alone.
const SHARE_FOR_ALARMS: u64 = 8;

/// What the spool may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most records.
    pub requests_max: usize,
    /// Most bytes of all of them.
    pub bytes_max: u64,
    /// How long a delivered one is kept for a repetition, in milliseconds.
    pub keep_ms: u64,
    /// How long one is kept that cannot be answered or delivered, in milliseconds.
    pub age_max_ms: u64,
}

/// Which records an operator means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this client.
    pub client: Option<String>,
    /// Of this task.
    pub task: Option<String>,
    /// Of this number.
    pub number: Option<u64>,
}

impl Filter {
    /// Whether a record is meant.
    pub fn takes(&self, number: u64, header: &Header) -> bool {
        self.number.is_none_or(|wanted| wanted == number)
            && (self.client.as_ref()).is_none_or(|client| *client == header.key.client)
            && (self.task.as_ref()).is_none_or(|task| header.task.as_ref() == Some(task))
    }
}

/// The book.
#[derive(Debug)]
pub struct Book {
    bounds: Bounds,
    records: BTreeMap<u64, Header>,
    numbers: HashMap<Key, u64>,
    next: u64,
    bytes: u64,
    counts: [usize; State::ALL.len()],
}

impl Book {
    /// The book of what is on the disk. Of two records of one name, which no spool takes, the later counts.
    pub fn new(bounds: Bounds, records: BTreeMap<u64, Header>) -> Book {
        let next = records.keys().next_back().map_or(1, |last| last + 1);
        let bytes = records.values().map(Header::bytes);
        let bytes = bytes.fold(0, u64::saturating_add);
        let numbers = records
            .iter()
            .map(|(number, header)| (header.key.clone(), *number))
            .collect();
        let counts = State::ALL.map(|state| {
            let of = |header: &&Header| header.state == state;
            records.values().filter(of).count()
        });
        Book {
            bounds,
            records,
            numbers,
            next,
            bytes,
            counts,
        }
    }

    /// Keeps what was delivered, and what is not answered, for so long from now on, in milliseconds.
    pub fn set_ages(&mut self, keep_ms: u64, age_max_ms: u64) {
        self.bounds.keep_ms = keep_ms;
        self.bounds.age_max_ms = age_max_ms;
    }

    /// The record of a name.
    pub fn find(&self, key: &Key) -> Option<(u64, &Header)> {
        let number = *self.numbers.get(key)?;
        Some((number, self.records.get(&number)?))
    }

    /// The record of a number.
    pub fn get(&self, number: u64) -> Option<&Header> {
        self.records.get(&number)
    }

    /// Every record, in the order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Header)> {
        self.records
            .iter()
            .map(|(number, header)| (*number, header))
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of all records, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many records are in each state.
    pub fn counts(&self) -> [usize; State::ALL.len()] {
        self.counts
    }

    fn count(&mut self, before: Option<State>, after: Option<State>) {
        let mut of = |state: Option<State>, change: fn(usize, usize) -> usize| {
            if let Some(count) = state.and_then(|state| self.counts.get_mut(state as usize)) {
                *count = change(*count, 1);
            }
        };
        of(before, usize::saturating_sub);
        of(after, usize::saturating_add);
    }

    /// What must give way so that a record of so many bytes can come; `None` if what may give way is not enough.
    pub fn room_for(&self, bytes: u64, priority: Priority) -> Option<Vec<u64>> {
        let Bounds {
            mut requests_max,
            mut bytes_max,
            ..
        } = self.bounds;
        if priority != Priority::Alarm {
            let share = usize::try_from(SHARE_FOR_ALARMS).unwrap_or(usize::MAX);
            requests_max -= requests_max / share;
            bytes_max -= bytes_max / SHARE_FOR_ALARMS;
        }
        let mut gone = Vec::new();
        let (mut count, mut held) = (self.records.len(), self.bytes);
        let mut delivered = self
            .records
            .iter()
            .filter(|(_, header)| header.state == State::Delivered);
        while count >= requests_max || held.saturating_add(bytes) > bytes_max {
            let (number, header) = delivered.next()?;
            gone.push(*number);
            count -= 1;
            held = held.saturating_sub(header.bytes());
        }
        Some(gone)
    }

    /// Those whose time is over: delivered long enough ago, or too old to be of use to anybody.
    pub fn outdated(&self, now: &Stamp) -> Vec<u64> {
        let Bounds {
            keep_ms,
            age_max_ms,
            bytes_max,
            ..
        } = self.bounds;
        let mut held = self.bytes;
        let mut outdated = Vec::new();
        for (number, header) in &self.records {
            // Not by the wall clock, also over a start: one that is ahead would give everything up.
            let age_ms = |since: &Stamp| now.ran_since(since);
            let old = match header.state {
                // Answers may have come in larger than there was room for.
                State::Delivered => {
                    held > bytes_max
                        || age_ms(header.delivered.as_ref().unwrap_or(&header.arrived)) >= keep_ms
                }
                State::Accepted | State::Running | State::Answered => {
                    age_ms(&header.arrived) >= age_max_ms
                }
            };
            if old {
                held = held.saturating_sub(header.bytes());
                outdated.push(*number);
            }
        }
        outdated
    }

    /// Puts a new record in.
    pub fn put(&mut self, header: Header) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes = self.bytes.saturating_add(header.bytes());
        self.count(None, Some(header.state));
        self.numbers.insert(header.key.clone(), number);
        self.records.insert(number, header);
        number
    }

    /// Changes a record and returns what it now says; `None` if it is not there or `change` says no.
    pub fn change(
        &mut self,
        number: u64,
        change: impl FnOnce(&mut Header) -> bool,
    ) -> Option<Header> {
        let header = self.records.get_mut(&number)?;
        let mut changed = header.clone();
        if !change(&mut changed) {
            return None;
        }
        self.bytes = self.bytes.saturating_sub(header.bytes());
        self.bytes = self.bytes.saturating_add(changed.bytes());
        let before = std::mem::replace(header, changed.clone()).state;
        self.count(Some(before), Some(changed.state));
        Some(changed)
    }

    /// Takes a record out.
    pub fn remove(&mut self, number: u64) -> Option<Header> {
        let header = self.records.remove(&number)?;
        self.bytes = self.bytes.saturating_sub(header.bytes());
        self.count(Some(header.state), None);
        if self.numbers.get(&header.key) == Some(&number) {
            self.numbers.remove(&header.key);
        }
        Some(header)
    }
}

/// Begins a new attempt at everything that has no answer: what a start does before anything is published. `same_start` says
/// whether the machine has stayed up since.
pub fn begin_attempts(records: &mut BTreeMap<u64, Header>, same_start: bool) -> Vec<u64> {
    let mut begun = Vec::new();
    for (number, header) in records {
        if header.state.is_answered() {
            continue;
        }
        // A machine that was started again may have lost its power; a daemon that stops in order leaves nothing running.
        if header.state == State::Running && same_start {
            header.crashes = header.crashes.saturating_add(1);
        }
        header.state = State::Accepted;
        header.attempt = header.attempt.saturating_add(1);
        begun.push(*number);
    }
    begun
}

#[cfg(test)]
mod tests {
    use super::super::record::{Door, Due, Fingerprint};
    use super::*;

    fn at(ran_ms: u64) -> Stamp {
        Stamp {
            ran_ms,
            ..Stamp::default()
        }
    }

    fn header(id: &str, state: State, bytes: u64) -> Header {
        Header {
            key: Key {
                door: Door::Mqtt,
                client: "plc".to_owned(),
                id: id.to_owned(),
            },
            task: None,
            priority: Priority::Interactive,
            fingerprint: Fingerprint::of(&[b"x"]),
            state,
            attempt: 1,
            seed: 0,
            arrived: at(0),
            due: None,
            answered: None,
            delivered: None,
            fault: None,
            request_bytes: bytes,
            answer_bytes: 0,
            crashes: 0,
        }
    }

    fn book(bounds: Bounds) -> Book {
        Book::new(bounds, BTreeMap::new())
    }

    const BOUNDS: Bounds = Bounds {
        requests_max: 3,
        bytes_max: 10_000,
        keep_ms: 1000,
        age_max_ms: 5000,
    };

    #[test]
    fn what_was_delivered_gives_way_oldest_first_and_nothing_else_does() {
        let mut book = book(BOUNDS);
        let waiting = book.put(header("1", State::Answered, 0));
        let old = book.put(header("2", State::Delivered, 0));
        let new = book.put(header("3", State::Delivered, 0));
        let room = |book: &Book, bytes| book.room_for(bytes, Priority::Alarm);
        assert_eq!(room(&book, 0), Some(vec![old]));
        assert_eq!(room(&book, 9000), Some(vec![old, new]));
        assert_eq!(room(&book, 10_000), None);
        assert_eq!(book.counts(), [0, 0, 1, 2]);
        book.remove(old);
        book.remove(new);
        book.put(header("4", State::Running, 0));
        book.put(header("5", State::Accepted, 0));
        assert_eq!(room(&book, 0), None);
        assert!(book.get(waiting).is_some());
        assert_eq!(book.counts(), [1, 1, 1, 0]);
    }

    #[test]
    fn an_eighth_is_for_alarms_in_number_and_in_bytes() {
        let mut book = book(Bounds {
            requests_max: 8,
            ..BOUNDS
        });
        for id in ["1", "2", "3", "4", "5", "6"] {
            book.put(header(id, State::Accepted, 0));
        }
        let room = |book: &Book, bytes, priority| book.room_for(bytes, priority).is_some();
        let bytes = BOUNDS.bytes_max - book.bytes();
        assert!(room(&book, bytes - 1250, Priority::Interactive));
        assert!(!room(&book, bytes - 1249, Priority::Interactive));
        assert!(room(&book, bytes, Priority::Alarm));
        book.put(header("7", State::Accepted, 0));
        assert!(!room(&book, 0, Priority::Interactive) && !room(&book, 0, Priority::Batch));
        assert!(room(&book, 0, Priority::Alarm));
        let number = book.put(header("8", State::Accepted, 0));
        assert!(!room(&book, 0, Priority::Alarm));
        book.change(number, |header| {
            header.state = State::Delivered;
            true
        });
        assert_eq!(book.counts(), [7, 0, 0, 1]);
        assert_eq!(book.room_for(0, Priority::Alarm), Some(vec![number]));
    }

    #[test]
    fn time_takes_the_delivered_soon_and_the_others_late() {
        let mut book = book(BOUNDS);
        let delivered = book.put(Header {
            answered: Some(at(100)),
            delivered: Some(at(500)),
            ..header("1", State::Delivered, 0)
        });
        let stuck = book.put(header("2", State::Answered, 0));
        assert!(book.outdated(&at(1400)).is_empty());
        assert_eq!(book.outdated(&at(1500)), [delivered]);
        assert_eq!(book.outdated(&at(5000)), [delivered, stuck]);
    }

    #[test]
    fn answers_over_the_bound_make_the_delivered_go() {
        let mut book = book(BOUNDS);
        let gone = book.put(header("1", State::Delivered, 5000));
        let kept = book.put(header("2", State::Delivered, 3000));
        assert_eq!(book.outdated(&at(0)), Vec::<u64>::new());
        book.change(kept, |header| {
            header.answer_bytes = 2000;
            true
        });
        assert_eq!(book.outdated(&at(0)), [gone]);
        book.remove(gone);
        assert_eq!(book.bytes(), book.get(kept).expect("kept").bytes());
    }

    #[test]
    fn a_start_begins_an_attempt_at_what_has_no_answer() {
        let mut records = BTreeMap::new();
        let due = Some(Due {
            left_ms: 1000,
            at: at(100),
        });
        for (number, state) in (1..).zip(State::ALL) {
            let mut header = header(state.name(), state, 0);
            header.due = due;
            records.insert(number, header);
        }
        assert_eq!(begin_attempts(&mut records, true), [1, 2]);
        let of = |number: u64| (records[&number].attempt, records[&number].state);
        assert_eq!(of(1), (2, State::Accepted));
        assert_eq!(of(2), (2, State::Accepted));
        assert_eq!(of(3), (1, State::Answered));
        assert_eq!(of(4), (1, State::Delivered));
        assert_eq!(records[&1].due.map(|due| due.left_ms(&at(300))), Some(800));
    }

    #[test]
    fn only_what_ran_when_the_daemon_alone_ended_has_a_crash() {
        let crashes = |state, same_start| {
            let mut records = BTreeMap::from([(1, header("1", state, 0))]);
            begin_attempts(&mut records, same_start);
            records[&1].crashes
        };
        assert_eq!(crashes(State::Running, true), 1);
        assert_eq!(crashes(State::Accepted, true), 0);
        assert_eq!(crashes(State::Running, false), 0, "its power was cut");
        let mut deadly = header("1", State::Accepted, 0);
        assert!(deadly.too_many_crashes().is_none());
        deadly.crashes = 3;
        assert!(deadly.too_many_crashes().is_some());
    }

    #[test]
    fn a_wall_clock_that_is_ahead_after_a_start_gives_nothing_up() {
        let sane = 1_800_000_000_000;
        let arrived = Stamp {
            wall_ms: Some(sane),
            ..at(100)
        };
        let waiting = Header {
            arrived,
            ..header("1", State::Answered, 0)
        };
        let book = Book::new(BOUNDS, BTreeMap::from([(1, waiting)]));
        let now = Stamp {
            starts: 1,
            ran_ms: 150,
            wall_ms: Some(2 * sane),
        };
        assert!(book.outdated(&now).is_empty());
        // But what it was seen to run for counts, however often it was started.
        let now = Stamp {
            starts: 9,
            ..at(5100)
        };
        assert_eq!(book.outdated(&now), [1]);
    }

    #[test]
    fn a_filter_takes_what_it_names() {
        let mut asked = header("1", State::Answered, 0);
        asked.task = Some("explain".to_owned());
        let all = Filter::default();
        assert!(all.takes(7, &asked));
        let text = |text: &str| Some(text.to_owned());
        for (filter, takes) in [
            (
                Filter {
                    client: text("plc"),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    client: text("other"),
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    task: text("explain"),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    task: text("x"),
                    client: text("plc"),
                    ..all.clone()
                },
                false,
            ),
            (
                Filter {
                    number: Some(7),
                    ..all.clone()
                },
                true,
            ),
            (
                Filter {
                    number: Some(8),
                    ..all
                },
                false,
            ),
        ] {
            assert_eq!(filter.takes(7, &asked), takes, "{filter:?}");
        }
    }
}
