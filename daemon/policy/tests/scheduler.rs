//! What the scheduler decides, case by case; what holds in any world is `tests/sim`'s to find out.
#![forbid(unsafe_code)]

use andon_policy::admission::{Bounds, Phase, Reason, Refusal, Refuses};
use andon_policy::client::{ClientId, Rates};
use andon_policy::queue::patience_ms;
use andon_policy::rate::Rate;
use andon_policy::scheduler::{
    Arrival, Cancelled, Config, DUTY_MS_MAX, Decision, Expiry, HOLD_MS_MAX, Places, SLICE_MS,
    Scheduler, Size, Ticket,
};
use andon_policy::speed::Step;
use andon_policy::throttle::{Restraint, Throttle};
use andon_wire::Priority::{self, Alarm, Batch, Interactive};

const CONFIG: Config = Config {
    bounds: Bounds {
        waiting_max: 32,
        waiting_kept_for_alarms: 4,
        client_open_max: 32,
        tokens_max: 1_000,
    },
    places: Places {
        shared: 2,
        for_alarms: 1,
    },
    pass_tokens_max: 512,
    rates: Rates {
        requests: None,
        alarms: None,
        tokens: None,
    },
};

fn scheduler_of(config: Config) -> Scheduler {
    let mut scheduler = Scheduler::new(config, 0);
    scheduler.set_phase(Phase::Serving);
    scheduler
}

fn scheduler() -> Scheduler {
    scheduler_of(CONFIG)
}

fn arrival(priority: Priority) -> Arrival {
    Arrival {
        client: ClientId(0),
        priority,
        deadline_ms: None,
        tokens_max: None,
        choices: 1,
        rates: Rates::default(),
    }
}

const SIZE: Size = Size {
    prompt_tokens: 100,
    tokens_max: 100,
};

/// Hands a request over and prepares it.
fn ready(scheduler: &mut Scheduler, now_ms: u64, arrival: Arrival) -> Ticket {
    let ticket = scheduler.arrived(now_ms, &arrival).expect("taken in");
    assert_eq!(scheduler.prepare_next(now_ms, |_| true), Some(ticket));
    scheduler
        .prepared(now_ms, ticket, SIZE)
        .expect("can be met");
    ticket
}

fn decide(scheduler: &mut Scheduler, now_ms: u64) -> Vec<Decision> {
    let mut decisions = Vec::new();
    scheduler.decide(now_ms, &mut decisions);
    decisions
}

/// A pass in which the prompts of `read` were read, and what it took.
fn step(scheduler: &mut Scheduler, now_ms: u64, took_us: u64, read: &[Ticket]) {
    for &ticket in read {
        scheduler.prompt_read(now_ms, ticket, SIZE.prompt_tokens);
    }
    scheduler.stepped(
        now_ms,
        &Step {
            took_us,
            answers: 1,
            answer_tokens: 1,
            prompt_tokens: 0,
        },
    );
}

/// Has measured that a pass takes 10 ms, and a token of a prompt 1 ms.
fn measured(config: Config) -> Scheduler {
    let mut scheduler = scheduler_of(config);
    for (took_us, answers, prompt_tokens) in [(10_000, 1, 0), (10_000, 2, 0), (512_000, 0, 512)] {
        scheduler.stepped(
            0,
            &Step {
                took_us,
                answers,
                answer_tokens: answers,
                prompt_tokens,
            },
        );
    }
    scheduler
}

