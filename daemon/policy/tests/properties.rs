//! Properties of the decisions that hold for any input.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

use andon_policy::admission::{
    Bounds, Demand, Load, Phase, RETRY_AFTER_MS, Reason, Refuses, Throttled, admit,
};
use andon_policy::memory::{Budget, Held, Limits, Part, Reading};
use andon_policy::queue::{Waiting, patience_ms};
use andon_wire::Priority;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(Priority::ALL.to_vec())
}

/// No clock gets here, and what is far from overflow stays so.
const TIME_MAX: u64 = u64::MAX / 2;

// Few different times, so that ties are common.
fn time() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4u64,
        prop::sample::select(Priority::ALL.map(patience_ms).to_vec()),
        0..TIME_MAX
    ]
}

fn waiting() -> impl Strategy<Value = Waiting> {
    (priority(), of(time()), time(), 0..3u64, 0..4u64).prop_map(
        |(priority, deadline_ms, since_ms, served, ticket)| Waiting {
            priority,
            deadline_ms,
            since_ms,
            served,
            ticket,
        },
    )
}

fn bounds() -> impl Strategy<Value = Bounds> {
    (0..9u32, 0..9u32, 0..9u32, any::<u32>()).prop_map(
        |(waiting_max, waiting_kept_for_alarms, client_open_max, tokens_max)| Bounds {
            waiting_max,
            waiting_kept_for_alarms,
            client_open_max,
            tokens_max,
        },
    )
}

fn load() -> impl Strategy<Value = Load> {
    let throttled = (any::<u64>()).prop_map(|wait_ms| Throttled {
        reason: Reason::TokenRate,
        wait_ms,
    });
    (
        0..12u32,
        0..12u32,
        prop_oneof![3 => Just(None), 1 => throttled.prop_map(Some)],
        prop::sample::select(vec![
            Refuses::Nothing,
            Refuses::Batch,
            Refuses::AllButAlarms,
        ]),
        of(any::<u64>()),
        any::<u64>(),
    )
        .prop_map(
            |(waiting, client_open, throttled, refuses, wait_ms, turn_ms)| Load {
                phase: Phase::Serving,
                waiting,
                client_open,
                throttled,
                refuses,
                wait_ms,
                turn_ms,
            },
        )
}

fn demand() -> impl Strategy<Value = Demand> {
    (priority(), of(any::<u32>()), of(any::<u64>())).prop_map(
        |(priority, tokens_max, deadline_ms)| Demand {
            priority,
            tokens_max,
            deadline_ms,
        },
    )
}

proptest! {
    #[test]
    fn admission_keeps_its_bounds(
        bounds in bounds(), load in load(), demand in demand(), now_ms in 0..TIME_MAX,
    ) {
        match admit(&bounds, &load, &demand, now_ms) {
            Ok(()) => {
                prop_assert!(load.waiting < bounds.waiting_max);
                let beyond = match demand.priority {
                    Priority::Alarm => bounds.waiting_kept_for_alarms,
                    _ => 0,
                };
                prop_assert!(load.client_open < bounds.client_open_max + beyond);
                prop_assert!(load.throttled.is_none());
                prop_assert!(demand.tokens_max.is_none_or(|tokens| tokens <= bounds.tokens_max));
                prop_assert!(demand.deadline_ms.is_none_or(|deadline| deadline > now_ms));
                if demand.priority != Priority::Alarm {
                    let left = bounds.waiting_max - load.waiting;
                    prop_assert!(left > bounds.waiting_kept_for_alarms);
                }
            }
            Err(refusal) => {
                let code = refusal.reason.code();
                let retry_after_ms = refusal.retry_after_ms;
                prop_assert!(retry_after_ms.is_none_or(|ms| RETRY_AFTER_MS.contains(&ms)));
                prop_assert!(!code.may_retry() || retry_after_ms.is_some());
            }
        }
    }

    #[test]
    fn an_alarm_is_admitted_wherever_another_request_is(
        bounds in bounds(), load in load(), demand in demand(), now_ms in 0..TIME_MAX,
    ) {
        let alarm = Demand { priority: Priority::Alarm, ..demand };
        if admit(&bounds, &load, &demand, now_ms).is_ok() {
            prop_assert_eq!(admit(&bounds, &load, &alarm, now_ms), Ok(()));
        }
    }

    #[test]
    fn the_order_is_total(a in waiting(), b in waiting(), c in waiting(), now_ms in 0..TIME_MAX) {
        prop_assert_eq!(a.order(&b, now_ms), b.order(&a, now_ms).reverse());
        if a.order(&b, now_ms) != Ordering::Greater && b.order(&c, now_ms) != Ordering::Greater {
            prop_assert_ne!(a.order(&c, now_ms), Ordering::Greater);
        }
    }

    #[test]
    fn alarms_are_first(all in vec(waiting(), 1..12), now_ms in 0..TIME_MAX) {
        let first = all.iter().min_by(|a, b| a.order(b, now_ms)).expect("one");
        let alarms = all.iter().any(|one| one.priority == Priority::Alarm);
        prop_assert_eq!(first.priority == Priority::Alarm, alarms);
    }

    #[test]
    fn in_one_class_the_earlier_deadline_goes_first(
        one in waiting(), mut other in waiting(), now_ms in time(),
    ) {
        other.priority = one.priority;
        if let (Some(a), Some(b)) = (one.deadline_ms, other.deadline_ms)
            && a < b
            && !one.aged(now_ms)
            && !other.aged(now_ms)
        {
            prop_assert_eq!(one.order(&other, now_ms), Ordering::Less);
        }
    }

    #[test]
    fn who_was_served_least_is_first_among_equals(
        one in waiting(), mut other in waiting(), now_ms in time(),
    ) {
        other.priority = one.priority;
        other.deadline_ms = one.deadline_ms;
        let aged = one.aged(now_ms) || other.aged(now_ms);
        if one.served < other.served && !aged {
            prop_assert_eq!(one.order(&other, now_ms), Ordering::Less);
        }
    }

    #[test]
    fn aged_batch_work_goes_before_interactive_work_that_has_time(
        batch in waiting(), other in waiting(), now_ms in time(),
    ) {
        let batch = Waiting { priority: Priority::Batch, ..batch };
        let other = Waiting { priority: Priority::Interactive, ..other };
        if !other.aged(now_ms) && !other.expired(now_ms) {
            let expected = if batch.aged(now_ms) { Ordering::Less } else { Ordering::Greater };
            prop_assert_eq!(batch.order(&other, now_ms), expected);
        }
    }
}

