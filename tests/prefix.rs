//! Whatever was asked before, runs beside, is guessed, parked, cancelled or gives way: answers are those of a cache without
//! memory, one token at a time.
//!
//! A seeded schedule of requests that share beginnings, in a KV cache far too small for all of them. Some get guesses from
//! a corpus of answers that were changed here and there, so that some are right and some are not.

#![forbid(unsafe_code)]

#[path = "prefix/disk.rs"]
mod disk;

use andon_engine::generate::{
    Event, FinishReason, GenerationId, GenerationRequest, Generator, GeneratorOptions, Reading,
    StartError,
};
use andon_engine::kv::PAGE;
use andon_engine::sample::SamplingOptions;
use andon_engine::speculate::{Corpus, PassCosts, Sources};
use andon_engine::{Executor, ExecutorOptions, Model};
use andon_tests::tiny_model::TinyModel;
use std::collections::HashMap;
use std::num::NonZero;
use std::sync::Arc;

/// Pages of the cache; the longest request with three answers takes nine.
const PAGES: usize = 10;
const REQUESTS: usize = 120;

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

fn generator(model: &Arc<Model>, prefix_cache: bool) -> Generator {
    let options = ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: 128,
        kv_tokens_max: PAGES * PAGE,
        prefix_cache,
        ..ExecutorOptions::default()
    };
    let executor = Executor::new(Arc::clone(model), &options).expect("a valid executor");
    let options = GeneratorOptions {
        parallel_max: 5,
        parked_max: 4,
        prefill_chunk_tokens: 50,
        ..GeneratorOptions::default()
    };
    Generator::new(executor, options)
}

/// One of four texts, cut anywhere, so that requests share pages, parts of pages, or nothing.
fn request(random: &mut Random, vocabulary: usize) -> GenerationRequest {
    let text = random.below(4);
    let length = 1 + random.below(3 * PAGE);
    // Every second text begins as the one before it.
    let token = |at: usize| {
        let text = if at < PAGE { text / 2 * 2 } else { text };
        ((at * 7919 + text * 104_729 + 3) % vocabulary) as u32
    };
    GenerationRequest {
        prompt: (0..length).map(token).collect(),
        tokens_max: Some(1 + random.below(PAGE)),
        sampling: SamplingOptions {
            temperature: 15.0,
            seed: random.below(3) as u64,
            ..SamplingOptions::default()
        },
        logprobs: Some(0),
        ignore_end: true,
        ..GenerationRequest::default()
    }
}

/// Tokens with the bits of their log probabilities, and the end.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    said: Vec<(u32, u32)>,
    end: Option<FinishReason>,
    cached: usize,
    guessed: usize,
    accepted: usize,
}

fn step(generator: &mut Generator, answers: &mut HashMap<GenerationId, Answer>) {
    step_reading(generator, answers, 50);
}

fn step_reading(
    generator: &mut Generator,
    answers: &mut HashMap<GenerationId, Answer>,
    tokens_max: usize,
) {
    let reading = Reading {
        tokens_max,
        order: None,
    };
    let mut sink = |id, event: Event<'_>| {
        let answer = answers.entry(id).or_default();
        match event {
            Event::PromptDone { .. } => {}
            Event::Text { tokens, .. } => answer.said.extend(
                tokens
                    .iter()
                    .map(|token| (token.id, token.logprob.to_bits())),
            ),
            Event::Finished { reason, usage, .. } => {
                answer.end = Some(reason);
                answer.cached = usage.cached_tokens;
                answer.guessed = usage.guessed_tokens;
                answer.accepted = usage.accepted_tokens;
            }
        }
    };
    let stepped = generator.step_reading(reading, &mut sink, &|| false);
    stepped.expect("a step");
}

/// The answers of a request alone, without memory.
fn alone(model: &Arc<Model>, request: &GenerationRequest, count: NonZero<u32>) -> Vec<Answer> {
    let mut generator = generator(model, false);
    let ids = generator.start_group(request.clone(), count);
    let ids: Vec<GenerationId> = ids.expect("room for one").collect();
    let mut answers = HashMap::new();
    while generator.active() > 0 {
        step(&mut generator, &mut answers);
    }
    ids.iter()
        .map(|id| answers.remove(id).expect("an answer"))
        .collect()
}

/// Adds the answers of a request to the corpus, with some tokens changed.
fn teach(
    corpus: &Corpus,
    model: &Arc<Model>,
    request: &GenerationRequest,
    count: NonZero<u32>,
    random: &mut Random,
) {
    for answer in alone(model, request, count) {
        let mut tokens: Vec<u32> = answer.said.iter().map(|&(id, _)| id).collect();
        for token in &mut tokens {
            if random.below(10) == 0 {
                *token = random.below(model.info().vocabulary_count) as u32;
            }
        }
        corpus.add(&request.prompt, &tokens);
    }
}

