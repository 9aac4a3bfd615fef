//! The generator over a scripted model: text, limits, failures, and that neighbours change nothing.

#![forbid(unsafe_code)]

#[path = "generate/aside.rs"]
mod aside;
#[path = "generate/guesses.rs"]
mod guesses;
#[path = "generate/scripted.rs"]
mod scripted;
mod support;

use std::num::NonZero;

use andon_engine::generate::{
    Event, FinishReason, Forward, GenerationId, GenerationRequest, Generator, GeneratorOptions,
    Reading, STOP_COUNT_MAX, StartError, Usage,
};
use andon_engine::sample::{LogitBias, SamplingError, SamplingOptions};
use scripted::{
    A, Answers, B, C, CONTEXT, FIRST_HALF, PAGE, SECOND_HALF, Script, Scripted, VOCABULARY, alone,
    chaotic, cycle, finish, reason, request, scripted, scripted_with, short, step, step_unless,
};

#[test]
fn text_comes_in_whole_characters_and_stops_at_the_limit() {
    let answer = alone(cycle, request(&[A], 7));
    assert_eq!(answer.text, "abcéab");
    assert_eq!(answer.pieces, ["a", "b", "c", "é", "a", "b"]);
    assert_eq!(answer.ids, [A, B, C, FIRST_HALF, SECOND_HALF, A, B]);
    let usage = Usage {
        prompt_tokens: 1,
        cached_tokens: 0,
        completion_tokens: 7,
        ..Usage::default()
    };
    assert_eq!(answer.end, Some((FinishReason::Length, usage)));
    assert_eq!(answer.prompt_tokens, Some(1));
    assert_eq!(alone(cycle, request(&[A], 4)).text, "abc\u{FFFD}");
}

#[test]
fn the_end_token_ends_the_answer_unless_ignored() {
    let answer = alone(short, request(&[A], 10));
    assert_eq!(
        (answer.text.as_str(), reason(&answer)),
        ("ab", &FinishReason::Stop)
    );
    let ignoring = GenerationRequest {
        ignore_end: true,
        ..request(&[A], 5)
    };
    let answer = alone(short, ignoring);
    assert_eq!(
        (answer.text.as_str(), reason(&answer)),
        ("abé", &FinishReason::Length)
    );
}

#[test]
fn a_stop_string_across_tokens_is_held_back_and_left_out() {
    let stopping = |stop: &[&str]| GenerationRequest {
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        ..request(&[A], 12)
    };
    let answer = alone(cycle, stopping(&["céa"]));
    assert_eq!(
        (answer.text.as_str(), reason(&answer)),
        ("ab", &FinishReason::Stop)
    );
    assert_eq!(answer.ids, [A, B], "tokens of the stop string are left out");
    assert_eq!(
        answer.end.expect("an end").1.completion_tokens,
        6,
        "but were computed"
    );
    // Held back and let go again; and what is held at the end is delivered.
    let answer = alone(cycle, stopping(&["cb", "éabcéb"]));
    assert_eq!(
        (answer.text.as_str(), reason(&answer)),
        ("abcéabcéab", &FinishReason::Length)
    );
    assert_eq!(answer.ids.len(), 12);
}

#[test]
fn the_context_is_the_last_limit() {
    let open = GenerationRequest {
        tokens_max: None,
        ..request(&[A], 0)
    };
    let answer = alone(cycle, open);
    let (reason, usage) = answer.end.expect("an end");
    assert_eq!(
        (reason, usage.completion_tokens),
        (FinishReason::Length, CONTEXT - 1)
    );
}

#[test]
fn no_tokens_at_all_only_reads_the_prompt() {
    let answer = alone(cycle, request(&[A; 8], 0));
    assert_eq!(answer.prompt_tokens, Some(8));
    assert_eq!(
        (answer.text.as_str(), reason(&answer)),
        ("", &FinishReason::Length)
    );
}

