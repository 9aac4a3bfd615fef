//! Properties of routing that hold for any request in any moment.
#![forbid(unsafe_code)]

use andon_policy::route::{Decision, Facts, Policy, Purse, Rules, Share, Upstream, decide};
use proptest::option::of;
use proptest::prelude::*;

fn score() -> impl Strategy<Value = f32> {
    prop_oneof![6 => 0.0..=1.0f32, 1 => any::<f32>()]
}

fn purse() -> impl Strategy<Value = Purse> {
    prop_oneof![
        Just(Purse::Open),
        score().prop_map(Purse::Slope),
        Just(Purse::Shut)
    ]
}

prop_compose! {
    fn facts()(
        policy in prop::sample::select(Policy::ALL.to_vec()),
        may_leave in any::<bool>(),
        can_leave in any::<bool>(),
        upstream in prop::sample::select(vec![Upstream::Absent, Upstream::Down, Upstream::Busy, Upstream::Up]),
        as_good in score(),
        purse in purse(),
        waits in any::<bool>(),
        left_ms in of(0..20_000u64),
        upstream_ms in 0..10_000u64,
        local_ms in 0..10_000u64,
    ) -> Facts {
        Facts { policy, may_leave, can_leave, upstream, as_good, purse, waits, left_ms, upstream_ms, local_ms }
    }
}

prop_compose! {
    fn rules()(threshold in 0.0..=1.0f32, cascade in any::<bool>()) -> Rules {
        Rules { threshold, cascade }
    }
}

/// Whether bytes may leave by a decision, now or later.
fn may_go(decision: Decision) -> bool {
    matches!(
        decision,
        Decision::Cloud(_) | Decision::Cascade | Decision::Wait(_)
    )
}

proptest! {
    #[test]
    fn what_may_not_leave_never_does(facts in facts(), rules in rules()) {
        let stays = !facts.may_leave || !facts.can_leave || facts.policy == Policy::Local;
        if stays {
            prop_assert!(matches!(decide(&facts, &rules), Decision::Local(_)));
        }
        if facts.upstream == Upstream::Absent {
            prop_assert!(!may_go(decide(&facts, &rules)));
        }
    }

    #[test]
    fn only_who_insists_is_refused(facts in facts(), rules in rules()) {
        if let Decision::Refuse(_) = decide(&facts, &rules) {
            prop_assert_eq!(facts.policy, Policy::Cloud);
        }
    }

    #[test]
    fn nobody_is_asked_who_is_not_there_or_may_not_be_paid(facts in facts(), rules in rules()) {
        if let Decision::Cloud(_) | Decision::Cascade = decide(&facts, &rules) {
            prop_assert_eq!(facts.upstream, Upstream::Up);
            prop_assert_ne!(facts.purse, Purse::Shut);
        }
    }

    #[test]
    fn only_what_may_wait_waits_and_not_beyond_its_deadline(facts in facts(), rules in rules()) {
        if let Decision::Wait(_) = decide(&facts, &rules) {
            prop_assert!(facts.waits);
            prop_assert!(facts.left_ms.is_none_or(|left| left > facts.upstream_ms));
        }
    }

    #[test]
    fn a_harder_request_does_not_come_home(facts in facts(), rules in rules(), harder in 0.0..=1.0f32) {
        // Of what could go up now, less hope in the local answer never has it stay where more had it go.
        let facts = Facts { left_ms: None, ..facts };
        if let Decision::Cloud(_) = decide(&facts, &rules) {
            let as_good = if facts.as_good.is_finite() { facts.as_good.min(harder) } else { facts.as_good };
            let decision = decide(&Facts { as_good, ..facts }, &rules);
            prop_assert!(matches!(decision, Decision::Cloud(_)));
        }
    }

    #[test]
    fn a_share_comes_to_its_target_wherever_the_scores_lie(
        seed in any::<u64>(),
        target in 0.05..=0.95f32,
        low in 0.0..0.7f32,
        width in 0.2..0.3f32,
    ) {
        let mut state = seed | 1;
        let mut draw = || {
            // Xorshift: any spread of scores does.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut share = Share::new(0.5, Some(target));
        let (settling, counted) = (2_000, 4_000);
        let mut went = 0u32;
        for turn in 0..settling + counted {
            let hard = low + width * draw() < share.threshold();
            share.note(hard);
            prop_assert!((0.0..=1.0).contains(&share.threshold()));
            if hard && turn >= settling {
                went += 1;
            }
        }
        let share = went as f32 / counted as f32;
        prop_assert!((share - target).abs() < 0.03, "{share} of {target}");
    }
}
