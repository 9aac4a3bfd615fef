//! Who computes next where several models share one machine.
//!
//! One model computes at a time, a pass of it after another, and between two passes another may come first: the one
//! whose requests are more urgent, and of equals the one whose last pass is longest ago. A model that is passed over
//! [`PASSED_MAX`] times comes first whatever it has, so that none starves.
//!
//! Invariant: of those that wait none is passed over more than [`PASSED_MAX`] times, and once for each other that has
//! waited as long.

use alloc::vec::Vec;

use andon_wire::Priority;

/// How often one that waits is passed over at most. Batch work then still makes one pass in seventeen.
pub const PASSED_MAX: u32 = 16;

/// Who wants to compute, among all that may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeatId(pub u32);

/// One that waits.
#[derive(Clone, Copy, Debug)]
struct Wish {
    seat: SeatId,
    priority: Priority,
    /// When its last turn was, as a number of turns.
    served: u64,
    passed: u32,
}

/// Those that wait for their turn, and how it goes round.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    wishes: Vec<Wish>,
    served: Vec<(SeatId, u64)>,
    count: u64,
}

impl Turns {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            wishes: Vec::new(),
            served: Vec::new(),
            count: 0,
        }
    }

    /// One wants to compute, or what it has for that became more or less urgent.
    pub fn wish(&mut self, seat: SeatId, priority: Priority) {
        if let Some(wish) = self.wishes.iter_mut().find(|wish| wish.seat == seat) {
            wish.priority = priority;
            return;
        }
        let served = self.served.iter().find(|(known, _)| *known == seat);
        self.wishes.push(Wish {
            seat,
            priority,
            served: served.map_or(0, |(_, at)| *at),
            passed: 0,
        });
    }

    /// One does not want to any more.
    pub fn withdraw(&mut self, seat: SeatId) {
        self.wishes.retain(|wish| wish.seat != seat);
    }

    /// One is gone for good.
    pub fn forget(&mut self, seat: SeatId) {
        self.withdraw(seat);
        self.served.retain(|(known, _)| *known != seat);
    }

    /// How many wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.wishes.len()
    }

    /// How urgent the most urgent is of those that wait.
    #[must_use]
    pub fn most_urgent(&self) -> Option<Priority> {
        let wishes = self.wishes.iter().map(|wish| wish.priority);
        wishes.min_by_key(|&priority| rank(priority))
    }

    /// Gives the turn to one of those that wait, if there is one.
    pub fn pass_on(&mut self) -> Option<SeatId> {
        let first = |wish: &Wish| {
            let overdue = wish.passed >= PASSED_MAX;
            (
                !overdue,
                if overdue { 0 } else { rank(wish.priority) },
                wish.served,
            )
        };
        let (at, _) = (0..)
            .zip(&self.wishes)
            .min_by_key(|(_, wish)| first(wish))?;
        let chosen = self.wishes.remove(at);
        for wish in &mut self.wishes {
            wish.passed = wish.passed.saturating_add(1);
        }
        self.count = self.count.saturating_add(1);
        match self
            .served
            .iter_mut()
            .find(|(seat, _)| *seat == chosen.seat)
        {
            Some((_, at)) => *at = self.count,
            None => self.served.push((chosen.seat, self.count)),
        }
        Some(chosen.seat)
    }
}

const fn rank(priority: Priority) -> u8 {
    match priority {
        Priority::Alarm => 0,
        Priority::Interactive => 1,
        Priority::Batch => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::{PASSED_MAX, SeatId, Turns};
    use alloc::vec::Vec;
    use andon_wire::Priority;

    /// Who gets the next turns if all of these go on and on.
    fn round(all: &[(u32, Priority)], turns: usize) -> Vec<u32> {
        let mut order = Turns::new();
        (0..turns)
            .filter_map(|_| {
                for &(seat, priority) in all {
                    order.wish(SeatId(seat), priority);
                }
                order.pass_on().map(|seat| seat.0)
            })
            .collect()
    }

    #[test]
    fn equals_take_turns() {
        let all = [1, 2, 3].map(|seat| (seat, Priority::Interactive));
        let order = round(&all, 9);
        assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn the_more_urgent_goes_first_and_none_starves() {
        let all = [
            (1, Priority::Batch),
            (2, Priority::Alarm),
            (3, Priority::Interactive),
        ];
        let order = round(&all, 1000);
        assert_eq!(order.first(), Some(&2));
        let count = |seat| order.iter().filter(|&&other| other == seat).count();
        assert!(count(2) > 850, "{}", count(2));
        for seat in [1, 3] {
            assert!(count(seat) > 50, "{seat}: {}", count(seat));
            let places = (0..).zip(&order).filter(|(_, other)| **other == seat);
            let places: Vec<usize> = places.map(|(at, _)| at).collect();
            let longest = places.windows(2).map(|pair| pair[1] - pair[0]).max();
            // The bound, and the one other that has waited as long.
            assert!(longest <= Some(PASSED_MAX as usize + 2), "{longest:?}");
        }
    }

    #[test]
    fn one_that_gives_up_is_not_waited_for() {
        let mut order = Turns::new();
        order.wish(SeatId(1), Priority::Batch);
        order.wish(SeatId(2), Priority::Batch);
        order.withdraw(SeatId(1));
        assert_eq!((order.waiting(), order.pass_on()), (1, Some(SeatId(2))));
        order.wish(SeatId(2), Priority::Batch);
        order.forget(SeatId(2));
        assert_eq!(order.pass_on(), None);
    }

    #[test]
    fn urgency_may_change_while_one_waits() {
        let mut order = Turns::new();
        order.wish(SeatId(1), Priority::Interactive);
        order.wish(SeatId(2), Priority::Batch);
        assert_eq!(order.most_urgent(), Some(Priority::Interactive));
        order.wish(SeatId(2), Priority::Alarm);
        assert_eq!(order.most_urgent(), Some(Priority::Alarm));
        assert_eq!(order.pass_on(), Some(SeatId(2)));
        assert_eq!(order.pass_on(), Some(SeatId(1)));
    }
}
