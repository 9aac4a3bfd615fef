//! What stands on passes gives the processor's answers on the card: guesses, sequences side by side, remembered, kept and
//! given up pages, shapes, interruptions.
//!
//! Invariant: both run the same schedule, and every token and the bits of its log probability are compared.

use andon_engine::backend::Backend;
use andon_engine::generate::{
    Event, FinishReason, GenerationId, GenerationRequest, Generator, GeneratorOptions, Reading,
};
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::kv::disk::{PageStore, PageStoreOptions};
use andon_engine::kv::{KvType, PAGE};
use andon_engine::sample::SamplingOptions;
use andon_engine::speculate::{Corpus, DraftModel, PassCosts, Sources};
use andon_engine::{Executor, ExecutorOptions, Model};
use andon_tests::tiny_model::{Architecture, TensorType, TinyModel};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use crate::card::{inside, inside_emulation};
use crate::logits::model;

const ONE: NonZero<u32> = NonZero::<u32>::MIN;
/// Pages of the cache.
const PAGES: usize = 16;

fn options(backend: Backend, kv_type: KvType) -> ExecutorOptions {
    ExecutorOptions {
        backend,
        threads: Some(2),
        batch_tokens_max: 64,
        output_rows_max: 20,
        kv_tokens_max: PAGES * PAGE,
        kv_type,
        prefix_cache: true,
        ..ExecutorOptions::default()
    }
}

fn generator_of(executor: Executor) -> Generator {
    let options = GeneratorOptions {
        parallel_max: 5,
        parked_max: 3,
        prefill_chunk_tokens: 40,
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::new(executor, options);
    // So that guesses are tried that never would be.
    generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
    generator
}

fn generator(model: &Arc<Model>, backend: Backend, kv_type: KvType) -> Generator {
    let executor = Executor::new(Arc::clone(model), &options(backend, kv_type));
    generator_of(executor.expect("a valid executor"))
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

type Answers = BTreeMap<GenerationId, Answer>;

fn step(generator: &mut Generator, answers: &mut Answers, interrupted: &dyn Fn() -> bool) {
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
    let reading = Reading {
        tokens_max: 40,
        order: None,
    };
    let stepped = generator.step_reading(reading, &mut sink, interrupted);
    stepped.expect("a step");
}

fn run(generator: &mut Generator, requests: &[(GenerationRequest, NonZero<u32>)]) -> Vec<Answer> {
    let mut answers = Answers::new();
    for (request, count) in requests {
        let started = generator.start_group(request.clone(), *count);
        started.expect("there is room").for_each(drop);
    }
    while generator.active() > 0 {
        step(generator, &mut answers, &|| false);
    }
    answers.into_values().collect()
}

/// One of two texts that begin alike, so many tokens of it.
fn request(model: &Model, text: usize, prompt: usize, tokens: usize) -> GenerationRequest {
    let vocabulary = model.info().vocabulary_count;
    let token = |at: usize| {
        let text = if at < PAGE { 0 } else { text };
        ((at * 7919 + text * 104_729 + 3) % vocabulary) as u32
    };
    GenerationRequest {
        prompt: (0..prompt).map(token).collect(),
        tokens_max: Some(tokens),
        sampling: SamplingOptions {
            temperature: [0.0, 15.0][text % 2],
            seed: text as u64,
            ..SamplingOptions::default()
        },
        logprobs: Some(0),
        ignore_end: true,
        ..GenerationRequest::default()
    }
}

type Said<'a> = (&'a [(u32, u32)], &'a Option<FinishReason>);

/// The answers without what they cost.
fn said(answers: &[Answer]) -> Vec<Said<'_>> {
    answers
        .iter()
        .map(|answer| (answer.said.as_slice(), &answer.end))
        .collect()
}

#[test]
fn guesses_from_texts_change_no_answer() {
    inside("interfaces::guesses_from_texts_change_no_answer", || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        for kv_type in KvType::ALL {
            let plain: Vec<_> = (0..3)
                .map(|text| (request(&model, text, 10 + 31 * text, 40), ONE))
                .collect();
            let expected = run(&mut generator(&model, Backend::Cpu, kv_type), &plain);
            // Answers that were given before, with some of their tokens changed.
            let corpus = Arc::new(Corpus::new(1 << 14));
            for ((request, _), answer) in plain.iter().zip(&expected) {
                let mut tokens: Vec<u32> = answer.said.iter().map(|&(id, _)| id).collect();
                for token in tokens.iter_mut().skip(5).step_by(9) {
                    *token = (*token + 1) % 200;
                }
                corpus.add(&request.prompt, &tokens);
            }
            let guessed: Vec<_> = plain
                .iter()
                .map(|(request, count)| {
                    let sources = Sources {
                        own: true,
                        corpus: Some(Arc::clone(&corpus)),
                        ..Sources::default()
                    };
                    let request = GenerationRequest {
                        sources,
                        ..request.clone()
                    };
                    (request, *count)
                })
                .collect();
            let answers = run(&mut generator(&model, Backend::Cuda, kv_type), &guessed);
            assert_eq!(said(&answers), said(&expected), "{kv_type:?}");
            let sum = |of: fn(&Answer) -> usize| answers.iter().map(of).sum::<usize>();
            let (guessed, accepted) = (sum(|answer| answer.guessed), sum(|answer| answer.accepted));
            assert!(
                accepted > 20 && guessed > accepted,
                "{accepted} of {guessed}"
            );
        }
    });
}

