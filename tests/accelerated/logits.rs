//! Logits, pages and answers of the card against the processor's.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use andon_engine::backend::Backend;
use andon_engine::generate::{Event, GenerationRequest, Generator, GeneratorOptions};
use andon_engine::kv::{KvType, PAGE};
use andon_engine::{Chunk, Executor, ExecutorOptions, ForwardError, LogitsFor, Model, Sequence};
use andon_tests::tiny_model::{Architecture, Biases, TensorType, TinyModel};

use crate::card::{inside, inside_emulation};

/// Bits of the logits of every position.
pub(crate) type Rows = Vec<Vec<u32>>;

pub(crate) fn architecture(name: &str) -> Architecture {
    let named = Architecture::ALL.into_iter().find(|one| one.name == name);
    named.unwrap_or_else(|| panic!("{name} is not there"))
}

/// A model of two layers whose heads there are kernels for.
pub(crate) fn model(folder: &Path, architecture: Architecture, weights: TensorType) -> Arc<Model> {
    let path = folder.join("model.gguf");
    let width = if weights.block_elements() == 256 {
        256
    } else {
        64
    };
    TinyModel {
        layer_count: architecture.layer_count.min(6),
        architecture,
        weights,
        embedding: width,
        feed_forward: width,
        head_count: 2,
        head_count_kv: 1,
        // Queries are as wide as blocks are.
        head_dim: Some(if width == 256 { 128 } else { 64 }),
        ..TinyModel::default()
    }
    .write(&path)
    .expect("written");
    Arc::new(Model::load(&path).expect("a sound model"))
}

pub(crate) fn options(backend: Backend, kv_type: KvType) -> ExecutorOptions {
    ExecutorOptions {
        backend,
        threads: Some(2),
        batch_tokens_max: 128,
        output_rows_max: 3,
        kv_tokens_max: 512,
        kv_type,
        prefix_cache: true,
        ..ExecutorOptions::default()
    }
}

pub(crate) fn executor(model: &Arc<Model>, backend: Backend, kv_type: KvType) -> Executor {
    let options = options(backend, kv_type);
    let executor = Executor::new(Arc::clone(model), &options).expect("a valid executor");
    assert_eq!(executor.backend(), backend);
    executor
}

pub(crate) fn tokens(model: &Model, count: usize, seed: u32) -> Vec<u32> {
    let vocabulary = model.info().vocabulary_count as u32;
    (0..count as u32)
        .map(|index| (index * 7919 + seed * 104_729 + 3) % vocabulary)
        .collect()
}

fn append(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Rows {
    let logits = LogitsFor::All;
    let chunk = Chunk {
        sequence,
        tokens,
        logits,
    };
    let logits = executor.forward(&mut [chunk]).expect("a valid batch");
    let bits = |row: &[f32]| row.iter().map(|logit| logit.to_bits()).collect();
    (0..logits.row_count())
        .map(|row| bits(logits.row(row)))
        .collect()
}

pub(crate) fn run(executor: &mut Executor, tokens: &[u32], chunk: usize) -> Rows {
    let mut sequence = executor.sequence();
    run_into(executor, &mut sequence, tokens, chunk)
}

fn run_into(
    executor: &mut Executor,
    sequence: &mut Sequence,
    tokens: &[u32],
    chunk: usize,
) -> Rows {
    let chunks = tokens.chunks(chunk);
    chunks
        .flat_map(|tokens| append(executor, sequence, tokens))
        .collect()
}

#[track_caller]
pub(crate) fn assert_same(left: &Rows, right: &Rows, context: &str) {
    assert_eq!(left.len(), right.len(), "{context}");
    let differs = left
        .iter()
        .zip(right)
        .position(|(left, right)| left != right);
    assert_eq!(differs, None, "{context}: the first position that differs");
}

/// All that a model computes on both.
fn check(name: &str, weights: TensorType, kv_type: KvType) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path(), architecture(name), weights);
    assert_eq!(model.not_covered(Backend::Cuda), None, "{name}");
    let text = tokens(&model, PAGE + 9, 0);
    let expected = run(
        &mut executor(&model, Backend::Cpu, kv_type),
        &text,
        text.len(),
    );
    let mut card = executor(&model, Backend::Cuda, kv_type);
    let whole = run(&mut card, &text, text.len());
    assert_same(&whole, &expected, &format!("{name}, the whole text"));
    let chunked = run(&mut card, &text, 16);
    assert_same(&chunked, &expected, &format!("{name}, 16 at a time"));
}

#[test]
fn llama_is_computed_to_the_processors_bytes() {
    inside("logits::llama_is_computed_to_the_processors_bytes", || {
        check("llama", TensorType::Q4_0, KvType::F16);
    });
}