#[test]
fn an_alarm_is_read_alone_and_batch_work_waits_for_its_end() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    let other = ready(&mut scheduler, 0, arrival(Interactive));
    let started = decide(&mut scheduler, 0);
    assert_eq!(started, [Decision::Start(other), Decision::Start(batch)]);
    step(&mut scheduler, 10, 10_000, &[batch, other]);

    let alarm = ready(&mut scheduler, 11, arrival(Alarm));
    let decisions = decide(&mut scheduler, 11);
    let expected = [
        Decision::Park(batch),
        Decision::Park(other),
        Decision::Start(alarm),
    ];
    assert_eq!(decisions, expected);
    let mut readers = Vec::new();
    assert_eq!(scheduler.pass(11, &mut readers), 128);
    assert_eq!(readers, [alarm]);
    assert_eq!(decide(&mut scheduler, 12), []);

    step(&mut scheduler, 20, 8_000, &[alarm]);
    assert_eq!(decide(&mut scheduler, 20), [Decision::Resume(other)]);
    step(&mut scheduler, 30, 8_000, &[]);
    assert_eq!(decide(&mut scheduler, 30), []);
    assert!(scheduler.finished(40, alarm));
    assert_eq!(decide(&mut scheduler, 40), [Decision::Resume(batch)]);
}

#[test]
fn alarms_without_end_leave_half_of_the_time_to_others() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(batch)]);
    let alarm = ready(&mut scheduler, 0, arrival(Alarm));
    let (mut parked, mut parked_ms) = (false, 0);
    let (step_ms, all_ms) = (50, 20 * HOLD_MS_MAX);
    for now_ms in (0..all_ms).step_by(step_ms as usize) {
        for decision in decide(&mut scheduler, now_ms) {
            match decision {
                Decision::Park(ticket) if ticket == batch => parked = true,
                Decision::Resume(ticket) if ticket == batch => parked = false,
                Decision::Start(ticket) if ticket == alarm => {}
                other => panic!("{other:?}"),
            }
        }
        parked_ms += if parked { step_ms } else { 0 };
        assert!(parked_ms <= HOLD_MS_MAX + now_ms / 2 + step_ms, "{now_ms}");
        step(&mut scheduler, now_ms + step_ms, step_ms * 1000, &[]);
    }
    assert!(parked_ms >= all_ms / 2 - HOLD_MS_MAX, "{parked_ms}");
}

#[test]
fn interactive_work_takes_the_place_of_batch_work_where_there_is_no_other() {
    let mut scheduler = scheduler();
    let first = ready(&mut scheduler, 0, arrival(Batch));
    let second = ready(&mut scheduler, 0, arrival(Batch));
    let third = ready(&mut scheduler, 0, arrival(Batch));
    let started = [Decision::Start(first), Decision::Start(second)];
    assert_eq!(decide(&mut scheduler, 0), started);
    step(&mut scheduler, 5, 5_000, &[first, second]);
    let one = ready(&mut scheduler, 6, arrival(Interactive));
    // The younger gives way, and comes back before those that have not begun.
    assert_eq!(
        decide(&mut scheduler, 6),
        [Decision::Park(second), Decision::Start(one)]
    );
    scheduler.finished(9, one);
    assert_eq!(decide(&mut scheduler, 9), [Decision::Resume(second)]);
    scheduler.finished(10, second);
    assert_eq!(decide(&mut scheduler, 10), [Decision::Start(third)]);
}

#[test]
fn nobody_is_displaced_by_their_like() {
    let mut scheduler = scheduler();
    let running: Vec<Ticket> = (0..2)
        .map(|_| ready(&mut scheduler, 0, arrival(Interactive)))
        .collect();
    assert_eq!(decide(&mut scheduler, 0).len(), running.len());
    let urgent = Arrival {
        deadline_ms: Some(1_000),
        ..arrival(Interactive)
    };
    let later = Arrival {
        deadline_ms: Some(2_000),
        ..arrival(Interactive)
    };
    let later = ready(&mut scheduler, 1, later);
    let urgent = ready(&mut scheduler, 1, urgent);
    assert_eq!(decide(&mut scheduler, 1), []);
    scheduler.finished(2, running[0]);
    assert_eq!(decide(&mut scheduler, 2), [Decision::Start(urgent)]);
    scheduler.finished(2, running[1]);
    assert_eq!(decide(&mut scheduler, 3), [Decision::Start(later)]);
}