#[test]
fn a_draft_model_beside_the_card_changes_no_answer() {
    let name = "interfaces::a_draft_model_beside_the_card_changes_no_answer";
    inside(name, || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let path = folder.path().join("draft.gguf");
        let tiny = TinyModel {
            seed: 2,
            ..TinyModel::default()
        };
        tiny.write(&path).expect("writable");
        let other = Arc::new(Model::load(&path).expect("a sound model"));
        let requests: Vec<_> = (0..2)
            .map(|text| {
                let request = GenerationRequest {
                    sources: Sources {
                        model: true,
                        ..Sources::default()
                    },
                    ..request(&model, text, 20 + 50 * text, 30)
                };
                (request, ONE)
            })
            .collect();
        let expected = run(&mut generator(&model, Backend::Cpu, KvType::F16), &requests);
        for draft in [&model, &other] {
            let target = options(Backend::Cuda, KvType::F16);
            let target = Executor::new(Arc::clone(&model), &target).expect("a valid executor");
            // A draft is computed by the processor.
            let of_draft = options(Backend::Cpu, KvType::F16);
            let drafter = DraftModel::new(Arc::clone(draft), &target, &of_draft).expect("a draft");
            let mut generator = generator_of(target);
            generator.set_drafter(Box::new(drafter), 0.0);
            let answers = run(&mut generator, &requests);
            assert_eq!(said(&answers), said(&expected));
            if Arc::ptr_eq(draft, &model) {
                let accepted: usize = answers.iter().map(|answer| answer.accepted).sum();
                assert!(accepted > 10, "{accepted} guesses were right");
            }
        }
    });
}

