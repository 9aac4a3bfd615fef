//! The generator over a scripted model: text, limits, failures, and that neighbours change nothing.

#![forbid(unsafe_code)]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::rc::Rc;
use std::sync::Arc;

use andon_engine::generate::{
    Event, FinishReason, Forward, GenerationId, GenerationRequest, Generator, GeneratorOptions,
    PassError, STOP_COUNT_MAX, StartError, Usage,
};
use andon_engine::gguf::Gguf;
use andon_engine::sample::{LogitBias, SamplingError, SamplingOptions};
use andon_engine::speculate::{Corpus, Drafter, PassCosts, Sources, Wanted};
use andon_engine::tokenizer::Tokenizer;
use andon_engine::{Chunk, Executor, LogitsFor};
use proptest::prelude::*;
use support::Writer;

const A: u32 = 0;
const B: u32 = 1;
const C: u32 = 2;
/// The two bytes of `é`.
const FIRST_HALF: u32 = 3;
const SECOND_HALF: u32 = 4;
const END: u32 = 5;
const VOCABULARY: usize = 6;
const CONTEXT: usize = 64;
const PAGE: usize = 4;

/// Logits from the tokens so far.
type Script = fn(&[u32]) -> Vec<f32>;

struct Scripted {
    tokenizer: Tokenizer,
    pages_free: Rc<Cell<usize>>,
    script: Script,
    passes: Rc<Cell<usize>>,
}

struct Pages {
    tokens: Vec<u32>,
    held: usize,
    /// The pages of a prompt that several hold.
    shared: RefCell<Option<Rc<Shared>>>,
    pages_free: Rc<Cell<usize>>,
}

/// Pages that are freed with the last holder.
struct Shared {
    count: usize,
    pages_free: Rc<Cell<usize>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pages_free.set(self.pages_free.get() + self.count);
    }
}

impl Pages {
    fn share(&self, count: usize) -> Rc<Shared> {
        let mut shared = self.shared.borrow_mut();
        let shared = shared.get_or_insert_with(|| {
            Rc::new(Shared {
                count,
                pages_free: Rc::clone(&self.pages_free),
            })
        });
        assert_eq!(shared.count, count);
        Rc::clone(shared)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let shared = self
            .shared
            .borrow()
            .as_ref()
            .map_or(0, |shared| shared.count);
        self.pages_free
            .set(self.pages_free.get() + self.held - shared);
    }
}

impl Forward for Scripted {
    type Sequence = Pages;

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    fn vocabulary_count(&self) -> usize {
        VOCABULARY
    }
    fn context_tokens_max(&self) -> usize {
        CONTEXT
    }
    fn batch_tokens_max(&self) -> usize {
        16
    }
    fn kv_page_tokens(&self) -> usize {
        PAGE
    }
    fn kv_tokens_free(&self) -> usize {
        self.pages_free.get() * PAGE
    }
    fn sequence(&self, _prompt: &[u32]) -> (Pages, usize) {
        let pages = Pages {
            tokens: Vec::new(),
            held: 0,
            shared: RefCell::new(None),
            pages_free: Rc::clone(&self.pages_free),
        };
        (pages, 0)
    }
    fn fork(&mut self, sequence: &Pages) -> Option<Pages> {
        // Full pages are freed with the last that shares them.
        let full = sequence.tokens.len() / PAGE;
        let begun = usize::from(!sequence.tokens.len().is_multiple_of(PAGE));
        let left = self.pages_free.get().checked_sub(begun)?;
        self.pages_free.set(left);
        let shared = sequence.share(full);
        Some(Pages {
            tokens: sequence.tokens.clone(),
            held: full + begun,
            shared: RefCell::new(Some(shared)),
            pages_free: Rc::clone(&self.pages_free),
        })
    }
    fn keep(&mut self, sequence: &mut Pages, tokens: usize) {
        sequence.tokens.truncate(tokens);
        let held = sequence.tokens.len().div_ceil(PAGE);
        self.pages_free
            .set(self.pages_free.get() + sequence.held - held);
        sequence.held = held;
    }
    fn pass(
        &mut self,
        parts: &mut [Chunk<'_, Pages>],
        interrupted: &dyn Fn() -> bool,
        row: &mut dyn FnMut(&[f32]),
    ) -> Result<(), PassError> {
        self.passes.set(self.passes.get() + 1);
        if interrupted() {
            return Err(PassError::Interrupted);
        }
        let after = |part: &Chunk<'_, Pages>| {
            (part.sequence.tokens.len() + part.tokens.len()).div_ceil(PAGE)
        };
        let needed: usize = parts
            .iter()
            .map(|part| after(part) - part.sequence.held)
            .sum();
        assert!(parts.iter().map(|part| part.tokens.len()).sum::<usize>() <= 16);
        let left = self.pages_free.get().checked_sub(needed);
        self.pages_free.set(left.ok_or(PassError::KvFull)?);
        for part in parts {
            assert!(!part.tokens.is_empty());
            part.sequence.held = after(part);
            let rows = match part.logits {
                LogitsFor::None => 0,
                LogitsFor::Guesses(count) => count + 1,
                LogitsFor::Last => 1,
                LogitsFor::All => part.tokens.len(),
            };
            for (index, &token) in part.tokens.iter().enumerate() {
                part.sequence.tokens.push(token);
                if index + rows >= part.tokens.len() {
                    row(&(self.script)(&part.sequence.tokens));
                }
            }
        }
        Ok(())
    }
}