#[test]
fn llama_in_the_formats_of_real_files_and_pages_of_8_bits() {
    inside(
        "logits::llama_in_the_formats_of_real_files_and_pages_of_8_bits",
        || {
            check("llama", TensorType::Q4K, KvType::Q8);
        },
    );
}

#[test]
fn cards_with_less_shared_memory_compute_the_same() {
    // What 8.6, 8.9 and 12 let a block have.
    let less = [
        ("ANDON_EMULATED_CAPABILITY", "89"),
        ("ANDON_EMULATED_SHARED_MEMORY", "101376"),
    ];
    inside_emulation(
        "logits::cards_with_less_shared_memory_compute_the_same",
        &less,
        || check("llama", TensorType::Q4K, KvType::F16),
    );
}

#[test]
fn qwen2_is_computed_to_the_processors_bytes() {
    inside("logits::qwen2_is_computed_to_the_processors_bytes", || {
        check("qwen2", TensorType::Q4_1, KvType::F16);
    });
}

#[test]
fn qwen3_is_computed_to_the_processors_bytes() {
    inside("logits::qwen3_is_computed_to_the_processors_bytes", || {
        check("qwen3", TensorType::Q8_0, KvType::F16);
    });
}

#[test]
fn gemma3_is_computed_to_the_processors_bytes() {
    inside("logits::gemma3_is_computed_to_the_processors_bytes", || {
        check("gemma3", TensorType::Q5_0, KvType::F16);
    });
}

/// The architecture that tests call so.
fn titled(title: &str) -> Architecture {
    let titled = Architecture::ALL.into_iter().find(|one| one.title == title);
    titled.unwrap_or_else(|| panic!("{title} is not there"))
}

/// The logits of a text that is read in chunks of several and of many tokens.
fn check_short(architecture: Architecture, weights: TensorType, kv_type: KvType) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path(), architecture, weights);
    let title = architecture.title;
    assert_eq!(model.not_covered(Backend::Cuda), None, "{title}");
    let text = tokens(&model, 40, 0);
    let of = |backend| run(&mut executor(&model, backend, kv_type), &text, 27);
    assert_same(&of(Backend::Cuda), &of(Backend::Cpu), title);
}

#[test]
fn every_architecture_is_computed_to_the_processors_bytes() {
    inside(
        "logits::every_architecture_is_computed_to_the_processors_bytes",
        || {
            for (index, architecture) in Architecture::ALL.into_iter().enumerate() {
                let kv_type = [KvType::F16, KvType::Q8][index % 2];
                check_short(architecture, TensorType::Q8_0, kv_type);
            }
        },
    );
}

#[test]
fn every_format_that_there_are_kernels_for_gives_the_processors_bytes() {
    inside(
        "logits::every_format_that_there_are_kernels_for_gives_the_processors_bytes",
        || {
            for weights in [
                TensorType::Q4_0,
                TensorType::Q4_1,
                TensorType::Q5_0,
                TensorType::Q5_1,
                TensorType::Q8_0,
                TensorType::Q3K,
                TensorType::Q4K,
                TensorType::Q5K,
                TensorType::Q6K,
                TensorType::IQ4NL,
                TensorType::IQ4XS,
            ] {
                check_short(Architecture::LLAMA, weights, KvType::F16);
            }
        },
    );
}

#[test]
fn vocabularies_of_floats_give_the_processors_bytes() {
    inside(
        "logits::vocabularies_of_floats_give_the_processors_bytes",
        || {
            for (vocabulary, tied) in [
                (TensorType::F16, true),
                (TensorType::F16, false),
                (TensorType::BF16, true),
                (TensorType::F32, false),
            ] {
                let folder = tempfile::tempdir().expect("a folder");
                let path = folder.path().join("model.gguf");
                TinyModel {
                    architecture: titled("gemma3, every other layer"),
                    embedding: 96,
                    head_count: 2,
                    head_count_kv: 1,
                    head_dim: Some(64),
                    vocabulary: Some(vocabulary),
                    tied,
                    ..TinyModel::default()
                }
                .write(&path)
                .expect("written");
                let model = Arc::new(Model::load(&path).expect("a sound model"));
                let text = tokens(&model, 40, 0);
                // Logits of one token, of a few, and of more than fit at once.
                for chunk in [1, 9, 40] {
                    let text = &text[..40.min(6 * chunk)];
                    let of =
                        |backend| run(&mut executor(&model, backend, KvType::F16), text, chunk);
                    let context = format!("{vocabulary:?}, {chunk} at a time");
                    assert_same(&of(Backend::Cuda), &of(Backend::Cpu), &context);
                }
            }
        },
    );
}