#[test]
fn answers_keep_to_their_shapes() {
    inside("interfaces::answers_keep_to_their_shapes", || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let schema = serde_json::json!({
            "type": "object",
            "properties": {
                "stops": { "type": "boolean" },
                "codes": { "type": "array", "items": { "type": "integer", "maximum": 99 }, "maxItems": 4 },
            },
            "required": ["stops", "codes"],
            "additionalProperties": false,
        });
        let vocabulary = model.grammar_vocabulary().expect("a vocabulary");
        let requests: Vec<_> = [
            Constraint::JsonSchema(schema),
            Constraint::Regex("([a-z]{2,4} ){3,9}".to_owned()),
        ]
        .iter()
        .enumerate()
        .map(|(text, constraint)| {
            let grammar = Grammar::compile(vocabulary, constraint, 60).expect("it compiles");
            let request = GenerationRequest {
                constraint: Some(Arc::new(grammar)),
                ignore_end: false,
                // The second takes what is forced all at once.
                logprobs: [Some(0), None][text],
                ..request(&model, text, 30, 60)
            };
            (request, ONE)
        })
        .collect();
        let texts = |backend| {
            let mut generator = generator(&model, backend, KvType::F16);
            let mut texts: BTreeMap<GenerationId, (String, Vec<u32>)> = BTreeMap::new();
            for (request, _) in &requests {
                generator.start(request.clone()).expect("there is room");
            }
            while generator.active() > 0 {
                let stepped = generator.step(&mut |id, event| {
                    if let Event::Text { text, ids, .. } = event {
                        let answer = texts.entry(id).or_default();
                        answer.0.push_str(text);
                        answer.1.extend_from_slice(ids);
                    }
                });
                stepped.expect("a step");
            }
            texts.into_values().collect::<Vec<_>>()
        };
        let card = texts(Backend::Cuda);
        assert_eq!(card, texts(Backend::Cpu));
        let shaped: serde_json::Value = serde_json::from_str(&card[0].0).expect("JSON");
        assert!(shaped["stops"].is_boolean(), "{shaped}");
        assert!(card[1].0.split(' ').count() > 3, "{}", card[1].0);
    });
}

/// Requests in a crowd: choices of one, beginnings that others read, some parked, set aside and taken up again, some
/// cancelled, and passes that are given up.
fn busy(generator: &mut Generator, model: &Model) -> Vec<Answer> {
    let mut answers = Answers::new();
    let mut ids: Vec<GenerationId> = Vec::new();
    let requests = [
        (request(model, 1, PAGE + 20, 14), 3),
        (request(model, 2, 2 * PAGE + 3, 24), 1),
        (request(model, 1, PAGE + 40, 18), 1),
        (request(model, 0, PAGE - 1, 30), 2),
        (request(model, 3, 3, 22), 1),
    ];
    let mut waiting = requests.iter();
    let mut next = waiting.next();
    let (mut parked, mut aside) = (Vec::new(), 0);
    let calls = Cell::new(0);
    for round in 0.. {
        if let Some((request, count)) = next
            && let Ok(started) =
                generator.start_group(request.clone(), NonZero::new(*count).expect("one or more"))
        {
            ids.extend(started);
            next = waiting.next();
        }
        if next.is_none() && generator.active() == 0 {
            break;
        }
        match round {
            4 => assert!(generator.cancel(ids[1])),
            6 | 9 => {
                let id = ids[if round == 6 { 3 } else { 4 }];
                if generator.park(id) {
                    parked.push(id);
                }
                // Its pages are others' meanwhile.
                aside += usize::from(generator.set_aside(id));
            }
            // Someone always goes on.
            15.. if round % 5 == 0 || parked.len() == generator.active() => {
                let id = parked.pop();
                if let Some(id) = id.filter(|&id| !generator.resume(id)) {
                    parked.push(id);
                }
            }
            _ => {}
        }
        // Every third pass that may be is given up, somewhere in its middle.
        calls.set(0);
        step(generator, &mut answers, &|| {
            calls.set(calls.get() + 1);
            round % 3 == 1 && calls.get() == 2
        });
    }
    assert!(aside > 0, "none was set aside");
    assert_eq!(generator.executor().kv_tokens_free(), PAGES * PAGE);
    answers.into_values().collect()
}

fn crowd(kv_type: KvType) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
    let of = |backend| {
        let mut generator = generator(&model, backend, kv_type);
        let answers = busy(&mut generator, &model);
        (answers, generator.executor().lost())
    };
    let (expected, _) = of(Backend::Cpu);
    let (answers, lost) = of(Backend::Cuda);
    assert_eq!(said(&answers), said(&expected));
    assert_eq!(lost, None);
    assert!(
        answers.iter().any(|answer| answer.cached >= PAGE),
        "a beginning was remembered"
    );
}

#[test]
fn a_crowd_gets_the_processors_answers() {
    inside("interfaces::a_crowd_gets_the_processors_answers", || {
        crowd(KvType::F16);
    });
}

#[test]
fn a_crowd_gets_the_processors_answers_from_pages_of_8_bits() {
    let name = "interfaces::a_crowd_gets_the_processors_answers_from_pages_of_8_bits";
    inside(name, || crowd(KvType::Q8));
}