#[test]
fn a_busy_cache_with_memory_changes_no_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    TinyModel::default().write(&path).expect("writable");
    let model = Arc::new(Model::load(&path).expect("a sound model"));
    let vocabulary = model.info().vocabulary_count;
    let mut random = Random(0x5EED);
    let mut generator = generator(&model, true);
    // So that guesses are tried that never would be.
    generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
    let corpus = Arc::new(Corpus::new(1 << 16));
    let mut answers: HashMap<GenerationId, Answer> = HashMap::new();
    let mut asked = Vec::new();
    let mut cancelled = Vec::new();
    let (mut parked, mut parkings) = (Vec::new(), 0);
    let mut next = None;
    while asked.len() < REQUESTS || generator.active() > 0 {
        if asked.len() < REQUESTS {
            let (request, count) = next.take().unwrap_or_else(|| {
                let count = NonZero::new(1 + random.below(3) as u32).expect("at least one");
                let mut request = request(&mut random, vocabulary);
                if random.below(3) > 0 {
                    teach(&corpus, &model, &request, count, &mut random);
                    request.sources = Sources {
                        own: random.below(2) == 0,
                        corpus: Some(Arc::clone(&corpus)),
                        learns: random.below(2) == 0,
                        ..Sources::default()
                    };
                }
                (request, count)
            });
            match generator.start_group(request.clone(), count) {
                Ok(ids) => asked.push((request, count, ids.collect::<Vec<_>>())),
                Err(StartError::Busy { .. } | StartError::KvFull { .. }) => {
                    assert!(generator.active() > 0, "a free cache has room for one");
                    next = Some((request, count));
                }
                Err(error) => panic!("{error}"),
            }
        }
        if random.below(12) == 0
            && let Some((_, _, ids)) = asked.last()
        {
            let id = ids[random.below(ids.len())];
            if generator.cancel(id) {
                cancelled.push(id);
            }
        }
        if let Some((_, _, ids)) = asked.iter().rev().nth(random.below(4)) {
            let id = ids[random.below(ids.len())];
            if generator.park(id) {
                parked.push(id);
                parkings += 1;
            }
        }
        // Someone always goes on.
        let over = |id: &GenerationId| answers.get(id).is_some_and(|answer| answer.end.is_some());
        parked.retain(|id| !over(id));
        if !parked.is_empty() && (random.below(3) == 0 || parked.len() == generator.active()) {
            let id = parked.swap_remove(random.below(parked.len()));
            if !generator.resume(id) {
                parked.push(id);
            }
        }
        step_reading(&mut generator, &mut answers, 1 + random.below(100));
    }
    assert_eq!(generator.executor().kv_tokens_free(), PAGES * PAGE);
    assert!(parkings > REQUESTS, "too few parked: {parkings}");
    let mut hits = 0;
    let (mut guessed, mut accepted) = (0, 0);
    for (request, count, ids) in &asked {
        for (id, expected) in ids.iter().zip(alone(&model, request, *count)) {
            let answer = &answers[id];
            hits += usize::from(answer.cached > 0);
            guessed += answer.guessed;
            accepted += answer.accepted;
            assert!(answer.cached < request.prompt.len());
            if cancelled.contains(id) {
                assert_eq!(answer.end, Some(FinishReason::Cancelled));
                assert_eq!(answer.said, expected.said[..answer.said.len()]);
            } else {
                assert_eq!((&answer.said, &answer.end), (&expected.said, &expected.end));
            }
        }
    }
    assert!(hits > REQUESTS / 4, "too few hits to mean much: {hits}");
    let enough = accepted > 1000 && guessed - accepted > 1000;
    assert!(enough, "{accepted} of {guessed} guesses right");
    assert!(
        cancelled.len() > 2,
        "too few cancelled: {}",
        cancelled.len()
    );
}

#[test]
fn what_guesses_filled_is_found_by_what_follows_the_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    TinyModel::default().write(&path).expect("writable");
    let model = Arc::new(Model::load(&path).expect("a sound model"));
    // The answer without its last token fills the page.
    let asked = GenerationRequest {
        prompt: (1..=PAGE as u32 - 9).collect(),
        tokens_max: Some(10),
        ignore_end: true,
        logprobs: Some(0),
        ..GenerationRequest::default()
    };
    let expected = alone(&model, &asked, NonZero::<u32>::MIN).remove(0);
    let answer: Vec<u32> = expected.said.iter().map(|&(id, _)| id).collect();
    let corpus = Arc::new(Corpus::new(100));
    corpus.add(&asked.prompt, &answer);
    for guesses in [false, true] {
        let mut generator = generator(&model, true);
        generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
        let mut answers = HashMap::new();
        let mut ask = |request: GenerationRequest| {
            let id = generator.start(request).expect("room for one");
            while generator.active() > 0 {
                step(&mut generator, &mut answers);
            }
            answers.remove(&id).expect("an answer")
        };
        let mut first = asked.clone();
        first.sources.corpus = guesses.then(|| Arc::clone(&corpus));
        let first = ask(first);
        assert_eq!(first.said, expected.said);
        assert_eq!(first.accepted > 0, guesses);
        let prompt = [&asked.prompt[..], &answer, &[1]].concat();
        let next = ask(GenerationRequest {
            prompt,
            ..asked.clone()
        });
        assert_eq!(next.cached, PAGE);
    }
}