#[test]
fn biases_of_any_matrices_are_added() {
    inside("logits::biases_of_any_matrices_are_added", || {
        for biases in [
            &["attn_q", "attn_v", "ffn_up", "output"][..],
            &["attn_k", "ffn_gate", "ffn_down"],
            &["attn_v", "attn_output"],
        ] {
            let biases = Biases::Of(biases);
            for title in ["llama", "qwen3", "olmo2"] {
                let architecture = Architecture {
                    biases,
                    ..titled(title)
                };
                check_short(architecture, TensorType::Q4_1, KvType::F16);
            }
        }
    });
}

#[test]
fn one_to_sixteen_tokens_at_a_time_make_no_difference() {
    inside(
        "logits::one_to_sixteen_tokens_at_a_time_make_no_difference",
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
            let text = tokens(&model, 18, 0);
            let mut processor = executor(&model, Backend::Cpu, KvType::F16);
            let expected = run(&mut processor, &text, text.len());
            let mut card = executor(&model, Backend::Cuda, KvType::F16);
            for chunk in 1..=16 {
                let actual = run(&mut card, &text, chunk);
                assert_same(&actual, &expected, &format!("{chunk} at a time"));
            }
        },
    );
}

#[test]
fn sequences_share_a_pass_and_pages_as_on_the_processor() {
    inside(
        "logits::sequences_share_a_pass_and_pages_as_on_the_processor",
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
            let long = tokens(&model, PAGE + 6, 0);
            let other = tokens(&model, 5, 1);
            let both = |backend| {
                let mut executor = executor(&model, backend, KvType::F16);
                let mut rows = Rows::new();
                let (mut first, mut second) = (executor.sequence(), executor.sequence());
                rows.extend(append(&mut executor, &mut first, &long));
                // Begun from the remembered page, and from a copy of the begun one.
                let mut third = executor.sequence_of(&long);
                assert_eq!(third.len(), PAGE);
                let mut fourth = executor.fork(&first).expect("a page");
                let chunk = |sequence, tokens| Chunk {
                    sequence,
                    tokens,
                    logits: LogitsFor::Last,
                };
                let chunks = &mut [
                    chunk(&mut second, &other),
                    chunk(&mut third, &long[PAGE..]),
                    chunk(&mut fourth, &other[..1]),
                ];
                let logits = executor.forward(chunks).expect("a valid batch");
                assert_eq!(logits.row_count(), 3);
                for row in 0..3 {
                    rows.push(
                        logits
                            .row(row)
                            .iter()
                            .map(|logit| logit.to_bits())
                            .collect(),
                    );
                }
                rows
            };
            let (card, processor) = (both(Backend::Cuda), both(Backend::Cpu));
            assert_same(&card, &processor, "three sequences in a pass");
        },
    );
}

/// Ids of a greedy answer.
fn answer(executor: Executor, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut generator = Generator::new(executor, GeneratorOptions::default());
    let request = GenerationRequest {
        prompt: prompt.to_vec(),
        tokens_max: Some(count),
        ignore_end: true,
        ..GenerationRequest::default()
    };
    generator.start(request).expect("there is room");
    let mut said = Vec::new();
    while generator.active() > 0 {
        let mut sink = |_, event: Event<'_>| {
            if let Event::Text { ids, .. } = event {
                said.extend_from_slice(ids);
            }
        };
        generator.step(&mut sink).expect("a step");
    }
    assert_eq!(said.len(), count);
    said
}

#[test]
fn greedy_answers_are_the_same_over_256_tokens() {
    inside(
        "logits::greedy_answers_are_the_same_over_256_tokens",
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
            let prompt = tokens(&model, 7, 2);
            let of = |backend| answer(executor(&model, backend, KvType::F16), &prompt, 256);
            assert_eq!(of(Backend::Cuda), of(Backend::Cpu));
        },
    );
}

#[test]
fn what_there_are_no_kernels_for_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, weights, lack) in [
        ("llama", TensorType::F16, "F16"),
        ("llama", TensorType::Q2K, "Q2_K"),
    ] {
        let model = model(folder.path(), architecture(name), weights);
        let why = model.not_covered(Backend::Cuda).expect("it is not covered");
        assert!(
            why.to_lowercase().contains(&lack.to_lowercase()),
            "{name}: {why}"
        );
    }
}

#[test]
fn positions_that_the_context_turns_are_compared_in_the_same_context() {
    inside(
        "logits::positions_that_the_context_turns_are_compared_in_the_same_context",
        || {
            let folder = tempfile::tempdir().expect("a folder");
            for title in ["phi3, LongRoPE, short", "phi3, LongRoPE, long"] {
                let model = model(folder.path(), titled(title), TensorType::Q4_0);
                let text = tokens(&model, 20, 0);
                let of = |backend| run(&mut executor(&model, backend, KvType::F16), &text, 20);
                assert_same(&of(Backend::Cuda), &of(Backend::Cpu), title);
            }
        },
    );
}