#[test]
fn batch_work_that_has_waited_long_has_its_turn_and_then_waits_again() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    let mut running = Vec::new();
    for now_ms in [0, 1] {
        running.push(ready(&mut scheduler, now_ms, arrival(Interactive)));
    }
    assert_eq!(decide(&mut scheduler, 1).len(), 2);
    let patience = patience_ms(Batch);
    // There is always interactive work.
    let next = ready(&mut scheduler, patience - 1, arrival(Interactive));
    assert_eq!(decide(&mut scheduler, patience - 1), []);
    scheduler.finished(patience, running[0]);
    assert_eq!(decide(&mut scheduler, patience), [Decision::Start(batch)]);
    // It is not displaced until it has computed for its slice.
    assert_eq!(decide(&mut scheduler, patience + 1), []);
    let mut now_ms = patience;
    while now_ms < patience + SLICE_MS {
        assert_eq!(decide(&mut scheduler, now_ms), []);
        now_ms += 100;
        step(&mut scheduler, now_ms, 100_000, &[batch]);
    }
    assert_eq!(
        decide(&mut scheduler, now_ms),
        [Decision::Park(batch), Decision::Start(next)]
    );
}

#[test]
fn alarms_take_every_place_but_one() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    let other = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0).len(), 2);
    step(&mut scheduler, 1, 1_000, &[batch, other]);
    let alarms: Vec<Ticket> = (0..3)
        .map(|_| ready(&mut scheduler, 2, arrival(Alarm)))
        .collect();
    let decisions = decide(&mut scheduler, 2);
    let expected = [
        Decision::Park(batch),
        Decision::Park(other),
        Decision::Start(alarms[0]),
        Decision::Start(alarms[1]),
    ];
    assert_eq!(decisions, expected);
    // Once others may take part again, there is one place for them.
    let mut now_ms = 2;
    let resumed = loop {
        step(&mut scheduler, now_ms, 100_000, &alarms[..2]);
        now_ms += 100;
        let decisions = decide(&mut scheduler, now_ms);
        if !decisions.is_empty() {
            break decisions;
        }
    };
    assert_eq!(resumed, [Decision::Resume(batch)]);
}

#[test]
fn alarms_that_wait_for_a_place_keep_nobody_out_of_the_last() {
    let mut scheduler = scheduler();
    let alarms: Vec<Ticket> = (0..4)
        .map(|_| ready(&mut scheduler, 0, arrival(Alarm)))
        .collect();
    let other = ready(&mut scheduler, 0, arrival(Interactive));
    assert_eq!(
        decide(&mut scheduler, 0),
        [Decision::Start(alarms[0]), Decision::Start(alarms[1])]
    );
    step(&mut scheduler, 1, 1_000, &alarms[..2]);
    assert_eq!(decide(&mut scheduler, 1), [Decision::Start(other)]);
    scheduler.finished(2, alarms[0]);
    assert_eq!(
        decide(&mut scheduler, 2),
        [Decision::Park(other), Decision::Start(alarms[2])]
    );
}

#[test]
fn who_was_served_least_goes_first_among_equals() {
    let config = Config {
        places: Places {
            shared: 1,
            for_alarms: 1,
        },
        ..CONFIG
    };
    let mut scheduler = scheduler_of(config);
    let of = |client| Arrival {
        client: ClientId(client),
        ..arrival(Batch)
    };
    // One asks for ten, and then another for three.
    for _ in 0..10 {
        ready(&mut scheduler, 0, of(1));
    }
    let theirs: Vec<Ticket> = (0..3).map(|_| ready(&mut scheduler, 1, of(2))).collect();
    let mut order = Vec::new();
    for round in 0..7 {
        let [Decision::Start(ticket)] = decide(&mut scheduler, 2 + round)[..] else {
            panic!("one is to start");
        };
        scheduler.decoded(2 + round, ticket, 10);
        scheduler.finished(2 + round, ticket);
        order.push(theirs.contains(&ticket));
    }
    assert_eq!(order, [false, true, false, true, false, true, false]);
}

