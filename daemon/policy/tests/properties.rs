//! Properties of the decisions that hold for any input.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

use andon_policy::admission::{Bounds, Decision, Demand, Load, Phase, RETRY_AFTER_MS, admit};
use andon_policy::queue::{self, BATCH_AGES_MS, Waiting};
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
fn waiting() -> impl Strategy<Value = Waiting> {
    let time = prop_oneof![0..4u64, Just(BATCH_AGES_MS), 0..TIME_MAX];
    (priority(), of(time.clone()), time, 0..4u64).prop_map(
        |(priority, deadline_ms, arrival_ms, ticket)| Waiting {
            priority,
            deadline_ms,
            arrival_ms,
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
    (
        0..12u32,
        any::<u32>(),
        any::<u32>(),
        0..12u32,
        of(any::<u32>()),
    )
        .prop_map(
            |(waiting, ahead, active_max, client_open, service_ms)| Load {
                phase: Phase::Serving,
                waiting,
                ahead,
                active_max,
                client_open,
                service_ms,
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
            Decision::Admit => {
                prop_assert!(load.waiting < bounds.waiting_max);
                prop_assert!(load.client_open < bounds.client_open_max);
                prop_assert!(demand.tokens_max.is_none_or(|tokens| tokens <= bounds.tokens_max));
                prop_assert!(demand.deadline_ms.is_none_or(|deadline| deadline > now_ms));
                if demand.priority != Priority::Alarm {
                    let left = bounds.waiting_max - load.waiting;
                    prop_assert!(left > bounds.waiting_kept_for_alarms);
                }
            }
            Decision::Refuse { code, reason, retry_after_ms } => {
                prop_assert_eq!(code, reason.code());
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
        if admit(&bounds, &load, &demand, now_ms) == Decision::Admit {
            prop_assert_eq!(admit(&bounds, &load, &alarm, now_ms), Decision::Admit);
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
    fn the_next_has_nothing_before_it(all in vec(waiting(), 0..12), now_ms in 0..TIME_MAX) {
        match queue::next(&all, now_ms) {
            None => prop_assert!(all.is_empty()),
            Some(index) => {
                prop_assert_eq!(queue::ahead(&all, &all[index], now_ms), 0);
                let alarms = all.iter().any(|one| one.priority == Priority::Alarm);
                prop_assert_eq!(all[index].priority == Priority::Alarm, alarms);
            }
        }
    }

    #[test]
    fn in_one_class_the_earlier_deadline_goes_first(
        one in waiting(), mut other in waiting(), now_ms in 0..TIME_MAX,
    ) {
        prop_assume!(one.priority != Priority::Batch);
        other.priority = one.priority;
        if let (Some(a), Some(b)) = (one.deadline_ms, other.deadline_ms)
            && a < b
        {
            prop_assert_eq!(one.order(&other, now_ms), Ordering::Less);
        }
    }

    #[test]
    fn aged_batch_work_goes_before_interactive_work_that_is_not_late(
        batch in waiting(), other in waiting(), now_ms in 0..TIME_MAX,
    ) {
        let batch = Waiting { priority: Priority::Batch, ..batch };
        let other = Waiting { priority: Priority::Interactive, ..other };
        let aged = batch.arrival_ms.checked_add(BATCH_AGES_MS).is_some_and(|at| at <= now_ms);
        let expected = if aged { Ordering::Less } else { Ordering::Greater };
        if !(aged && other.expired(now_ms)) {
            prop_assert_eq!(batch.order(&other, now_ms), expected);
        }
    }
}