#[test]
fn neighbours_change_nothing() {
    let requests: Vec<GenerationRequest> = (0..12_u32)
        .map(|index| GenerationRequest {
            sampling: SamplingOptions {
                temperature: 0.3 * (index % 4) as f32,
                top_k: index % 3 * 2,
                frequency_penalty: 0.1 * (index % 2) as f32,
                seed: u64::from(index),
                ..SamplingOptions::default()
            },
            logprobs: (index % 2 == 0).then_some(2),
            stop: vec!["abab".to_owned(), "cc".to_owned()],
            ..request(
                &(0..=index).map(|at| at % 5).collect::<Vec<_>>(),
                6 + index as usize,
            )
        })
        .collect();
    let mut generator = scripted(chaotic, 256);
    let mut answers = Answers::new();
    let mut ids = Vec::new();
    let mut waiting = requests.iter();
    let mut next = waiting.next();
    while next.is_some() || generator.active() > 0 {
        // A new one at every other step, as long as there is room.
        if let Some(request) = next {
            match generator.start(request.clone()) {
                Ok(id) => {
                    ids.push(id);
                    next = waiting.next();
                }
                Err(error) => assert_eq!(error, StartError::Busy { active: 4 }),
            }
        }
        step(&mut generator, &mut answers);
        if generator.active() > 0 {
            step(&mut generator, &mut answers);
        }
    }
    for (request, id) in requests.iter().zip(ids) {
        assert_eq!(answers[&id], alone(chaotic, request.clone()));
        assert_eq!(answers[&id].logprobs.is_empty(), request.logprobs.is_none());
    }
}

#[test]
fn prompts_are_read_in_pieces_beside_answers() {
    let mut generator = scripted(cycle, 64);
    let mut answers = Answers::new();
    let first = generator.start(request(&[A], 20)).expect("a start");
    step(&mut generator, &mut answers);
    let second = generator.start(request(&[A; 7], 1)).expect("a start");
    for read in [None, None, Some(7)] {
        step(&mut generator, &mut answers);
        assert_eq!(
            answers.get(&second).and_then(|answer| answer.prompt_tokens),
            read
        );
    }
    // Four steps, four tokens; the last is half a character and waits for the other half.
    assert_eq!(answers[&first].ids, [A, B, C]);
}

#[test]
fn cancelling_works_in_every_state_and_frees_pages() {
    for steps in 0..5 {
        let mut generator = scripted(cycle, 64);
        let mut answers = Answers::new();
        let id = generator.start(request(&[A; 7], 20)).expect("a start");
        for _ in 0..steps {
            step(&mut generator, &mut answers);
        }
        assert!(generator.cancel(id));
        assert!(!generator.cancel(id));
        let passes = generator.executor().passes.get();
        step(&mut generator, &mut answers);
        assert_eq!(
            generator.executor().passes.get(),
            passes,
            "no more work for it"
        );
        assert_eq!(reason(&answers[&id]), &FinishReason::Cancelled);
        assert_eq!(generator.active(), 0);
        assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
        assert!(!generator.cancel(id));
    }
}

#[test]
fn an_urgent_prompt_is_read_first_and_an_interrupted_pass_changes_nothing() {
    let mut generator = scripted(cycle, 64);
    let mut answers = Answers::new();
    let long = generator.start(request(&[A; 12], 4)).expect("a start");
    step(&mut generator, &mut answers);
    let passes = generator.executor().passes.get();
    step_unless(&mut generator, &mut answers, true);
    assert_eq!(generator.executor().passes.get(), passes + 1);
    assert!(answers.is_empty(), "nothing happened");
    let request_of_five = GenerationRequest {
        urgent: true,
        ..request(&[A; 5], 4)
    };
    let urgent = generator.start(request_of_five.clone()).expect("a start");
    // Its prompt takes two passes, which nothing interrupts.
    for _ in 0..2 {
        step_unless(&mut generator, &mut answers, true);
    }
    assert_eq!(answers[&urgent].ids.len(), 1);
    assert!(!answers.contains_key(&long), "its prompt waits");
    while generator.active() > 0 {
        step(&mut generator, &mut answers);
    }
    assert_eq!(answers[&urgent], alone(cycle, request_of_five));
    assert_eq!(answers[&long], alone(cycle, request(&[A; 12], 4)));
}

#[test]
fn a_parked_generation_stands_still_and_goes_on_as_if_nothing_had_been() {
    let requests = || (1..4).map(|count| request(&[A, B, C][..count], 6));
    for parked_after in 0..6 {
        let mut generator = scripted(chaotic, 64);
        let mut answers = Answers::new();
        let ids: Vec<GenerationId> = requests()
            .map(|request| generator.start(request).expect("a start"))
            .collect();
        for _ in 0..parked_after {
            step(&mut generator, &mut answers);
        }
        assert!(generator.park(ids[1]));
        assert!(!generator.park(ids[1]));
        let before = answers.remove(&ids[1]);
        for _ in 0..3 {
            step(&mut generator, &mut answers);
        }
        assert!(!answers.contains_key(&ids[1]), "it stands still");
        answers.extend(before.map(|before| (ids[1], before)));
        assert!(generator.resume(ids[1]));
        assert!(!generator.resume(ids[1]));
        while generator.active() > 0 {
            step(&mut generator, &mut answers);
        }
        for (id, request) in ids.iter().zip(requests()) {
            assert_eq!(answers[id], alone(chaotic, request));
        }
    }
}

