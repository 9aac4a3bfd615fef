//! Requests that wait until upstream can be had: a line for each client, so that what one asks goes in its order.
//!
//! The order is that of the numbers which requests are given when they come. So one that went up at once and has to wait after all,
//! since the link broke, stands before those that came after it.
//!
//! Invariant: no more requests, and no more bytes of them, wait than there is room for, and of those of a client exactly one is
//! the first.

use alloc::collections::{BTreeMap, BTreeSet};

/// A place in a line. It is given back by [`Line::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    number: u64,
    bytes: u64,
}

/// All lines, each of whom `W` names.
#[derive(Clone, Debug)]
pub struct Line<W> {
    count_max: usize,
    bytes_max: u64,
    lines: BTreeMap<W, BTreeSet<u64>>,
    count: usize,
    bytes: u64,
    next: u64,
}

impl<W: Ord> Line<W> {
    /// Lines in which nobody is, with room for so many requests and bytes in all.
    #[must_use]
    pub const fn new(count_max: usize, bytes_max: u64) -> Self {
        Self {
            count_max,
            bytes_max,
            lines: BTreeMap::new(),
            count: 0,
            bytes: 0,
            next: 0,
        }
    }

    /// The number of a request that comes now.
    pub const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The place of somebody's request with this number; `None` if there is no room, or it is in line already.
    pub fn enter(&mut self, whose: W, number: u64, bytes: u64) -> Option<Place> {
        let all = self.bytes.checked_add(bytes)?;
        if self.count >= self.count_max || all > self.bytes_max {
            return None;
        }
        if !self.lines.entry(whose).or_default().insert(number) {
            return None;
        }
        (self.count, self.bytes) = (self.count + 1, all);
        Some(Place { number, bytes })
    }

    /// Leaves a line, from wherever in it. What is not in it any more has no effect.
    pub fn leave(&mut self, whose: &W, place: Place) {
        let Some(line) = self.lines.get_mut(whose) else {
            return;
        };
        if !line.remove(&place.number) {
            return;
        }
        if line.is_empty() {
            self.lines.remove(whose);
        }
        self.count -= 1;
        self.bytes -= place.bytes;
    }

    /// Whether nobody is before this place in the line.
    #[must_use]
    pub fn is_first(&self, whose: &W, place: Place) -> bool {
        let line = self.lines.get(whose);
        line.and_then(BTreeSet::first) == Some(&place.number)
    }

    /// Whether somebody has a request in line.
    #[must_use]
    pub fn has(&self, whose: &W) -> bool {
        self.lines.contains_key(whose)
    }

    /// How many requests wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether none does.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_client_goes_in_its_order_and_none_waits_for_another() {
        let mut line = Line::new(9, 9);
        let mut enter = |whose| {
            let number = line.number();
            line.enter(whose, number, 1).expect("room")
        };
        let [first, middle, last] = ["a"; 3].map(&mut enter);
        let other = enter("b");
        assert!(line.is_first(&"a", first) && line.is_first(&"b", other));
        assert!(!line.is_first(&"a", middle));
        line.leave(&"a", middle);
        line.leave(&"a", first);
        assert!(line.is_first(&"a", last));
        line.leave(&"a", last);
        line.leave(&"a", last);
        assert!(!line.has(&"a") && line.has(&"b") && line.len() == 1);
    }

    #[test]
    fn who_came_first_stands_first_whenever_it_enters() {
        let mut line = Line::new(9, 9);
        let numbers = [line.number(), line.number()];
        let later = line.enter("a", numbers[1], 1).expect("room");
        assert!(line.is_first(&"a", later));
        let earlier = line.enter("a", numbers[0], 1).expect("room");
        assert!(line.is_first(&"a", earlier) && !line.is_first(&"a", later));
        assert_eq!(line.enter("a", numbers[0], 1), None);
    }

    proptest! {
        #[test]
        fn room_is_bounded_and_given_back(
            steps in proptest::collection::vec((0_u8..3, 0_u64..6, any::<bool>(), 0_usize..8), 1..200)
        ) {
            let mut line = Line::new(5, 12);
            let mut places: Vec<(u8, Place)> = Vec::new();
            for (whose, bytes, enters, which) in steps {
                if enters {
                    let all: u64 = places.iter().map(|(_, place)| place.bytes).sum();
                    let number = line.number();
                    let entered = line.enter(whose, number, bytes);
                    prop_assert_eq!(entered.is_some(), places.len() < 5 && all + bytes <= 12);
                    places.extend(entered.map(|place| (whose, place)));
                } else if !places.is_empty() {
                    let (whose, place) = places.remove(which % places.len());
                    line.leave(&whose, place);
                }
                prop_assert_eq!(line.len(), places.len());
                prop_assert_eq!(line.is_empty(), places.is_empty());
                for (at, (whose, place)) in places.iter().enumerate() {
                    let first = !places[..at].iter().any(|(other, _)| other == whose);
                    prop_assert_eq!(line.is_first(whose, *place), first);
                }
            }
        }
    }
}
