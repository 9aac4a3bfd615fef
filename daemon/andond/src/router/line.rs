//! Requests that wait until upstream can be had: a line for each client, so that what one asks goes in its order.
//!
//! Invariant: no more requests, and no more bytes of them, wait than the configuration has room for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Whose line it is: whether a client of the broker, and its name.
pub(super) type Whose = (bool, String);

/// All lines.
#[derive(Debug)]
pub(super) struct Line {
    count_max: usize,
    bytes_max: usize,
    places: Mutex<Places>,
    /// Changes whenever somebody leaves.
    moved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Places {
    lines: HashMap<Whose, VecDeque<u64>>,
    count: usize,
    bytes: usize,
    next: u64,
}

/// A place in a line, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    whose: Whose,
    ticket: u64,
    bytes: usize,
}

impl Line {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Line {
        Line {
            count_max,
            bytes_max,
            places: Mutex::default(),
            moved: watch::Sender::new(0),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Every critical section leaves them whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last place of a client's line; `None` if there is none left.
    pub(super) fn enter(self: &Arc<Line>, whose: Whose, bytes: usize) -> Option<Place> {
        let mut places = self.places();
        let all = places.bytes.checked_add(bytes)?;
        if places.count >= self.count_max || all > self.bytes_max {
            return None;
        }
        (places.count, places.bytes) = (places.count + 1, all);
        let ticket = places.next;
        places.next = ticket.wrapping_add(1);
        places
            .lines
            .entry(whose.clone())
            .or_default()
            .push_back(ticket);
        Some(Place {
            line: Arc::clone(self),
            whose,
            ticket,
            bytes,
        })
    }

    /// Whether a client has somebody in line.
    pub(super) fn has(&self, whose: &Whose) -> bool {
        self.places().lines.contains_key(whose)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.places().count
    }

    /// Tells whenever somebody leaves a line.
    pub(super) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }
}

impl Place {
    /// Whether nobody of the same client is before it.
    pub(super) fn is_first(&self) -> bool {
        let places = self.line.places();
        let line = places.lines.get(&self.whose);
        line.and_then(VecDeque::front) == Some(&self.ticket)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.line.places();
        if let Some(line) = places.lines.get_mut(&self.whose) {
            line.retain(|ticket| *ticket != self.ticket);
            if line.is_empty() {
                places.lines.remove(&self.whose);
            }
        }
        places.count = places.count.saturating_sub(1);
        places.bytes = places.bytes.saturating_sub(self.bytes);
        drop(places);
        self.line
            .moved
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(name: &str) -> Whose {
        (true, name.to_owned())
    }

    #[test]
    fn each_client_goes_in_its_order_and_none_waits_for_another() {
        let line = Arc::new(Line::new(9, 9));
        let [first, second] = [1, 1].map(|bytes| line.enter(whose("a"), bytes).expect("room"));
        let other = line.enter(whose("b"), 1).expect("room");
        assert!(first.is_first() && other.is_first() && !second.is_first());
        let mut moved = line.moved();
        assert!(!moved.has_changed().expect("the line is there"));
        drop(first);
        assert!(moved.has_changed().expect("the line is there"));
        moved.mark_unchanged();
        assert!(second.is_first());
        drop((second, other));
        assert!(!line.has(&whose("a")) && line.len() == 0);
    }

    #[test]
    fn who_gives_up_in_the_middle_holds_nobody_up() {
        let line = Arc::new(Line::new(9, 9));
        let [first, middle, last] =
            [1, 1, 1].map(|bytes| line.enter(whose("a"), bytes).expect("room"));
        drop(middle);
        drop(first);
        assert!(last.is_first());
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let line = Arc::new(Line::new(2, 10));
        let first = line.enter(whose("a"), 6).expect("room");
        assert!(line.enter(whose("b"), 5).is_none());
        let second = line.enter(whose("b"), 4).expect("room");
        assert!(line.enter(whose("c"), 0).is_none());
        drop(first);
        assert!(line.enter(whose("c"), 7).is_none());
        assert!(line.enter(whose("c"), 6).is_some());
        drop(second);
        assert_eq!(line.len(), 0);
    }
}