#[test]
fn what_cannot_be_met_is_refused_at_once_and_what_no_longer_can_be_is_given_up() {
    let mut scheduler = measured(CONFIG);
    let with = |deadline_ms| Arrival {
        deadline_ms: Some(deadline_ms),
        ..arrival(Interactive)
    };
    // Reading 100 tokens takes 100 ms, a token 10 ms.
    let short = scheduler.arrived(0, &with(105)).expect("not known yet");
    assert_eq!(scheduler.prepare_next(0, |_| true), Some(short));
    let refused = scheduler.prepared(0, short, SIZE).expect_err("too short");
    assert_eq!(refused.reason, Reason::TooSlow);
    assert_eq!((scheduler.waiting(), scheduler.resident()), (0, 0));

    let running = [
        ready(&mut scheduler, 0, with(100_000)),
        ready(&mut scheduler, 0, with(100_000)),
    ];
    assert_eq!(decide(&mut scheduler, 0).len(), 2);
    // Both places are taken for at least 110 ms.
    let refused = scheduler
        .arrived(0, &with(110))
        .expect_err("its turn is too late");
    assert_eq!(refused.reason, Reason::DeadlineTooShort);
    assert_eq!(refused.retry_after_ms, Some(110));
    let waits = ready(&mut scheduler, 0, with(1_000));
    let alarm = Arrival {
        priority: Alarm,
        ..with(110)
    };
    let alarm = scheduler
        .arrived(0, &alarm)
        .expect("alarms are answered all the same");
    assert_eq!(decide(&mut scheduler, 109), []);
    let passed = Decision::Expire(alarm, Expiry::Passed);
    assert_eq!(decide(&mut scheduler, 110), [passed]);
    assert_eq!(decide(&mut scheduler, 889), []);
    let cannot = Decision::Expire(waits, Expiry::CannotBeMet);
    assert_eq!(decide(&mut scheduler, 891), [cannot]);
    assert_eq!(scheduler.waiting(), 0);
    let stopped = decide(&mut scheduler, 100_000);
    assert_eq!(stopped, running.map(Decision::Stop));
    assert!(!scheduler.finished(100_001, running[0]));
}

#[test]
fn a_place_is_free_as_soon_as_its_request_is_given_up() {
    let mut scheduler = scheduler();
    let running = [
        ready(&mut scheduler, 0, arrival(Batch)),
        ready(&mut scheduler, 0, arrival(Batch)),
    ];
    let waits = ready(&mut scheduler, 0, arrival(Batch));
    let next = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0).len(), 2);
    assert_eq!(scheduler.cancelled(1, running[0]), Cancelled::Resident);
    assert_eq!(scheduler.cancelled(1, waits), Cancelled::Waiting);
    assert_eq!(scheduler.cancelled(1, waits), Cancelled::Unknown);
    assert_eq!(decide(&mut scheduler, 1), [Decision::Start(next)]);
}

#[test]
fn what_finds_no_room_waits_for_an_end_and_only_alarms_go_before_it() {
    let mut scheduler = scheduler();
    let running = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(running)]);
    let large = ready(&mut scheduler, 1, arrival(Interactive));
    assert_eq!(decide(&mut scheduler, 1), [Decision::Start(large)]);
    scheduler.no_room(large);
    let small = ready(&mut scheduler, 2, arrival(Interactive));
    assert_eq!(decide(&mut scheduler, 2), []);
    let alarm = ready(&mut scheduler, 3, arrival(Alarm));
    assert_eq!(
        decide(&mut scheduler, 3),
        [Decision::Park(running), Decision::Start(alarm)]
    );
    // The end of anything lets it try again; and who gave way has its place where it finds none.
    scheduler.finished(4, alarm);
    let both = [Decision::Start(large), Decision::Start(small)];
    assert_eq!(decide(&mut scheduler, 4), both);
    scheduler.no_room(large);
    scheduler.no_room(small);
    assert_eq!(decide(&mut scheduler, 4), [Decision::Resume(running)]);
    scheduler.finished(5, running);
    assert_eq!(decide(&mut scheduler, 5), both);
    // So does the end of who waits for room.
    scheduler.no_room(large);
    scheduler.no_room(small);
    assert_eq!(scheduler.cancelled(6, large), Cancelled::Waiting);
    assert_eq!(decide(&mut scheduler, 6), [Decision::Start(small)]);
}