#[test]
fn passes_take_no_memory_of_the_card() {
    inside_emulation(
        "logits::passes_take_no_memory_of_the_card",
        &[("ANDON_EMULATED_MEMORY", "67108864")],
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
            let long = tokens(&model, 3 * PAGE + 6, 0);
            let both = |backend| {
                let mut executor = executor(&model, backend, KvType::F16);
                // All that is left of the card's memory is somebody else's.
                let taken = (backend == Backend::Cuda).then(|| {
                    let device = andon_cuda::Device::open(0).expect("a card");
                    let (free, _) = device.limits().expect("limits").memory_bytes;
                    device.zeros::<u8>(free).expect("there is room")
                });
                let mut first = executor.sequence();
                let mut rows = run_into(&mut executor, &mut first, &long, 100);
                let mut others = [executor.sequence_of(&long), executor.sequence_of(&long)];
                // More pages together than the cache has: they share most.
                let [second, third] = &mut others;
                let chunk = |sequence, tokens| Chunk {
                    sequence,
                    tokens,
                    logits: LogitsFor::Last,
                };
                let chunks = &mut [
                    chunk(&mut first, &long[..1]),
                    chunk(second, &long[3 * PAGE..]),
                    chunk(third, &long[3 * PAGE..]),
                ];
                let logits = executor.forward(chunks).expect("a valid batch");
                let bits = |row: &[f32]| row.iter().map(|logit| logit.to_bits()).collect();
                rows.extend((0..logits.row_count()).map(|row| bits(logits.row(row))));
                drop(taken);
                rows
            };
            assert_same(&both(Backend::Cuda), &both(Backend::Cpu), "without memory");
        },
    );
}

#[test]
fn an_interrupted_pass_changes_nothing_on_the_card() {
    inside(
        "logits::an_interrupted_pass_changes_nothing_on_the_card",
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
            let text = tokens(&model, 24, 0);
            let mut processor = executor(&model, Backend::Cpu, KvType::F16);
            let expected = run(&mut processor, &text, text.len());
            let mut card = executor(&model, Backend::Cuda, KvType::F16);
            let mut sequence = card.sequence();
            let asked = Cell::new(0);
            let chunk = Chunk {
                sequence: &mut sequence,
                tokens: &text,
                logits: LogitsFor::All,
            };
            let interrupted = card.forward_unless(&mut [chunk], &|| asked.replace(1) == 1);
            assert_eq!(interrupted.err(), Some(ForwardError::Interrupted));
            let rows = append(&mut card, &mut sequence, &text);
            assert_same(&rows, &expected, "after an interruption");
        },
    );
}

/// How much is done in each wait for the card, by the emulation's note of it.
fn waits(file: &Path) -> Vec<usize> {
    let text = std::fs::read_to_string(file).expect("it was waited");
    let count = |line: &str| line.parse().expect("a number");
    text.lines().map(count).collect()
}

#[test]
fn whoever_interrupts_a_long_pass_waits_for_two_layers_at_most() {
    const LAYERS: usize = 12;
    const NAME: &str = "logits::whoever_interrupts_a_long_pass_waits_for_two_layers_at_most";
    let notes = tempfile::NamedTempFile::new().expect("a file");
    let name = notes.path().to_str().expect("a plain name");
    inside_emulation(NAME, &[("ANDON_EMULATED_WAITS", name)], || {
        let notes = std::env::var_os("ANDON_EMULATED_WAITS").expect("it is set");
        let notes = Path::new(&notes);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        TinyModel {
            layer_count: LAYERS,
            embedding: 64,
            feed_forward: 64,
            head_count: 2,
            head_count_kv: 1,
            head_dim: Some(64),
            ..TinyModel::default()
        }
        .write(&path)
        .expect("written");
        let model = Arc::new(Model::load(&path).expect("a sound model"));
        let mut card = executor(&model, Backend::Cuda, KvType::F16);
        let before = waits(notes).len();
        let text = tokens(&model, 40, 0);
        let mut sequence = card.sequence();
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens: &text,
            logits: LogitsFor::Last,
        };
        card.forward(&mut [chunk]).expect("a valid batch");
        let waits = waits(notes).split_off(before);
        let (all, longest) = (waits.iter().sum::<usize>(), waits.iter().max());
        assert!(all > 10 * LAYERS, "{all} launches of {LAYERS} layers");
        // Two layers of twelve, with what comes before and behind them.
        let longest = *longest.expect("it waits");
        assert!(longest < all / 4, "{longest} of {all} launches in a wait");
    });
}
