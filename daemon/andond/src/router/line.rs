//! The places of requests that wait until upstream can be had; their order is [`andon_policy::line`]'s affair.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use andon_policy::line;
use tokio::sync::watch;

/// Whose line it is: whether a client of the broker, and its name.
pub(super) type Whose = (bool, String);

/// All lines.
#[derive(Debug)]
pub(super) struct Line {
    lines: Mutex<line::Line<Whose>>,
    /// Changes whenever somebody leaves.
    moved: watch::Sender<u64>,
}

/// A place in a line, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    whose: Whose,
    place: line::Place,
}

impl Line {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Line {
        let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        Line {
            lines: Mutex::new(line::Line::new(count_max, bytes_max)),
            moved: watch::Sender::new(0),
        }
    }

    fn lines(&self) -> MutexGuard<'_, line::Line<Whose>> {
        // Every critical section leaves them whole.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a request that comes now.
    pub(super) fn number(&self) -> u64 {
        self.lines().number()
    }

    /// The place in a client's line of its request with this number; `None` if there is no room.
    pub(super) fn enter(
        self: &Arc<Line>,
        whose: Whose,
        number: u64,
        bytes: usize,
    ) -> Option<Place> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let place = self.lines().enter(whose.clone(), number, bytes)?;
        Some(Place {
            line: Arc::clone(self),
            whose,
            place,
        })
    }

    /// Whether a client has somebody in line.
    pub(super) fn has(&self, whose: &Whose) -> bool {
        self.lines().has(whose)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lines().len()
    }

    /// Tells whenever somebody leaves a line.
    pub(super) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }
}

impl Place {
    /// Whether nobody of the same client is before it.
    pub(super) fn is_first(&self) -> bool {
        self.line.lines().is_first(&self.whose, self.place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.lines().leave(&self.whose, self.place);
        self.line
            .moved
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_when_it_is_dropped_and_that_is_told() {
        let line = Arc::new(Line::new(2, 9));
        let whose = || (true, "a".to_owned());
        let [one, two, three] = [(); 3].map(|()| line.number());
        let first = line.enter(whose(), one, 1).expect("room");
        let second = line.enter(whose(), two, 1).expect("room");
        assert!(line.enter(whose(), three, 1).is_none());
        assert!(first.is_first() && !second.is_first());
        let moved = line.moved();
        assert!(!moved.has_changed().expect("the line is there"));
        drop(first);
        assert!(moved.has_changed().expect("the line is there"));
        assert!(second.is_first() && line.has(&whose()));
        drop(second);
        assert!(!line.has(&whose()) && line.len() == 0);
    }
}