#[test]
fn an_alarm_that_finds_no_room_keeps_no_other_alarm_from_it() {
    let mut scheduler = scheduler();
    let large = ready(&mut scheduler, 0, arrival(Alarm));
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(large)]);
    scheduler.no_room(large);
    let small = ready(&mut scheduler, 1, arrival(Alarm));
    let other = ready(&mut scheduler, 1, arrival(Interactive));
    // What it lacks is not taken by anybody else.
    assert_eq!(decide(&mut scheduler, 1), [Decision::Start(small)]);
    assert_eq!(decide(&mut scheduler, 2), []);
    scheduler.prompt_read(3, small, 1);
    scheduler.finished(3, small);
    assert_eq!(decide(&mut scheduler, 3), [Decision::Start(large)]);
    scheduler.prompt_read(4, large, 1);
    assert_eq!(decide(&mut scheduler, 4), [Decision::Start(other)]);
}

#[test]
fn who_is_set_aside_for_an_alarm_goes_on_when_there_is_room_again() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(batch)]);
    scheduler.prompt_read(1, batch, 1);
    let alarm = ready(&mut scheduler, 1, arrival(Alarm));
    let starts = [Decision::Park(batch), Decision::Start(alarm)];
    assert_eq!(decide(&mut scheduler, 1), starts);
    scheduler.set_aside(batch);
    assert_eq!((scheduler.waiting(), scheduler.resident()), (0, 2));
    // Beside the alarm's answer there would be a place for it, but nothing has ended.
    scheduler.prompt_read(2, alarm, 1);
    let waits = ready(&mut scheduler, 2, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 2), []);
    scheduler.finished(3, alarm);
    assert_eq!(
        decide(&mut scheduler, 3),
        [Decision::Resume(batch), Decision::Start(waits)]
    );
    // There is not enough after all: it stays where it is, and who waits goes back.
    scheduler.no_room(batch);
    scheduler.no_room(waits);
    assert_eq!((scheduler.waiting(), scheduler.resident()), (1, 1));
    assert_eq!(decide(&mut scheduler, 4), []);
    scheduler.cancelled(5, waits);
    assert_eq!(decide(&mut scheduler, 5), [Decision::Resume(batch)]);
    // It reads before it answers.
    let mut readers = Vec::new();
    scheduler.pass(5, &mut readers);
    assert_eq!(readers, [batch]);
    scheduler.read_again(batch);
    scheduler.pass(6, &mut readers);
    assert_eq!(readers, []);
    scheduler.read_again(batch);
    assert!(scheduler.finished(7, batch));
}

#[test]
fn who_loses_what_it_had_reads_it_again_in_its_place() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(batch)]);
    scheduler.prompt_read(1, batch, 1);
    let waits = ready(&mut scheduler, 1, arrival(Batch));
    let mut readers = Vec::new();
    scheduler.pass(1, &mut readers);
    assert_eq!(readers, []);
    scheduler.lost(batch);
    scheduler.lost(waits);
    scheduler.pass(2, &mut readers);
    assert_eq!(readers, [batch], "one that waits has nothing");
    scheduler.read_again(batch);
    scheduler.pass(3, &mut readers);
    assert_eq!(readers, []);
    assert!(scheduler.finished(4, batch));
}

#[test]
fn answers_of_one_request_have_their_places_together() {
    let config = Config {
        places: Places {
            shared: 4,
            for_alarms: 1,
        },
        ..CONFIG
    };
    let mut scheduler = scheduler_of(config);
    let two = Arrival {
        choices: 2,
        ..arrival(Interactive)
    };
    let first = ready(&mut scheduler, 0, two);
    let three = Arrival { choices: 3, ..two };
    let second = ready(&mut scheduler, 0, three);
    let third = ready(&mut scheduler, 0, arrival(Interactive));
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    // Nothing begins before who goes first, also where it would fit.
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(first)]);
    scheduler.choice_ended(first);
    assert_eq!(decide(&mut scheduler, 1), [Decision::Start(second)]);
    scheduler.finished(2, first);
    assert_eq!(decide(&mut scheduler, 2), [Decision::Start(third)]);
    scheduler.finished(3, second);
    assert_eq!(decide(&mut scheduler, 3), [Decision::Start(batch)]);
}