/// What may happen to a budget.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Reserve(Part, Held, u64),
    Require(Part, Held, u64),
    /// The promise of this number, among those there are, is given back.
    GiveBack(usize),
    Take(usize),
    Read(Option<u64>, u64, u64),
}

fn part() -> impl Strategy<Value = Part> {
    prop::sample::select(Part::ALL.to_vec())
}

fn held() -> impl Strategy<Value = Held> {
    prop::sample::select(vec![Held::Mapped, Held::Private, Held::Device])
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..400u64, 1 => any::<u64>()]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (part(), held(), bytes()).prop_map(|(part, held, bytes)| Happens::Reserve(part, held, bytes)),
        2 => (part(), held(), bytes()).prop_map(|(part, held, bytes)| Happens::Require(part, held, bytes)),
        3 => any::<usize>().prop_map(Happens::GiveBack),
        1 => any::<usize>().prop_map(Happens::Take),
        2 => (of(bytes()), bytes(), 0..20_000u64)
            .prop_map(|(left, resident, ms)| Happens::Read(left, resident, ms)),
    ]
}

proptest! {
    #[test]
    fn promises_never_exceed_the_budget(
        bytes_max in of(0..2_000u64),
        reserve_bytes in 0..500u64,
        all in vec(happens(), 0..64),
    ) {
        let mut budget = Budget::new(Limits { bytes_max, reserve_bytes });
        let mut promises: Vec<(Part, Held, u64)> = Vec::new();
        let (mut now_ms, mut left) = (0, None);
        for happens in all {
            match happens {
                Happens::Reserve(part, held, bytes) => {
                    let could = budget.left();
                    let promised = budget.reserve(part, held, bytes);
                    if bytes < 1 << 50 {
                        prop_assert_eq!(promised.is_ok(), could.is_none_or(|could| bytes <= could));
                    }
                    if let Err(refusal) = promised {
                        prop_assert!(refusal.left < bytes);
                    } else {
                        promises.push((part, held, bytes));
                    }
                }
                Happens::Require(part, held, bytes) => {
                    if budget.require(part, held, bytes).is_ok() {
                        promises.push((part, held, bytes));
                    }
                }
                Happens::GiveBack(number) if !promises.is_empty() => {
                    let (part, held, bytes) = promises.swap_remove(number % promises.len());
                    budget.give_back(part, held, bytes);
                }
                Happens::GiveBack(_) => {}
                Happens::Take(number) => {
                    let mut private = promises.iter_mut().filter(|(_, held, _)| *held == Held::Private);
                    if let Some(promise) = private.nth(number % 4) {
                        prop_assert_eq!(budget.take_for_device(promise.2), promise.2);
                        promise.1 = Held::Device;
                    }
                }
                Happens::Read(left_bytes, resident_bytes, ms) => {
                    now_ms += ms;
                    let before = budget.shortage();
                    let reading = Reading { left_bytes, resident_bytes, stall_permille: None };
                    let changed = budget.read(reading, now_ms);
                    prop_assert_eq!(changed, budget.shortage() != before);
                    left = left_bytes;
                }
            }
            let sum = |part: Option<Part>| -> u64 {
                let counted = promises.iter().filter(|&&(of, _, _)| part.is_none_or(|part| part == of));
                counted.map(|&(_, _, bytes)| bytes).sum()
            };
            prop_assert_eq!(budget.promised(), sum(None));
            prop_assert!(bytes_max.is_none_or(|most| budget.promised() <= most));
            for part in Part::ALL {
                prop_assert_eq!(budget.part(part), sum(Some(part)));
            }
            // What could be promised is never more than the system has beside what it has to keep.
            if let (Some(left), Some(could)) = (left, budget.left()) {
                prop_assert!(could <= left.saturating_sub(reserve_bytes));
            }
        }
    }
}