#[test]
fn parked_generations_take_no_places_and_no_passes() {
    let mut generator = scripted(cycle, 64);
    let mut answers = Answers::new();
    let mut ids = Vec::new();
    for _ in 0..2 {
        for _ in 0..4 {
            ids.push(generator.start(request(&[A], 3)).expect("a start"));
        }
        assert_eq!(
            generator.start(request(&[A], 3)),
            Err(StartError::Busy { active: ids.len() })
        );
        assert!(ids.iter().rev().take(4).all(|&id| generator.park(id)));
    }
    // Those that run and those that are parked have their bounds.
    assert_eq!(
        generator.start(request(&[A], 3)),
        Err(StartError::Busy { active: 8 })
    );
    let passes = generator.executor().passes.get();
    step(&mut generator, &mut answers);
    assert_eq!(generator.executor().passes.get(), passes);
    assert!(ids[..4].iter().all(|&id| generator.resume(id)));
    assert!(!generator.resume(ids[4]), "there is no place for it");
    // A parked one can be cancelled, at once.
    assert!(generator.cancel(ids[7]));
    let mut ended = None;
    generator.end_cancelled(&mut |id, _| ended = Some(id));
    assert_eq!(ended, Some(ids[7]));
    step(&mut generator, &mut answers);
    assert_eq!(generator.last_pass().prompt_tokens, 3);
    assert_eq!(answers.len(), 3);
    step(&mut generator, &mut answers);
    let last = generator.last_pass();
    assert_eq!((last.prompt_tokens, last.answering), (1, 3));
    for _ in 0..2 {
        step(&mut generator, &mut answers);
    }
    assert_eq!(generator.active(), 3);
    assert!(ids[4..7].iter().all(|&id| generator.resume(id)));
    let rest = finish(&mut generator);
    assert!(
        rest.values()
            .all(|answer| *answer == alone(cycle, request(&[A], 3)))
    );
    assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
}

#[test]
fn prompts_are_read_in_the_order_that_is_said() {
    let mut generator = scripted(cycle, 64);
    let ids: Vec<GenerationId> = (0..3)
        .map(|_| generator.start(request(&[A; 3], 1)).expect("a start"))
        .collect();
    let mut order = Vec::new();
    for asked in [
        vec![ids[2], ids[0]],
        vec![ids[2], ids[0]],
        vec![],
        ids.clone(),
    ] {
        let reading = Reading {
            tokens_max: 3,
            order: Some(&asked),
        };
        let mut sink = |id, event: Event<'_>| {
            if let Event::PromptDone { .. } = event {
                order.push(id);
            }
        };
        let stepped = generator.step_reading(reading, &mut sink, &|| false);
        stepped.expect("a step");
    }
    assert_eq!(order, [ids[2], ids[0], ids[1]]);
}

#[test]
fn room_is_kept_for_urgent_requests() {
    let options = GeneratorOptions {
        kv_tokens_for_urgent: 2 * PAGE,
        ..GeneratorOptions::default()
    };
    let mut generator = scripted_with(CONTEXT, cycle, 6, options);
    let full = |needed, free| {
        Err(StartError::KvFull {
            tokens_needed: needed * PAGE,
            tokens_free: free * PAGE,
        })
    };
    // What would never fit beside that room has it.
    let large = request(&[A; 10], 10);
    assert!(generator.start(large.clone()).is_ok());
    assert_eq!(generator.start(request(&[A], 3)), full(1, 0));
    finish(&mut generator);
    let first = generator.start(request(&[A; 10], 6));
    assert!(first.is_ok());
    assert_eq!(generator.start(request(&[A], 3)), full(1, 0));
    let urgent = GenerationRequest {
        urgent: true,
        ..request(&[A; 4], 4)
    };
    assert!(generator.start(urgent.clone()).is_ok());
    assert_eq!(generator.start(urgent), full(2, 0));
}