#[test]
fn prompts_are_read_in_pieces_of_two_steps_while_others_decode() {
    let mut scheduler = measured(CONFIG);
    let first = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0).len(), 1);
    let mut readers = Vec::new();
    assert_eq!(scheduler.pass(0, &mut readers), 500);
    assert_eq!(readers, [first]);
    scheduler.prompt_read(1, first, 100);
    let second = ready(&mut scheduler, 1, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 1).len(), 1);
    assert_eq!(scheduler.pass(1, &mut readers), 20);
    assert_eq!(readers, [second]);
}

/// A scheduler of four places with two requests of batch work and two interactive ones that compute.
fn mixed() -> (Scheduler, [Ticket; 2], [Ticket; 2]) {
    let config = Config {
        places: Places {
            shared: 4,
            for_alarms: 1,
        },
        ..CONFIG
    };
    let mut scheduler = scheduler_of(config);
    let batch = [(); 2].map(|()| ready(&mut scheduler, 0, arrival(Batch)));
    let others = [(); 2].map(|()| ready(&mut scheduler, 0, arrival(Interactive)));
    assert_eq!(decide(&mut scheduler, 0).len(), 4);
    (scheduler, batch, others)
}

fn restraint(batch: Throttle, refuses: Refuses) -> Restraint {
    Restraint { batch, refuses }
}

#[test]
fn batch_work_that_is_held_waits_and_is_not_refused() {
    let (mut scheduler, batch, others) = mixed();
    scheduler.restrain(restraint(Throttle::Hold, Refuses::Nothing));
    assert_eq!(decide(&mut scheduler, 1), batch.map(Decision::Park));
    let late = ready(&mut scheduler, 2, arrival(Batch));
    let third = ready(&mut scheduler, 3, arrival(Interactive));
    assert_eq!(decide(&mut scheduler, 3), [Decision::Start(third)]);
    for other in others.into_iter().chain([third]) {
        scheduler.finished(4, other);
    }
    assert_eq!(decide(&mut scheduler, 4), []);
    assert!(!scheduler.computes() && scheduler.wake_ms().is_none());
    scheduler.restrain(Restraint::default());
    let [first, second] = batch.map(Decision::Resume);
    assert_eq!(
        decide(&mut scheduler, 5),
        [first, second, Decision::Start(late)]
    );
}

#[test]
fn batch_work_that_is_slow_computes_half_of_the_time() {
    let (mut scheduler, batch, others) = mixed();
    for other in others {
        scheduler.finished(0, other);
    }
    scheduler.restrain(restraint(Throttle::Slow, Refuses::Nothing));
    let (mut now_ms, mut computed_ms, mut rests) = (0, 0, 0);
    while now_ms < 60_000 {
        decide(&mut scheduler, now_ms);
        if scheduler.computes() {
            now_ms += 30;
            computed_ms += 30;
            let step = Step {
                took_us: 30_000,
                answers: 2,
                answer_tokens: 2,
                prompt_tokens: 0,
            };
            scheduler.stepped(now_ms, &step);
        } else {
            rests += 1;
            let wake_ms = scheduler.wake_ms().expect("it goes on");
            assert!(wake_ms > now_ms && wake_ms <= now_ms + DUTY_MS_MAX + 60);
            now_ms = wake_ms;
        }
    }
    assert!((29_000..=31_000).contains(&computed_ms), "{computed_ms} ms");
    assert!((25..=35).contains(&rests), "{rests} rests");
    assert!(scheduler.finished(now_ms, batch[0]));
}

