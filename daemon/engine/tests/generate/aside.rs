//! Generations that give their room to urgent ones: their answers are the same.

use andon_engine::generate::{
    Event, FinishReason, Forward as _, GenerationRequest, Generator, GeneratorOptions, StartError,
};
use andon_engine::sample::SamplingOptions;
use std::num::NonZero;

use crate::scripted::{
    A, Answers, B, C, CONTEXT, PAGE, Scripted, alone, chaotic, cycle, finish, request, scripted,
    scripted_with, step,
};

#[test]
fn an_answer_is_the_same_wherever_its_room_was_given_away() {
    // Its prompt takes three passes.
    let own = request(&[A, B, C, A, B, C, A], 8);
    let urgent = GenerationRequest {
        urgent: true,
        ..request(&[B, A], 6)
    };
    for seed in 0..3 {
        let mut own = own.clone();
        own.sampling.seed = seed;
        let same = alone(chaotic, own.clone());
        for (steps, again) in (0..10).flat_map(|steps| [(steps, false), (steps, true)]) {
            // There is room for the larger one, and nobody else.
            let mut generator = scripted(chaotic, (7usize + 8).div_ceil(PAGE));
            let pages = generator.executor().kv_tokens_free();
            let mut answers = Answers::new();
            let id = generator.start(own.clone()).expect("it fits");
            for _ in 0..steps {
                step(&mut generator, &mut answers);
            }
            let full = generator.start(urgent.clone());
            assert!(matches!(full, Err(StartError::KvFull { .. })));
            assert!(generator.kv_tokens_of(id) >= 15);
            assert!(generator.set_aside(id) && !generator.set_aside(id));
            assert_eq!(generator.kv_tokens_of(id), 0);
            assert_eq!(generator.executor().kv_tokens_free(), pages);
            let first = generator.start(urgent.clone()).expect("there is room now");
            assert!(!generator.resume(id), "there is none for it");
            while generator.active() > 1 {
                step(&mut generator, &mut answers);
            }
            assert!(generator.is_aside(id) && generator.resume(id));
            if again {
                // Also while it reads what it had.
                step(&mut generator, &mut answers);
                assert!(generator.set_aside(id) && generator.resume(id));
            }
            let progress = generator.progress(id);
            step(&mut generator, &mut answers);
            assert_ne!(generator.progress(id), progress);
            while generator.active() > 0 {
                step(&mut generator, &mut answers);
            }
            assert_eq!(answers[&id], same, "{seed} {steps} {again}");
            assert_eq!(answers[&first], alone(chaotic, urgent.clone()));
            assert_eq!(generator.executor().kv_tokens_free(), pages);
        }
    }
}

#[test]
fn answers_that_share_pages_have_none_to_give() {
    let mut generator = scripted(cycle, 64);
    let three = std::num::NonZero::new(3).expect("not 0");
    let group = generator.start_group(request(&[A], 4), three);
    let group: Vec<_> = group.expect("a start").collect();
    assert!(group.iter().all(|&id| !generator.set_aside(id)));
    let ended = finish(&mut generator);
    assert!(group.iter().all(|id| ended[id].text == "abc\u{FFFD}"));
    assert!(!generator.set_aside(group[0]), "there is none");
}

#[test]
fn what_is_aside_can_be_ended_and_leaves_what_is_kept_for_urgent_ones() {
    let options = GeneratorOptions {
        parked_max: 4,
        kv_tokens_for_urgent: 2 * PAGE,
        ..GeneratorOptions::default()
    };
    let mut generator = scripted_with(CONTEXT, cycle, 6, options);
    let first = generator.start(request(&[A; 6], 2)).expect("it fits");
    assert!(generator.set_aside(first));
    let second = generator.start(request(&[A; 6], 10)).expect("it fits");
    assert!(!generator.resume(first), "that room is for urgent ones");
    assert!(generator.set_aside(second) && generator.resume(first));
    assert!(generator.cancel(second));
    let mut ended = Vec::new();
    generator.end_cancelled(&mut |id, _| ended.push(id));
    assert_eq!(ended, [second]);
    assert_eq!(finish(&mut generator)[&first].ids.len(), 2);
    assert_eq!(generator.executor().kv_tokens_free(), 6 * PAGE);
}

/// A generator whose device fails after so many passes.
fn failing(passes: usize, falls_back: bool) -> Generator<Scripted> {
    let generator = scripted(chaotic, 40);
    generator.executor().fails_after.set(Some(passes));
    generator.executor().falls_back.set(falls_back);
    generator
}

#[test]
fn answers_go_on_where_a_device_fails() {
    let one = request(&[A, B, C, A, B, C, A], 8);
    let group = GenerationRequest {
        sampling: SamplingOptions {
            temperature: 1.0,
            seed: 3,
            ..SamplingOptions::default()
        },
        ..request(&[B, A, C, C, A], 6)
    };
    let run = |mut generator: Generator<Scripted>, parked: bool| {
        let mut answers = Answers::new();
        let id = generator.start(one.clone()).expect("it fits");
        let two = NonZero::new(2).expect("two");
        let choices = generator.start_group(group.clone(), two);
        assert_eq!(choices.expect("they fit").count(), 2);
        for _ in 0..3 {
            step(&mut generator, &mut answers);
        }
        if parked {
            assert!(generator.park(id));
            for _ in 0..4 {
                step(&mut generator, &mut answers);
            }
            assert!(generator.resume(id));
        }
        while generator.active() > 0 {
            step(&mut generator, &mut answers);
        }
        answers
    };
    for parked in [false, true] {
        let same = run(scripted(chaotic, 40), parked);
        assert_eq!(same.len(), 3);
        for passes in 0..14 {
            let answers = run(failing(passes, true), parked);
            assert_eq!(answers, same, "after {passes} passes, parked: {parked}");
        }
    }
}

#[test]
fn where_nothing_goes_on_for_a_device_answers_fail_by_its_name() {
    let mut generator = failing(2, false);
    let id = generator.start(request(&[A, B, C], 8)).expect("it fits");
    let mut failed = None;
    let stepped = loop {
        let stepped = generator.step(&mut |finished, event| {
            if let Event::Finished { reason, .. } = event {
                failed = Some((finished, reason));
            }
        });
        if stepped.is_err() || generator.active() == 0 {
            break stepped;
        }
    };
    let error = stepped.expect_err("the device failed").to_string();
    assert!(error.contains("the device that computes"), "{error}");
    assert_eq!(failed, Some((id, FinishReason::Failed(error))));
    assert_eq!(
        (generator.active(), generator.executor().kv_tokens_free()),
        (0, 40 * PAGE)
    );
}
