//! Guesses, right and wrong: they save passes and change nothing else.

use std::num::NonZero;
use std::sync::Arc;

use andon_engine::Executor;
use andon_engine::generate::{FinishReason, Forward, GenerationRequest, Generator};
use andon_engine::sample::SamplingOptions;
use andon_engine::speculate::{Corpus, Drafter, PassCosts, Sources, Wanted};
use proptest::prelude::*;

use crate::scripted::{
    A, Answer, END, PAGE, Script, Scripted, VOCABULARY, alone, chaotic, cycle, finish, reason,
    request, scripted, short,
};

/// What does not depend on guesses: text, tokens, log probabilities and the end.
fn said(answer: &Answer) -> (&str, &[u32], Vec<u32>, &FinishReason, [usize; 2]) {
    let (reason, usage) = answer.end.as_ref().expect("an end");
    (
        &answer.text,
        &answer.ids,
        answer.logprobs.iter().map(|bits| bits.to_bits()).collect(),
        reason,
        [usage.prompt_tokens, usage.completion_tokens],
    )
}

/// A generator that tries whatever is guessed.
fn eager(script: Script, pages: usize) -> Generator<Scripted> {
    let mut generator = scripted(script, pages);
    generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
    generator
}

#[test]
fn right_guesses_save_passes_and_are_counted() {
    let asked = request(&[A], 40);
    let mut generator = eager(cycle, 64);
    let sources = Sources {
        own: true,
        ..Sources::default()
    };
    let id = generator.start(GenerationRequest {
        sources,
        ..asked.clone()
    });
    let answers = finish(&mut generator);
    let answer = &answers[&id.expect("a start")];
    let plain = alone(cycle, asked);
    assert_eq!(said(answer), said(&plain));
    let (_, usage) = answer.end.as_ref().expect("an end");
    // The text repeats itself from the seventh token on; before, one token comes back without those around it.
    assert!(usage.accepted_tokens >= 20, "{usage:?}");
    assert!(usage.guessed_tokens - usage.accepted_tokens <= 1);
    let passes = generator.executor().passes.get();
    assert_eq!(passes, 40 - usage.accepted_tokens);
    assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
}

#[test]
fn guesses_take_no_page_that_another_needs() {
    let sources = Sources {
        own: true,
        ..Sources::default()
    };
    let limited = GenerationRequest {
        sources,
        ..request(&[A], 31)
    };
    let unlimited = GenerationRequest {
        tokens_max: None,
        ..limited.clone()
    };
    // Room for both to the end, and not one page more.
    let mut generator = eager(cycle, 16);
    let ids = [(); 2].map(|()| generator.start(limited.clone()).expect("a start"));
    let answers = finish(&mut generator);
    for id in ids {
        assert_eq!(reason(&answers[&id]), &FinishReason::Length);
        assert_eq!(answers[&id].ids.len(), 31);
    }
    // Too little room for an answer without a limit: it comes as far as it does without guesses.
    let mut plain = scripted(cycle, 5);
    let plain_id = plain.start(GenerationRequest {
        sources: Sources::default(),
        ..unlimited.clone()
    });
    let expected = finish(&mut plain);
    let mut generator = eager(cycle, 5);
    let id = generator.start(unlimited).expect("a start");
    let answers = finish(&mut generator);
    assert_eq!(
        said(&answers[&id]),
        said(&expected[&plain_id.expect("a start")])
    );
    assert_eq!(answers[&id].ids.len(), 5 * PAGE);
    let (_, usage) = answers[&id].end.as_ref().expect("an end");
    assert!(usage.accepted_tokens > 0, "guesses were tried");
}

/// A drafter that says what comes to its mind, tokens that do not exist and more than it was asked for included.
#[derive(Debug)]
struct Whimsical {
    said: Vec<u32>,
    /// What it lacks of every text.
    unread: usize,
}

impl Drafter for Whimsical {
    fn missing(&self, _: u64, text: &[u32]) -> Option<usize> {
        (!text.len().is_multiple_of(7)).then_some(self.unread)
    }
    fn read(&mut self, _: Option<&mut Executor>, _: u64, _: &[u32]) -> usize {
        self.unread = self.unread.saturating_sub(10);
        self.said.len().min(10)
    }
    fn draft(&mut self, _: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        for wanted in wanted.iter_mut() {
            let skipped = wanted.text.len() % self.said.len().max(1);
            let said = self.said.iter().skip(skipped);
            let unknown = VOCABULARY as u32 + 3;
            let said = said.map(|&token| if token == END { unknown } else { token });
            wanted.guesses.extend(said);
        }
        self.said.len()
    }
    fn forget(&mut self, _: u64) {}
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Guesses that are right, wrong, or right up to somewhere, with every option that looks back at the text.
    #[test]
    fn guesses_change_nothing(
        prompt in prop::collection::vec(0_u32..5, 1..12),
        tokens_max in 0_usize..60,
        seed in 0_u64..100,
        temperature in prop::sample::select(vec![0.0_f32, 0.7, 1.5]),
        penalties in prop::sample::select(vec![(1.0_f32, 0.0_f32), (1.3, 0.0), (1.0, 0.6), (1.2, -0.4)]),
        top_k in 0_u32..4,
        stop in prop::sample::select(vec![vec![], vec!["ca"], vec!["é", "bbb"]]),
        logprobs in prop::option::of(0_u8..3),
        ignore_end in any::<bool>(),
        script in prop::sample::select(vec![chaotic as Script, cycle, short]),
        own in any::<bool>(),
        wrong in prop::collection::vec((0_usize..60, 0_u32..6), 0..6),
        noise in prop::collection::vec(0_u32..6, 0..40),
        neighbours in 0_u32..3,
        drafter in 0_usize..4,
    ) {
        let (repeat_penalty, frequency_penalty) = penalties;
        let asked = GenerationRequest {
            sampling: SamplingOptions {
                temperature,
                top_k,
                seed,
                repeat_penalty,
                frequency_penalty,
                ..SamplingOptions::default()
            },
            stop: stop.into_iter().map(str::to_owned).collect(),
            logprobs,
            ignore_end,
            ..request(&prompt, tokens_max)
        };
        let count = NonZero::new(1 + neighbours).expect("at least one");
        let mut plain = scripted(script, 64);
        let expected_ids: Vec<_> = plain.start_group(asked.clone(), count).expect("a start").collect();
        let expected = finish(&mut plain);
        let corpus = Arc::new(Corpus::new(500));
        corpus.add(&prompt, &noise);
        for answer in expected.values() {
            let mut tokens = answer.ids.clone();
            for &(at, token) in &wrong {
                if let Some(place) = tokens.get_mut(at) {
                    *place = token;
                }
            }
            corpus.add(&prompt, &tokens);
        }
        let mut generator = eager(script, 64);
        if drafter > 0 {
            let said = noise.clone();
            generator.set_drafter(Box::new(Whimsical { said, unread: drafter * 40 - 40 }), 0.0);
        }
        let sources = Sources { own, corpus: Some(corpus), learns: false, model: drafter > 0 };
        let ids: Vec<_> = generator
            .start_group(GenerationRequest { sources, ..asked }, count)
            .expect("a start")
            .collect();
        let answers = finish(&mut generator);
        for (id, expected_id) in ids.iter().zip(&expected_ids) {
            prop_assert_eq!(said(&answers[id]), said(&expected[expected_id]));
        }
        prop_assert!(generator.executor().passes.get() <= plain.executor().passes.get());
        prop_assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
    }
}