#[test]
fn held_work_goes_on_slowly_where_others_wait_for_its_room() {
    let (mut scheduler, batch, _) = mixed();
    scheduler.restrain(restraint(Throttle::Hold, Refuses::Nothing));
    let third = ready(&mut scheduler, 1, arrival(Interactive));
    let [first, second] = batch.map(Decision::Park);
    assert_eq!(
        decide(&mut scheduler, 1),
        [first, second, Decision::Start(third)]
    );
    scheduler.no_room(third);
    assert_eq!(decide(&mut scheduler, 2), batch.map(Decision::Resume));
    scheduler.finished(3, batch[0]);
    let [_, parked] = batch;
    assert_eq!(
        decide(&mut scheduler, 3),
        [Decision::Park(parked), Decision::Start(third)]
    );
}

#[test]
fn while_memory_is_short_what_is_inside_does_not_begin() {
    let (mut scheduler, batch, others) = mixed();
    let waits = ready(&mut scheduler, 0, arrival(Interactive));
    scheduler.restrain(restraint(Throttle::Hold, Refuses::AllButAlarms));
    assert_eq!(decide(&mut scheduler, 1), batch.map(Decision::Park));
    for priority in [Batch, Interactive] {
        let refused = scheduler
            .arrived(1, &arrival(priority))
            .expect_err("refused");
        assert_eq!(refused.reason, Reason::Pressed);
    }
    let alarm = ready(&mut scheduler, 1, arrival(Alarm));
    let starts = decide(&mut scheduler, 1);
    assert!(starts.contains(&Decision::Start(alarm)) && !starts.contains(&Decision::Start(waits)));
    scheduler.prompt_read(2, alarm, 1);
    assert_eq!(decide(&mut scheduler, 2), others.map(Decision::Resume));
    scheduler.finished(3, alarm);
    scheduler.restrain(restraint(Throttle::None, Refuses::Nothing));
    let goes_on = decide(&mut scheduler, 4);
    assert!(goes_on.contains(&Decision::Start(waits)), "{goes_on:?}");
}

#[test]
fn a_client_is_held_to_its_rates() {
    let config = Config {
        rates: Rates {
            requests: Some(Rate::per_minute(2)),
            ..Rates::default()
        },
        ..CONFIG
    };
    let mut scheduler = scheduler_of(config);
    for _ in 0..2 {
        assert!(scheduler.arrived(0, &arrival(Batch)).is_ok());
    }
    let refused = scheduler.arrived(0, &arrival(Batch)).expect_err("too many");
    assert_eq!(refused.reason, Reason::RequestRate);
    assert_eq!(refused.retry_after_ms, Some(30_000));
    assert!(scheduler.arrived(0, &arrival(Alarm)).is_ok());
    let other = Arrival {
        client: ClientId(1),
        ..arrival(Batch)
    };
    assert!(scheduler.arrived(0, &other).is_ok());
    assert!(scheduler.arrived(30_000, &arrival(Batch)).is_ok());
}

#[test]
fn a_client_with_rates_of_its_own_is_held_to_these() {
    let config = Config {
        rates: Rates {
            requests: Some(Rate::per_minute(1)),
            ..Rates::default()
        },
        ..CONFIG
    };
    let mut scheduler = scheduler_of(config);
    let own = Arrival {
        rates: Rates {
            requests: Some(Rate::per_minute(3)),
            ..Rates::default()
        },
        ..arrival(Batch)
    };
    for _ in 0..3 {
        assert!(scheduler.arrived(0, &own).is_ok());
    }
    let refused = scheduler.arrived(0, &own).expect_err("too many");
    assert_eq!(refused.reason, Reason::RequestRate);
    assert_eq!(refused.retry_after_ms, Some(20_000));
    let other = Arrival {
        client: ClientId(1),
        ..arrival(Batch)
    };
    assert!(scheduler.arrived(0, &other).is_ok());
    assert!(scheduler.arrived(0, &other).is_err());
}

#[test]
fn what_waits_can_be_cleared_and_what_runs_goes_on() {
    let mut scheduler = scheduler();
    let all: Vec<Ticket> = (0..4)
        .map(|_| ready(&mut scheduler, 0, arrival(Batch)))
        .collect();
    assert_eq!(decide(&mut scheduler, 0).len(), 2);
    scheduler.set_phase(Phase::Draining);
    assert_eq!(scheduler.clear(1), all[2..]);
    let refused = scheduler.arrived(1, &arrival(Alarm)).expect_err("closed");
    assert_eq!(refused.reason, Reason::Draining);
    assert!(scheduler.finished(2, all[0]) && scheduler.finished(2, all[1]));
    assert_eq!((scheduler.waiting(), scheduler.resident()), (0, 0));
}