#[test]
fn a_large_request_starts_whatever_is_known_of_its_prompt() {
    let options = GeneratorOptions {
        kv_tokens_for_urgent: 2 * PAGE,
        ..GeneratorOptions::default()
    };
    for known in 0..5 {
        let mut generator = scripted_with(CONTEXT, cycle, 6, options);
        generator.executor().known.set(known * PAGE);
        let large = request(&[A; 21], 2);
        let id = generator.start(large.clone()).expect("it fits");
        assert_eq!(finish(&mut generator)[&id].text, alone(cycle, large).text);
        // Beside another it leaves the room that is kept.
        assert!(generator.start(request(&[A; 5], 3)).is_ok());
        let another = generator.start(request(&[A; 9], 7));
        assert!(matches!(another, Err(StartError::KvFull { .. })), "{known}");
    }
}

#[test]
fn whoever_interrupts_all_the_time_stops_nobody() {
    let mut generator = scripted(cycle, 64);
    let mut answers = Answers::new();
    let id = generator.start(request(&[A; 12], 4)).expect("a start");
    while generator.active() > 0 {
        step_unless(&mut generator, &mut answers, true);
        assert!(generator.executor().passes.get() < 100, "it gets on");
    }
    assert_eq!(answers[&id], alone(cycle, request(&[A; 12], 4)));
}

#[test]
fn a_full_cache_ends_the_unpromised_and_spares_the_promised() {
    let mut generator = scripted(cycle, 6);
    let open = GenerationRequest {
        tokens_max: None,
        ..request(&[A], 0)
    };
    let open = generator.start(open).expect("a start");
    let promised = generator.start(request(&[A], 15)).expect("a start");
    let refused = generator.start(request(&[A], 15));
    assert_eq!(
        refused,
        Err(StartError::KvFull {
            tokens_needed: 16,
            tokens_free: 4
        })
    );
    let answers = finish(&mut generator);
    assert!(matches!(reason(&answers[&open]), FinishReason::Failed(_)));
    assert!(!answers[&open].text.is_empty());
    assert_eq!(answers[&promised], alone(cycle, request(&[A], 15)));
    assert_eq!(generator.executor().kv_tokens_free(), 6 * PAGE);
}

#[test]
fn bad_logits_end_their_generation_alone() {
    let script: Script = |history| {
        if history[0] == B && history.len() == 3 {
            vec![f32::NAN; VOCABULARY]
        } else {
            cycle(history)
        }
    };
    let mut generator = scripted(script, 64);
    let good = generator.start(request(&[A], 6)).expect("a start");
    let bad = generator.start(request(&[B], 6)).expect("a start");
    let answers = finish(&mut generator);
    assert_eq!(reason(&answers[&good]), &FinishReason::Length);
    assert!(
        matches!(reason(&answers[&bad]), FinishReason::Failed(why) if why.contains("logit of token 0"))
    );
}

#[test]
fn requests_are_checked_at_the_start() {
    let error = |request: GenerationRequest| {
        scripted(cycle, 64)
            .start(request)
            .expect_err("a request to refuse")
    };
    let base = request(&[A], 1);
    assert_eq!(error(request(&[], 1)), StartError::EmptyPrompt);
    let (tokens, context) = (CONTEXT, CONTEXT);
    assert_eq!(
        error(request(&[A; CONTEXT], 1)),
        StartError::PromptTooLong { tokens, context }
    );
    let (index, id, vocabulary_count) = (1, 6, VOCABULARY);
    assert_eq!(
        error(request(&[A, 6], 1)),
        StartError::UnknownToken {
            index,
            id,
            vocabulary_count
        }
    );
    let stops = |stop: Vec<String>| GenerationRequest {
        stop,
        ..base.clone()
    };
    let count = STOP_COUNT_MAX + 1;
    assert_eq!(
        error(stops(vec!["x".to_owned(); count])),
        StartError::TooManyStops { count }
    );
    assert_eq!(
        error(stops(vec!["x".repeat(257)])),
        StartError::StopTooLong {
            index: 0,
            bytes: 257
        }
    );
    assert_eq!(
        error(stops(vec!["x".to_owned(), String::new()])),
        StartError::EmptyStop { index: 1 }
    );
    let logprobs = GenerationRequest {
        logprobs: Some(21),
        ..base.clone()
    };
    assert_eq!(error(logprobs), StartError::TooManyLogprobs { top: 21 });
    let sampling = SamplingOptions {
        top_p: f32::NAN,
        ..SamplingOptions::default()
    };
    let field = "top_p";
    assert_eq!(
        error(GenerationRequest { sampling, ..base }),
        StartError::InvalidSampling(SamplingError::NotANumber { field })
    );
}