fn scripted(script: Script, pages: usize) -> Generator<Scripted> {
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs(
            "tokenizer.ggml.tokens",
            &["a", "b", "c", "Ã", "©", "<|end|>"],
        )
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 3])
        .strs::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.eos_token_id", END);
    let bytes = writer.finish();
    let tokenizer =
        Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("a file")).expect("a tokenizer");
    let forward = Scripted {
        tokenizer,
        pages_free: Rc::new(Cell::new(pages)),
        script,
        passes: Rc::new(Cell::new(0)),
    };
    let options = GeneratorOptions {
        parallel_max: 4,
        prefill_chunk_tokens: 3,
    };
    Generator::new(forward, options)
}

/// Logits that make `token` certain.
fn certain(token: u32) -> Vec<f32> {
    let mut logits = vec![0.0; VOCABULARY];
    logits[token as usize] = 100.0;
    logits
}

/// After a prompt of one token: the answer `a b c é a b c é …`.
fn cycle(history: &[u32]) -> Vec<f32> {
    certain([A, B, C, FIRST_HALF, SECOND_HALF][(history.len() - 1) % 5])
}

/// As `cycle`, ending after two tokens.
fn short(history: &[u32]) -> Vec<f32> {
    if history.len() == 3 {
        certain(END)
    } else {
        cycle(history)
    }
}

/// Logits that depend on every token before them; the end token is out of reach.
fn chaotic(history: &[u32]) -> Vec<f32> {
    let mut state = 17_u32;
    for &token in history {
        state = (state ^ token)
            .wrapping_mul(0x9E37_79B1)
            .rotate_left(13)
            .wrapping_add(1);
    }
    let mut logits: Vec<f32> = (0..VOCABULARY as u32)
        .map(|id| ((state.wrapping_mul(2 * id + 1) >> 24) as f32) / 64.0)
        .collect();
    logits[END as usize] = -100.0;
    logits
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    pieces: Vec<String>,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    prompt_tokens: Option<usize>,
    end: Option<(FinishReason, Usage)>,
}

type Answers = BTreeMap<GenerationId, Answer>;

fn step(generator: &mut Generator<Scripted>, answers: &mut Answers) {
    step_unless(generator, answers, false);
}

fn step_unless(generator: &mut Generator<Scripted>, answers: &mut Answers, interrupted: bool) {
    let mut sink = |id, event: Event<'_>| {
        let answer = answers.entry(id).or_default();
        assert!(answer.end.is_none(), "nothing follows the end");
        match event {
            Event::PromptDone { prompt_tokens, .. } => answer.prompt_tokens = Some(prompt_tokens),
            Event::Text { text, ids, tokens } => {
                assert!(!text.is_empty() || !ids.is_empty());
                answer.text.push_str(text);
                answer.pieces.push(text.to_owned());
                answer.ids.extend(ids);
                answer
                    .logprobs
                    .extend(tokens.iter().map(|token| token.logprob));
            }
            Event::Finished { reason, usage, .. } => answer.end = Some((reason, usage)),
        }
    };
    let stepped = generator.step_unless(&mut sink, &|| interrupted);
    stepped.expect("a step");
}

fn finish(generator: &mut Generator<Scripted>) -> Answers {
    let mut answers = Answers::new();
    while generator.active() > 0 {
        step(generator, &mut answers);
    }
    answers
}

fn alone(script: Script, request: GenerationRequest) -> Answer {
    let mut generator = scripted(script, 64);
    let id = generator.start(request).expect("a start");
    let answer = finish(&mut generator).remove(&id).expect("an answer");
    assert_eq!(
        generator.executor().kv_tokens_free(),
        64 * PAGE,
        "pages are returned"
    );
    answer
}

fn request(prompt: &[u32], tokens_max: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.to_vec(),
        tokens_max: Some(tokens_max),
        ..GenerationRequest::default()
    }
}

fn reason(answer: &Answer) -> &FinishReason {
    &answer.end.as_ref().expect("an end").0
}

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