#[test]
fn whoever_gets_nothing_of_passes_has_waited() {
    let mut scheduler = scheduler();
    let batch = ready(&mut scheduler, 0, arrival(Batch));
    assert_eq!(decide(&mut scheduler, 0), [Decision::Start(batch)]);
    let mut readers = Vec::new();
    let mut now_ms = 0;
    let mut read_ms = None;
    // One prompt after the other takes all that a pass reads.
    while read_ms.is_none() && now_ms < 200_000 {
        let other = ready(&mut scheduler, now_ms, arrival(Interactive));
        assert_eq!(decide(&mut scheduler, now_ms), [Decision::Start(other)]);
        for _ in 0..5 {
            scheduler.pass(now_ms, &mut readers);
            let first = readers[0];
            now_ms += 1_000;
            if first == batch {
                read_ms = Some(now_ms);
            }
            scheduler.took_part(first);
            let step = Step {
                took_us: 1_000_000,
                answers: 0,
                answer_tokens: 0,
                prompt_tokens: 64,
            };
            scheduler.stepped(now_ms, &step);
        }
        scheduler.finished(now_ms, other);
        decide(&mut scheduler, now_ms);
    }
    assert!(read_ms.is_some_and(|ms| ms <= 70_000), "{read_ms:?}");
}

#[test]
fn a_machine_that_was_slow_once_is_tried_again() {
    let mut scheduler = scheduler();
    for (answers, prompt_tokens) in [(1, 0), (0, 64)] {
        let step = Step {
            took_us: 10_000_000,
            answers,
            answer_tokens: answers,
            prompt_tokens,
        };
        scheduler.stepped(0, &step);
    }
    let hurried = |scheduler: &mut Scheduler, now_ms: u64| {
        let arrival = Arrival {
            deadline_ms: Some(now_ms + 2_000),
            ..arrival(Interactive)
        };
        let ticket = scheduler.arrived(now_ms, &arrival).expect("taken in");
        assert_eq!(scheduler.prepare_next(now_ms, |_| true), Some(ticket));
        scheduler.prepared(now_ms, ticket, SIZE).map(|()| ticket)
    };
    let refused = |refusal: Refusal| refusal.reason == Reason::TooSlow;
    assert!(hurried(&mut scheduler, 1_000).is_err_and(refused));
    // One at a time, when nothing was computed for a while.
    let tried = hurried(&mut scheduler, 20_000).expect("tried");
    assert!(hurried(&mut scheduler, 20_000).is_err_and(refused));
    assert_eq!(decide(&mut scheduler, 20_000), [Decision::Start(tried)]);
    for (took_us, answers, prompt_tokens) in [(25_600, 0, 64), (5_000, 1, 0)] {
        let step = Step {
            took_us,
            answers,
            answer_tokens: answers,
            prompt_tokens,
        };
        scheduler.took_part(tried);
        scheduler.stepped(20_100, &step);
    }
    assert!(scheduler.finished(20_100, tried));
    assert!(hurried(&mut scheduler, 20_200).is_ok());
}

#[test]
fn a_client_with_much_open_may_still_raise_an_alarm() {
    let mut config = CONFIG;
    config.bounds.client_open_max = 2;
    let mut scheduler = scheduler_of(config);
    for _ in 0..2 {
        ready(&mut scheduler, 0, arrival(Batch));
    }
    let full = |refusal: Refusal| refusal.reason == Reason::ClientFull;
    assert!(scheduler.arrived(0, &arrival(Batch)).is_err_and(full));
    for _ in 0..4 {
        assert!(scheduler.arrived(0, &arrival(Alarm)).is_ok());
    }
    assert!(scheduler.arrived(0, &arrival(Alarm)).is_err_and(full));
}