fn group(
    generator: &mut Generator<Scripted>,
    request: &GenerationRequest,
    count: u32,
) -> Vec<GenerationId> {
    let count = NonZero::new(count).expect("at least one");
    let ids = generator.start_group(request.clone(), count);
    ids.expect("a start").collect()
}

fn drawn(prompt: &[u32], tokens_max: usize) -> GenerationRequest {
    GenerationRequest {
        sampling: SamplingOptions {
            temperature: 1.0,
            seed: 5,
            ..SamplingOptions::default()
        },
        logprobs: Some(1),
        ..request(prompt, tokens_max)
    }
}

#[test]
fn choices_read_their_prompt_once_and_are_what_each_would_be_alone() {
    for length in [1, 3, 4, 7, 8] {
        let prompt: Vec<u32> = (0..length).map(|at| at % 5).collect();
        let asked = drawn(&prompt, 9);
        let mut generator = scripted(chaotic, 64);
        let ids = group(&mut generator, &asked, 3);
        let answers = finish(&mut generator);
        for (choice, id) in (0..).zip(&ids) {
            let mut alone_asked = asked.clone();
            alone_asked.sampling.choice = choice;
            let mut expected = alone(chaotic, alone_asked);
            if choice > 0 {
                expected.prompt_tokens = None;
            }
            assert_eq!(answers[id], expected, "prompt of {length}, choice {choice}");
        }
        assert_ne!(answers[&ids[0]].ids, answers[&ids[1]].ids);
        let passes = length.div_ceil(3) as usize + 8;
        assert_eq!(generator.executor().passes.get(), passes);
        assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
    }
}

#[test]
fn choices_are_promised_no_more_pages_than_there_are() {
    // A prompt of two and a half pages, answers to the end of the fourth: 4 + 2 + 2.
    let asked = drawn(&[A; 10], 6);
    let count = NonZero::new(3).expect("three");
    let refused = scripted(chaotic, 7).start_group(asked.clone(), count);
    assert_eq!(
        refused.err(),
        Some(StartError::KvFull {
            tokens_needed: 8 * PAGE,
            tokens_free: 7 * PAGE
        })
    );
    let mut generator = scripted(chaotic, 8);
    let ids = group(&mut generator, &asked, 3);
    let mut answers = Answers::new();
    while generator.active() > 0 {
        step(&mut generator, &mut answers);
        // Nothing is left for others at any time.
        if generator.active() == 3 {
            assert!(matches!(
                generator.start(request(&[A], 1)),
                Err(StartError::KvFull { tokens_free: 0, .. })
            ));
        }
    }
    for id in ids {
        assert_eq!(reason(&answers[&id]), &FinishReason::Length);
    }
    let four = NonZero::new(5).expect("five");
    let refused = generator.start_group(asked, four).err();
    assert_eq!(refused, Some(StartError::Busy { active: 0 }));
}

#[test]
fn when_the_reader_of_a_shared_prompt_ends_another_reads_on() {
    let asked = drawn(&[A, B, C, A, B, C, A, B], 4);
    for steps in 0..4 {
        let mut generator = scripted(chaotic, 64);
        let mut answers = Answers::new();
        let ids = group(&mut generator, &asked, 3);
        for _ in 0..steps {
            step(&mut generator, &mut answers);
        }
        assert!(generator.cancel(ids[0]));
        while generator.active() > 0 {
            step(&mut generator, &mut answers);
        }
        assert_eq!(reason(&answers[&ids[0]]), &FinishReason::Cancelled);
        for (choice, id) in (1..).zip(&ids[1..]) {
            let mut alone_asked = asked.clone();
            alone_asked.sampling.choice = choice;
            let expected = alone(chaotic, alone_asked);
            assert_eq!(answers[id].text, expected.text, "after {steps} steps");
            assert_eq!(answers[id].end, expected.end);
        }
        assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
    }
}

#[test]
fn a_bias_forces_a_token_and_must_name_known_ones() {
    let biased = |id, value| GenerationRequest {
        bias: LogitBias::new(vec![(id, value)]).expect("a valid bias"),
        ..request(&[A], 4)
    };
    assert_eq!(alone(chaotic, biased(C, 100.0)).text, "cccc");
    let (id, vocabulary_count) = (6, VOCABULARY);
    assert_eq!(
        scripted(cycle, 64).start(biased(6, 1.0)),
        Err(StartError::UnknownBias {
            id,
            vocabulary_count
        })
    );
}
