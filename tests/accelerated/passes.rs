//! Passes that the card repeats, and what comes back of them: the same bytes as of passes that are asked for step by step,
//! and no more than is needed.

use andon_engine::backend::{Backend, DeviceCounts};
use andon_engine::generate::{Event, GenerationRequest, Generator, GeneratorOptions};
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::kv::{KvType, PAGE};
use andon_engine::sample::{LogitBias, SamplingOptions};
use andon_engine::speculate::{PassCosts, Sources};
use andon_engine::{Chunk, Executor, ExecutorOptions, ForwardError, LogitsFor, Model, Sequence};
use andon_tests::tiny_model::{Architecture, TensorType};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crate::card::{inside, inside_emulation};
use crate::logits::{model, tokens};

/// Bits of rows of logits.
type Rows = Vec<Vec<u32>>;

fn options(backend: Backend) -> ExecutorOptions {
    ExecutorOptions {
        backend,
        threads: Some(2),
        batch_tokens_max: 256,
        output_rows_max: GeneratorOptions::default().output_rows_max(),
        kv_tokens_max: 10 * PAGE,
        prefix_cache: true,
        ..ExecutorOptions::default()
    }
}

fn executor(model: &Arc<Model>, options: &ExecutorOptions) -> Executor {
    Executor::new(Arc::clone(model), options).expect("a valid executor")
}

fn forward(executor: &mut Executor, chunks: &mut [Chunk<'_>], rows: &mut Rows) {
    let logits = executor.forward(chunks).expect("a valid batch");
    let bits = |row: &[f32]| row.iter().map(|logit| logit.to_bits()).collect();
    rows.extend((0..logits.row_count()).map(|row| bits(logits.row(row))));
}

fn append(
    executor: &mut Executor,
    sequence: &mut Sequence,
    tokens: &[u32],
    logits: LogitsFor,
    rows: &mut Rows,
) {
    let chunk = Chunk {
        sequence,
        tokens,
        logits,
    };
    forward(executor, &mut [chunk], rows);
}

/// Passes of all kinds: of one sequence across the bound of a graph, of several of other lengths, in pages that were others'
/// before, after one that was given up.
fn passes(model: &Arc<Model>, options: &ExecutorOptions) -> (Rows, DeviceCounts) {
    let executor = &mut executor(model, options);
    let mut rows = Rows::new();
    let text = tokens(model, 330, 0);
    let mut long = executor.sequence();
    append(
        executor,
        &mut long,
        &text[..230],
        LogitsFor::Last,
        &mut rows,
    );
    for count in [3, 1, 5, 1, 16, 1, 5, 3, 1, 16, 16, 16] {
        let next = &text[long.len()..][..count];
        append(executor, &mut long, next, LogitsFor::All, &mut rows);
    }
    assert!(long.len() > 256 + 16, "behind the first bound");
    let (mut short, mut full) = (executor.sequence(), executor.sequence());
    append(
        executor,
        &mut full,
        &text[100..100 + PAGE],
        LogitsFor::None,
        &mut rows,
    );
    for round in 0..4 {
        let logits = [
            (LogitsFor::Last, LogitsFor::All, LogitsFor::None),
            (LogitsFor::Guesses(1), LogitsFor::Last, LogitsFor::Last),
            (LogitsFor::None, LogitsFor::None, LogitsFor::None),
            (LogitsFor::All, LogitsFor::All, LogitsFor::All),
        ][round];
        let chunks = &mut [
            Chunk {
                sequence: &mut short,
                tokens: &text[5 * round..5 * round + 4],
                logits: logits.0,
            },
            Chunk {
                sequence: &mut long,
                tokens: &text[round..=round],
                logits: logits.1,
            },
            Chunk {
                sequence: &mut full,
                tokens: &text[9 * round..9 * round + 2],
                logits: logits.2,
            },
        ];
        forward(executor, chunks, &mut rows);
    }
    drop((long, short));
    executor.shed();
    let other = tokens(model, 90, 5);
    let mut again = executor.sequence();
    append(
        executor,
        &mut again,
        &other[..70],
        LogitsFor::Last,
        &mut rows,
    );
    let given_up = |executor: &mut Executor, sequence: &mut Sequence| {
        let chunk = Chunk {
            sequence,
            tokens: &other[..3],
            logits: LogitsFor::All,
        };
        let done = executor.forward_unless(&mut [chunk], &|| true);
        assert_eq!(done.err(), Some(ForwardError::Interrupted));
    };
    for at in 70..76 {
        given_up(executor, &mut again);
        append(
            executor,
            &mut again,
            &other[at..=at],
            LogitsFor::All,
            &mut rows,
        );
        append(
            executor,
            &mut full,
            &other[at..at + 3],
            LogitsFor::All,
            &mut rows,
        );
    }
    (rows, executor.device_counts())
}

#[test]
fn repeated_passes_give_the_processors_bytes() {
    let name = "passes::repeated_passes_give_the_processors_bytes";
    inside(name, || {
        let folder = tempfile::tempdir().expect("a folder");
        for (architecture, weights, kv_type) in [
            (Architecture::LLAMA, TensorType::Q4_0, KvType::F16),
            (
                crate::logits::architecture("gemma3"),
                TensorType::Q8_0,
                KvType::Q8,
            ),
            (
                crate::logits::architecture("mistral3"),
                TensorType::Q4_0,
                KvType::F16,
            ),
        ] {
            let model = model(folder.path(), architecture, weights);
            let of = |backend, graphs| {
                let options = ExecutorOptions {
                    kv_type,
                    graphs,
                    ..options(backend)
                };
                passes(&model, &options)
            };
            let (expected, none) = of(Backend::Cpu, true);
            assert_eq!(none, DeviceCounts::default());
            let (rows, counts) = of(Backend::Cuda, true);
            assert!(rows == expected, "{}, repeated", architecture.title);
            let DeviceCounts {
                recorded, started, ..
            } = counts;
            assert!(
                recorded >= 4 && started >= recorded + 10,
                "{recorded} were recorded, {started} started"
            );
            let (rows, counts) = of(Backend::Cuda, false);
            assert!(rows == expected, "{}, step by step", architecture.title);
            assert_eq!((counts.recorded, counts.started), (0, 0));
        }
    });
}

#[test]
fn what_cannot_be_recorded_is_computed_all_the_same() {
    let name = "passes::what_cannot_be_recorded_is_computed_all_the_same";
    inside_emulation(name, &[("ANDON_EMULATED_GRAPHS", "0")], || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let (expected, _) = passes(&model, &options(Backend::Cpu));
        let (rows, counts) = passes(&model, &options(Backend::Cuda));
        assert!(rows == expected);
        assert_eq!((counts.recorded, counts.started), (0, 0));
    });
}