#[test]
fn a_crowd_gets_the_processors_answers_in_the_machines_own_memory() {
    let name = "interfaces::a_crowd_gets_the_processors_answers_in_the_machines_own_memory";
    let variables = [("ANDON_EMULATED_INTEGRATED", "1")];
    inside_emulation(name, &variables, || crowd(KvType::F16));
}

/// Launches after which the card fails: more than the comparison takes, fewer than the crowd.
const LAUNCHES: &str = "700";

#[test]
fn a_crowd_gets_the_processors_answers_where_the_card_fails() {
    let name = "interfaces::a_crowd_gets_the_processors_answers_where_the_card_fails";
    let variables = [("ANDON_EMULATED_LAUNCHES", LAUNCHES)];
    inside_emulation(name, &variables, || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let mut processor = generator(&model, Backend::Cpu, KvType::F16);
        let expected = busy(&mut processor, &model);
        let options = ExecutorOptions {
            falls_back: true,
            ..options(Backend::Cuda, KvType::F16)
        };
        let executor = Executor::new(Arc::clone(&model), &options).expect("a valid executor");
        let mut card = generator_of(executor);
        let answers = busy(&mut card, &model);
        assert!(card.executor().lost().is_some(), "it failed on the way");
        assert_eq!(said(&answers), said(&expected));
    });
}

/// A program's start: what reads and keeps pages in the folder.
fn start(model: &Arc<Model>, (backend, kv_type): (Backend, KvType), folder: &Path) -> Kept {
    let options = options(backend, kv_type);
    let mut executor = Executor::new(Arc::clone(model), &options).expect("a valid executor");
    let key = model.pack_key().expect("a key");
    let root = executor.page_root(&key).expect("computed");
    let bytes = executor.page_bytes();
    let options = PageStoreOptions {
        dir: folder.to_owned(),
        bytes_max: 64 * (bytes as u64 + 4096),
        free_bytes_min: 0,
    };
    let store = Arc::new(PageStore::open(options, root, bytes).expect("a folder"));
    executor.keep_pages_in(Arc::clone(&store));
    Kept {
        generator: generator_of(executor),
        store,
    }
}

struct Kept {
    generator: Generator,
    store: Arc<PageStore>,
}

impl Kept {
    /// Ends in good order: all that is worth it is on the disk.
    fn end(mut self) -> u64 {
        let executor = self.generator.executor_mut().expect("an executor");
        executor.keep_all(PAGES);
        while let Some(page) = self.generator.executor().page_to_keep() {
            self.store.write(&page).expect("there is room");
        }
        self.store.counts().restored
    }
}

#[test]
fn pages_on_the_disk_are_the_same_from_both() {
    inside(
        "interfaces::pages_on_the_disk_are_the_same_from_both",
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
            let asked = [(request(&model, 2, 3 * PAGE + 5, 12), ONE)];
            for kv_type in KvType::ALL {
                let mut alone = generator(&model, Backend::Cpu, kv_type);
                let expected = run(&mut alone, &asked);
                for (writes, reads) in [
                    (Backend::Cuda, Backend::Cpu),
                    (Backend::Cpu, Backend::Cuda),
                    (Backend::Cuda, Backend::Cuda),
                ] {
                    let what = format!("{kv_type:?} pages by {writes}, read by {reads}");
                    let pages = folder.path().join(what.replace([' ', ','], "-"));
                    let mut first = start(&model, (writes, kv_type), &pages);
                    let answers = run(&mut first.generator, &asked);
                    assert_eq!(said(&answers), said(&expected), "{what}");
                    assert_eq!(first.end(), 0, "{what}");
                    let mut second = start(&model, (reads, kv_type), &pages);
                    let answers = run(&mut second.generator, &asked);
                    assert_eq!(said(&answers), said(&expected), "{what}");
                    assert!(answers[0].cached >= 3 * PAGE, "{what}: {answers:?}");
                    assert!(second.end() >= 3, "{what}");
                }
            }
        },
    );
}
