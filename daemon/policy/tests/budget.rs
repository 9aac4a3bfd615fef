//! What budgets promise, whatever is asked and whatever the clock does.
#![forbid(unsafe_code)]

use andon_policy::budget::{Budgets, Cap, Moment, Reservation, Rule, Spend, Who};
use proptest::prelude::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// The tenth of January 1970, at noon, and so long after it: the machine runs, and its clock is right.
fn after(ms: u64) -> Moment {
    Moment {
        wall_ms: 9 * DAY + 12 * HOUR + ms,
        ran_ms: 77 + ms,
        starts: 1,
    }
}

const ANYONE: Who<'static> = Who {
    client: "plc-7",
    task: None,
};

fn spend(tokens: u64) -> Spend {
    Spend { tokens, micros: 0 }
}

fn rules(cap: u64) -> Vec<Rule> {
    let day = Cap {
        tokens: Some(cap),
        micros: None,
    };
    vec![Rule {
        name: "all".to_owned(),
        day,
        ..Rule::default()
    }]
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody asks, and it may come to so much.
    Ask(u64),
    /// One of those under way ends, after that share of it.
    End(usize, u64),
    /// So much time passes.
    Wait(u64),
    /// The wall clock is set to this hour.
    Set(u64),
    /// The daemon dies and starts again.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u64..400).prop_map(Step::Ask),
        5 => (0_usize..16, 0_u64..=100).prop_map(|(which, share)| Step::End(which, share)),
        3 => (0_u64..6 * HOUR).prop_map(Step::Wait),
        1 => (0_u64..24 * 100).prop_map(Step::Set),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    /// Whatever the clock does within one start of the machine: in so much running no more is spent than the days in it have,
    /// and one request for each.
    #[test]
    fn no_more_is_spent_than_there_is_but_for_one_request(steps in proptest::collection::vec(step(), 1..400)) {
        const CAP: u64 = 1000;
        let (mut moment, began) = (after(0), after(0));
        let mut budgets = Budgets::new(rules(CAP), moment);
        let mut open: Vec<(Reservation, u64)> = Vec::new();
        let (mut spent, mut largest) = (0, 0);
        for step in steps {
            match step {
                Step::Ask(tokens) => {
                    if let Ok(held) = budgets.reserve(moment, ANYONE, spend(tokens)) {
                        open.push((held, tokens));
                        largest = largest.max(tokens);
                    }
                }
                Step::End(which, share) if !open.is_empty() => {
                    let (held, tokens) = open.swap_remove(which % open.len());
                    let tokens = tokens * share / 100;
                    budgets.settle(moment, &held, spend(tokens));
                    spent += tokens;
                }
                Step::End(..) => {}
                Step::Wait(ms) => {
                    moment.wall_ms += ms;
                    moment.ran_ms += ms;
                }
                Step::Set(hour) => moment.wall_ms = hour * HOUR,
                Step::Crash => {
                    budgets = Budgets::restored(rules(CAP), budgets.kept());
                    // What they came to nobody will know; they may have come to all of it.
                    spent += open.drain(..).map(|(_, tokens)| tokens).sum::<u64>();
                }
            }
            let days = (moment.ran_ms - began.ran_ms) / (23 * HOUR) + 2;
            prop_assert!(spent <= days * (CAP + largest), "{spent} in {days} days");
        }
    }

    /// On a clock that is right, no day has more than its cap but for one request.
    #[test]
    fn on_a_right_clock_each_day_has_its_own(
        asks in proptest::collection::vec((1_u64..300, 0_u64..2 * HOUR, 0_u64..=100), 1..300)
    ) {
        const CAP: u64 = 500;
        let mut budgets = Budgets::new(rules(CAP), after(0));
        let mut open = std::collections::VecDeque::new();
        let mut days = std::collections::BTreeMap::<u64, u64>::new();
        let (mut ms, mut refused) = (0, 0);
        for (tokens, wait_ms, share) in asks {
            ms += wait_ms;
            match budgets.reserve(after(ms), ANYONE, spend(tokens)) {
                Ok(held) => open.push_back((held, tokens)),
                Err(_) => refused += 1,
            }
            if open.len() > 3 || refused > 2 {
                refused = 0;
                if let Some((held, tokens)) = open.pop_front() {
                    let tokens = tokens * share / 100;
                    budgets.settle(after(ms), &held, spend(tokens));
                    *days.entry(after(ms).wall_ms / DAY).or_default() += tokens;
                }
            }
        }
        for (day, spent) in days {
            prop_assert!(spent < CAP + 300, "{spent} on day {day}");
        }
    }
}