/// Passes where the card has no memory for a step of making graphs; how many were recorded all the same.
fn without_room_to(name: &str, step: &str, recorded: u64) {
    inside_emulation(name, &[("ANDON_EMULATED_GRAPHS_REFUSED", step)], || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let (expected, _) = passes(&model, &options(Backend::Cpu));
        let (rows, counts) = passes(&model, &options(Backend::Cuda));
        assert!(rows == expected);
        assert_eq!((counts.recorded, counts.started), (recorded, 0));
    });
}

#[test]
fn graphs_that_cannot_be_made_are_done_without() {
    let name = "passes::graphs_that_cannot_be_made_are_done_without";
    without_room_to(name, "instantiate", 0);
}

#[test]
fn graphs_that_there_is_no_room_for_are_done_without() {
    let name = "passes::graphs_that_there_is_no_room_for_are_done_without";
    without_room_to(name, "upload", 0);
}

#[test]
fn graphs_that_cannot_be_started_are_done_without() {
    let name = "passes::graphs_that_cannot_be_started_are_done_without";
    without_room_to(name, "launch", 1);
}

#[test]
fn more_kinds_of_passes_than_are_kept_give_the_processors_bytes() {
    let name = "passes::more_kinds_of_passes_than_are_kept_give_the_processors_bytes";
    inside(name, || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let text = tokens(&model, 12, 3);
        let of = |backend| {
            let executor = &mut executor(&model, &options(backend));
            let mut rows = Rows::new();
            for round in 0..2 {
                for count in 1..=12 {
                    for guesses in 0..count {
                        let logits = LogitsFor::Guesses(guesses);
                        // The second is recorded, a third known at once.
                        let times = if round == 1 && count == 3 { 3 } else { 2 };
                        for _ in 0..times {
                            let mut sequence = executor.sequence();
                            append(executor, &mut sequence, &text[..count], logits, &mut rows);
                        }
                    }
                }
            }
            (rows, executor.device_counts())
        };
        let (expected, _) = of(Backend::Cpu);
        let (rows, counts) = of(Backend::Cuda);
        assert!(rows == expected);
        assert!(
            counts.recorded > 2 * 70,
            "{counts:?}: some came again after others"
        );
        assert!(counts.started >= counts.recorded + 3, "{counts:?}");
    });
}

/// How often the card was waited for with something left to do, by the emulation's note of it.
fn waits(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).expect("it was waited");
    text.lines().filter(|&line| line != "0").count()
}

#[test]
fn a_token_takes_one_wait() {
    const NAME: &str = "passes::a_token_takes_one_wait";
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let path = notes.path().to_str().expect("a plain name");
    inside_emulation(NAME, &[("ANDON_EMULATED_WAITS", path)], || {
        let notes = std::env::var_os("ANDON_EMULATED_WAITS").expect("it is set");
        let notes = Path::new(&notes);
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        for graphs in [true, false] {
            let options = ExecutorOptions {
                graphs,
                ..options(Backend::Cuda)
            };
            let executor = &mut executor(&model, &options);
            let mut sequence = executor.sequence();
            let mut step = |executor: &mut Executor, logits| {
                let chunk = Chunk {
                    sequence: &mut sequence,
                    tokens: &[7],
                    logits,
                };
                let outputs = executor.forward_unless(&mut [chunk], &|| false);
                let outputs = outputs.expect("a valid batch");
                (0..outputs.row_count()).for_each(|row| {
                    assert_eq!(outputs.row(row).best().len(), 64);
                });
            };
            // Where a pass is recorded, what was asked for before comes to its end.
            step(executor, LogitsFor::Last);
            step(executor, LogitsFor::Last);
            let before = waits(notes);
            for _ in 0..20 {
                step(executor, LogitsFor::Last);
            }
            assert_eq!(waits(notes) - before, 20, "with graphs: {graphs}");
            assert_eq!(executor.device_counts().rows_read, 5, "of the comparison");
        }
    });
}

/// Ways to choose tokens, and how many of some 120 of them at most may need all logits.
fn ways(model: &Model) -> Vec<(&'static str, GenerationRequest, Option<usize>)> {
    let base = SamplingOptions {
        temperature: 6.0,
        seed: 11,
        ..SamplingOptions::default()
    };
    let greedy = SamplingOptions::default();
    let penalties = SamplingOptions {
        repeat_penalty: 1.02,
        presence_penalty: 0.05,
        frequency_penalty: 0.02,
        ..greedy
    };
    let top_k = SamplingOptions { top_k: 40, ..base };
    let top_k_all = SamplingOptions {
        top_p: 0.9,
        min_p: 0.02,
        typical_p: 0.8,
        ..top_k
    };
    let of = |sampling| GenerationRequest {
        prompt: tokens(model, 20, 4),
        tokens_max: Some(40),
        ignore_end: true,
        sampling,
        ..GenerationRequest::default()
    };
    let grammar = |pattern: &str| {
        let vocabulary = model.grammar_vocabulary().expect("a vocabulary");
        let constraint = Constraint::Regex(pattern.to_owned());
        let grammar = Grammar::compile(vocabulary, &constraint, 40).expect("it compiles");
        Some(Arc::new(grammar))
    };
    let shaped = |sampling, pattern| GenerationRequest {
        constraint: grammar(pattern),
        ignore_end: false,
        ..of(sampling)
    };
    let bias = vec![(3, 0.2), (90, -100.0), (150, 0.1)];
    let biased = |sampling| GenerationRequest {
        bias: LogitBias::new(bias.clone()).expect("a valid bias"),
        ..of(sampling)
    };
    let logprobs = GenerationRequest {
        logprobs: Some(3),
        ..of(greedy)
    };
    let guesses = |sampling| GenerationRequest {
        sources: Sources {
            own: true,
            ..Sources::default()
        },
        ..of(sampling)
    };
    vec![
        ("greedy", of(greedy), Some(0)),
        ("greedy with guesses", guesses(greedy), Some(0)),
        ("greedy with penalties", of(penalties), Some(5)),
        ("greedy with a bias", biased(greedy), Some(5)),
        ("one of the best 40", of(top_k), Some(0)),
        ("one of the best 40 with guesses", guesses(top_k), Some(0)),
        ("some of the best 40", of(top_k_all), Some(0)),
        ("one of the best 40 with a bias", biased(top_k), Some(20)),
        ("one of all", of(base), None),
        (
            "greedy in a shape",
            shaped(greedy, "([a-z]{1,3} ){9,20}"),
            None,
        ),
        (
            "one of the best 40 in a shape",
            shaped(top_k, "([a-z ]{1,30}){2}"),
            None,
        ),
        (
            "one of all in a shape",
            shaped(base, "([a-z]{1,3} ){9,20}"),
            None,
        ),
        ("with log probabilities", logprobs, None),
    ]
}

/// Tokens, bits of log probabilities.
type Said = BTreeMap<u64, Vec<(u32, Vec<(u32, u32)>)>>;

/// What is said, and how many rows were read for it; `None` where the processor computes.
fn answers(
    model: &Arc<Model>,
    options: &ExecutorOptions,
    request: &GenerationRequest,
) -> (Said, Option<usize>) {
    let made = executor(model, options);
    let compared = made.device_counts().rows_read;
    let mut generator = Generator::new(made, GeneratorOptions::default());
    generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
    // Two choices of one prompt, beside another.
    let two = NonZero::new(2).expect("some");
    let started = generator.start_group(request.clone(), two);
    started.expect("there is room").for_each(drop);
    let other = GenerationRequest {
        prompt: tokens(model, 33, 9),
        ..request.clone()
    };
    generator.start(other).expect("there is room");
    let mut said = Said::new();
    let mut names = BTreeMap::new();
    while generator.active() > 0 {
        let stepped = generator.step(&mut |id, event| {
            let next = names.len() as u64;
            let name = *names.entry(id).or_insert(next);
            if let Event::Text { ids, tokens, .. } = event {
                let of = said.entry(name).or_default();
                for (at, &id) in ids.iter().enumerate() {
                    let known = tokens.get(at).map(|token| {
                        let top = token.top.iter();
                        let top = top.map(|other| (other.id, other.logprob.to_bits()));
                        std::iter::once((token.id, token.logprob.to_bits()))
                            .chain(top)
                            .collect()
                    });
                    of.push((id, known.unwrap_or_default()));
                }
            }
        });
        stepped.expect("a step");
    }
    let executor = generator.executor();
    let read = || (executor.device_counts().rows_read - compared) as usize;
    (said, (executor.backend() == Backend::Cuda).then(read))
}

#[test]
fn answers_by_the_best_logits_are_the_processors() {
    let name = "passes::answers_by_the_best_logits_are_the_processors";
    inside(name, || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        for (what, request, read_max) in ways(&model) {
            let (expected, none) = answers(&model, &options(Backend::Cpu), &request);
            assert_eq!(none, None);
            let (said, read) = answers(&model, &options(Backend::Cuda), &request);
            let read = read.expect("the card computes");
            assert!(said == expected, "{what}");
            let count: usize = said.values().map(Vec::len).sum();
            assert!(count > 20, "{what}: {count} tokens");
            println!("{what}: {read} rows were read for {count} tokens");
            if let Some(max) = read_max {
                assert!(read <= max, "{what}: {read} rows were read");
            }
        }
    });
}

#[test]
fn a_row_that_cannot_be_read_is_computed_again_by_the_processor() {
    let name = "passes::a_row_that_cannot_be_read_is_computed_again_by_the_processor";
    // Five rows of the comparison, and some of the answers'.
    inside_emulation(name, &[("ANDON_EMULATED_READS", "25")], || {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
        let ways = ways(&model);
        let (_, request, _) = ways
            .iter()
            .find(|way| way.0 == "one of all")
            .expect("a way");
        let (expected, _) = answers(&model, &options(Backend::Cpu), request);
        let falls_back = ExecutorOptions {
            falls_back: true,
            ..options(Backend::Cuda)
        };
        let (said, lost) = answers(&model, &falls_back, request);
        assert!(said == expected);
        assert!(lost.is_none(), "the processor computes: {lost:?}");
    });
}

#[test]
fn models_side_by_side_on_a_card_give_the_processors_answers() {
    let name = "passes::models_side_by_side_on_a_card_give_the_processors_answers";
    inside(name, || {
        let folder = tempfile::tempdir().expect("a folder");
        let models: Vec<_> = [TensorType::Q4_0, TensorType::Q8_0]
            .map(|weights| {
                let folder = folder.path().join(format!("{weights:?}"));
                std::fs::create_dir(&folder).expect("a folder");
                model(&folder, Architecture::LLAMA, weights)
            })
            .into();
        let of = |model: &Arc<Model>, backend| passes(model, &options(backend)).0;
        let expected: Vec<Rows> = models.iter().map(|model| of(model, Backend::Cpu)).collect();
        // Each records passes while others compute, are made and end.
        thread::scope(|scope| {
            let run = |(model, expected): (&Arc<Model>, &Rows)| {
                for round in 0..2 {
                    assert!(of(model, Backend::Cuda) == *expected, "round {round}");
                }
            };
            let threads: Vec<_> = models
                .iter()
                .zip(&expected)
                .map(|pair| scope.spawn(move || run(pair)))
                .collect();
            threads.into_iter().for_each(|thread| {
                thread.join().expect("they are the processor's");
            });
        });
    });
}
