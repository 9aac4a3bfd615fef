//! Logits are the same bytes whatever the batch, the number of threads, the phase and the instruction set, whether the
//! KV cache remembered a part of the tokens, and whether the weights are packed.
//!
//! On tiny models of every format, and on the model that `ANDON_TEST_MODEL` names, if it does.

#![forbid(unsafe_code)]

use andon_engine::generate::{Event, GenerationRequest, Generator, GeneratorOptions};
use andon_engine::kv::{KvType, PAGE};
use andon_engine::pack::{Cache, CacheOptions, PackError};
use andon_engine::sample::SamplingOptions;
use andon_engine::{Chunk, Executor, ExecutorOptions, ForwardError, LogitsFor, Model, Sequence};
use andon_kernels::Isa;
use andon_tests::tiny_model::{Architecture, TensorType, TinyModel};
use std::cell::Cell;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

/// Bits of the logits of every position.
type Rows = Vec<Vec<u32>>;

fn executor(model: &Arc<Model>, isa: Isa, threads: usize, kv_type: KvType) -> Executor {
    let options = ExecutorOptions {
        isa: Some(isa),
        threads: Some(threads),
        batch_tokens_max: 256,
        kv_tokens_max: 1024,
        kv_type,
        prefix_cache: true,
        ..ExecutorOptions::default()
    };
    Executor::new(Arc::clone(model), &options).expect("a valid executor")
}

/// Logits of all positions of `tokens`, run in chunks of `chunk`.
fn run(executor: &mut Executor, tokens: &[u32], chunk: usize) -> Rows {
    let mut sequence = executor.sequence();
    let mut rows = Vec::new();
    for tokens in tokens.chunks(chunk) {
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens,
            logits: LogitsFor::All,
        };
        let logits = executor.forward(&mut [chunk]).expect("a valid batch");
        rows.extend((0..logits.row_count()).map(|row| bits(logits.row(row))));
    }
    assert_eq!(rows.len(), tokens.len());
    rows
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|logit| logit.to_bits()).collect()
}

fn assert_same(left: &Rows, right: &Rows, context: &str) {
    for (position, (left, right)) in left.iter().zip(right).enumerate() {
        let differing = left
            .iter()
            .zip(right)
            .filter(|(left, right)| left != right)
            .count();
        assert_eq!(
            differing, 0,
            "{context}: {differing} logits differ at position {position}"
        );
    }
}

/// Token ids that differ from each other and from one sequence to the next.
fn tokens(model: &Model, count: usize, seed: u32) -> Vec<u32> {
    let vocabulary = model.info().vocabulary_count as u32;
    (0..count as u32)
        .map(|index| (index * 7919 + seed * 104_729 + 3) % vocabulary)
        .collect()
}

fn supported() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

fn check(path: &Path, length: usize, scalar_length: usize) {
    for kv_type in KvType::ALL {
        check_kept_in(kv_type, path, length, scalar_length);
    }
}

fn check_kept_in(kv_type: KvType, path: &Path, length: usize, scalar_length: usize) {
    let model = Arc::new(Model::load(path).expect("a sound model"));
    let sequence = tokens(&model, length, 0);
    let mut best = executor(&model, Isa::best(), 2, kv_type);
    let expected = run(&mut best, &sequence, 1);
    for chunk in [2, 3, 8, 17, 64, length] {
        assert_same(
            &run(&mut best, &sequence, chunk),
            &expected,
            &format!("chunks of {chunk} against one by one"),
        );
    }
    for threads in [1, 3] {
        let actual = run(
            &mut executor(&model, Isa::best(), threads, kv_type),
            &sequence,
            length,
        );
        assert_same(&actual, &expected, &format!("{threads} threads against 2"));
    }
    for isa in supported().filter(|&isa| isa != Isa::best()) {
        let length = if isa == Isa::Scalar {
            scalar_length
        } else {
            length
        };
        let actual = run(
            &mut executor(&model, isa, 2, kv_type),
            &sequence[..length],
            length,
        );
        assert_same(
            &actual,
            &expected,
            &format!("{} against {}", isa.name(), Isa::best().name()),
        );
    }
    // How weights are stored and how keys and values are kept know nothing of each other.
    if kv_type == KvType::F16 {
        check_packed(path, &sequence, &expected, scalar_length);
    }
    check_together(&mut best, &sequence, &expected);
    check_remembered(&mut best, &sequence, &expected);
    check_interrupted(&mut best, &sequence, &expected);
    check_unwanted(&mut best, &sequence, &expected);
    check_answers(&model, &sequence, kv_type);
}

/// The same with packed weights, for what has a packed layout.
fn check_packed(path: &Path, sequence: &[u32], expected: &Rows, scalar_length: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = Arc::new(Model::load(path).expect("a sound model"));
    let key = model.pack_key().expect("a key");
    let cache = Cache::new(CacheOptions {
        dir: folder.path().to_owned(),
        bytes_max: u64::MAX,
        free_bytes_min: 0,
    });
    match cache.make(&model, &key, 2, &mut |_, _| true) {
        Ok(pack) => model.attach_pack(pack).expect("its own pack"),
        Err(PackError::Nothing) => return eprintln!("nothing of it is packed"),
        Err(error) => panic!("{error}"),
    }
    let mut best = executor(&model, Isa::best(), 2, KvType::F16);
    for chunk in [1, 2, 3, 8, 17, 64, sequence.len()] {
        let actual = run(&mut best, sequence, chunk);
        assert_same(&actual, expected, &format!("packed, chunks of {chunk}"));
    }
    for threads in [1, 3] {
        let mut executor = executor(&model, Isa::best(), threads, KvType::F16);
        let actual = run(&mut executor, sequence, sequence.len());
        assert_same(&actual, expected, &format!("packed, {threads} threads"));
    }
    for isa in supported().filter(|&isa| isa != Isa::best()) {
        let length = if isa == Isa::Scalar {
            scalar_length
        } else {
            sequence.len()
        };
        for chunk in [1, length] {
            let actual = run(
                &mut executor(&model, isa, 2, KvType::F16),
                &sequence[..length],
                chunk,
            );
            assert_same(&actual, expected, &format!("packed, {}", isa.name()));
        }
    }
    assert!(model.pack().is_some(), "the pack was used to the end");
}

/// Appends tokens and gives the logits of all of them.
fn append(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Rows {
    let chunk = Chunk {
        sequence,
        tokens,
        logits: LogitsFor::All,
    };
    let logits = executor.forward(&mut [chunk]).expect("a valid batch");
    (0..logits.row_count())
        .map(|row| bits(logits.row(row)))
        .collect()
}

/// Continues from remembered pages, and from a fork in the middle of a page.
fn check_remembered(executor: &mut Executor, sequence: &[u32], expected: &Rows) {
    let mut remembered = executor.sequence_of(sequence);
    let known = (sequence.len() - 1) / PAGE * PAGE;
    assert_eq!(remembered.len(), known, "what was run is remembered");
    let middle = known + (sequence.len() - known) / 2;
    let actual = append(executor, &mut remembered, &sequence[known..middle]);
    assert_same(
        &actual,
        &expected[known..middle].to_vec(),
        "after remembered pages",
    );
    let mut fork = executor.fork(&remembered).expect("a page");
    // The fork writes something else into its copy of the page; the first must not see it.
    append(executor, &mut fork, &[sequence[0], sequence[1]]);
    let actual = append(executor, &mut remembered, &sequence[middle..]);
    assert_same(&actual, &expected[middle..].to_vec(), "beside a fork");
    fork.truncate(middle);
    let actual = append(executor, &mut fork, &sequence[middle..]);
    assert_same(&actual, &expected[middle..].to_vec(), "after a fork");
}

/// What generations put out, and how much of their prompts was remembered.
fn answers(
    model: &Arc<Model>,
    prefix_cache: bool,
    kv_type: KvType,
    prompts: &[&[u32]],
) -> Vec<(Vec<Said>, usize)> {
    let options = ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: 256,
        kv_tokens_max: 512,
        kv_type,
        prefix_cache,
        ..ExecutorOptions::default()
    };
    let executor = Executor::new(Arc::clone(model), &options).expect("a valid executor");
    let mut generator = Generator::new(executor, GeneratorOptions::default());
    let mut answers = Vec::new();
    for prompt in prompts {
        let request = GenerationRequest {
            prompt: prompt.to_vec(),
            tokens_max: Some(8),
            sampling: SamplingOptions {
                // Even the tiny models are sure of themselves.
                temperature: 20.0,
                seed: 3,
                ..SamplingOptions::default()
            },
            logprobs: Some(2),
            ignore_end: true,
            ..GenerationRequest::default()
        };
        let two = NonZero::new(2).expect("two");
        let ids: Vec<_> = generator
            .start_group(request, two)
            .expect("there is room")
            .collect();
        let mut said = vec![Vec::new(); ids.len()];
        let mut cached = 0;
        while generator.active() > 0 {
            let stepped = generator.step(&mut |id, event| {
                let choice = ids.iter().position(|&known| known == id).expect("known");
                match event {
                    Event::Text { tokens, .. } => said[choice].extend(tokens.iter().map(|token| {
                        (
                            token.id,
                            token.logprob.to_bits(),
                            token.top[1].logprob.to_bits(),
                        )
                    })),
                    Event::Finished { usage, .. } => cached = usage.cached_tokens,
                    Event::PromptDone { .. } => {}
                }
            });
            stepped.expect("a step");
        }
        answers.extend(said.into_iter().map(|said| (said, cached)));
        let free = generator.executor().kv_tokens_free();
        assert_eq!(free, 512, "what is only remembered is free");
    }
    answers
}

/// A token, and the bits of two log probabilities.
type Said = (u32, u32, u32);

/// Answers are the same bytes with and without the prefix cache, whatever was asked before.
fn check_answers(model: &Arc<Model>, sequence: &[u32], kv_type: KvType) {
    let other = tokens(model, sequence.len(), 9);
    let first_page = &sequence[..PAGE + 3];
    let prompts = [
        sequence, first_page, &other, sequence, first_page, &other, sequence,
    ];
    let without = answers(model, false, kv_type, &prompts);
    let with = answers(model, true, kv_type, &prompts);
    assert!(without.iter().all(|&(_, cached)| cached == 0));
    let known = |length: usize| (length - 1) / PAGE * PAGE;
    let long = known(sequence.len());
    let expected = [0, PAGE, 0, long, PAGE, long, long];
    for (index, ((with, cached), (without, _))) in with.iter().zip(&without).enumerate() {
        // The first page that differs may have something in common with one that is known.
        let least = expected[index / 2];
        assert!(
            (least..least + PAGE).contains(cached),
            "prompt {}: {cached}",
            index / 2
        );
        assert_eq!(with, without, "prompt {}, choice {}", index / 2, index % 2);
    }
    if sequence.len() > 2 * PAGE {
        // All but its last token is the beginning of a page.
        assert_eq!(with[2].1, first_page.len() - 1);
    }
    assert_ne!(with[0].0, with[1].0, "two choices of a prompt");
}

/// Gives up before every layer in turn, and then goes on as if nothing had been.
fn check_interrupted(executor: &mut Executor, sequence: &[u32], expected: &Rows) {
    let mut interrupted = executor.sequence();
    let (start, middle) = sequence.split_at(sequence.len() / 2);
    append(executor, &mut interrupted, start);
    let free = executor.kv_tokens_free();
    for layers in 0usize.. {
        let left = Cell::new(layers);
        let chunk = Chunk {
            sequence: &mut interrupted,
            tokens: middle,
            logits: LogitsFor::All,
        };
        let out_of_layers = || left.replace(left.get().saturating_sub(1)) == 0;
        match executor.forward_unless(&mut [chunk], &out_of_layers) {
            Err(error) => assert_eq!(error, ForwardError::Interrupted),
            Ok(logits) => {
                let actual: Rows = (0..logits.row_count())
                    .map(|row| bits(logits.row(row).all().expect("they are here")))
                    .collect();
                let expected = expected[start.len()..].to_vec();
                assert_same(&actual, &expected, "after interruptions");
                assert!(layers > 0, "the first layer is asked for too");
                return;
            }
        }
        assert_eq!(interrupted.len(), start.len());
        assert_eq!(executor.kv_tokens_free(), free, "no page is kept");
    }
}

/// Reads prompts of which no logits, or only the last, are wanted, and then looks at what follows.
fn check_unwanted(executor: &mut Executor, sequence: &[u32], expected: &Rows) {
    let (start, end) = sequence.split_at(sequence.len() - 2);
    for logits in [LogitsFor::None, LogitsFor::Last] {
        let mut quiet = executor.sequence();
        let chunk = Chunk {
            sequence: &mut quiet,
            tokens: start,
            logits,
        };
        let given = executor.forward(&mut [chunk]).expect("a valid batch");
        if logits == LogitsFor::Last {
            let last = vec![bits(given.row(0))];
            assert_same(&last, &vec![expected[start.len() - 1].clone()], "the last");
        }
        let actual = append(executor, &mut quiet, end);
        assert_same(&actual, &expected[start.len()..].to_vec(), "after a prompt");
    }
}

/// Runs the sequence beside two others, each at its own pace.
fn check_together(executor: &mut Executor, sequence: &[u32], expected: &Rows) {
    let model = Arc::clone(executor.model());
    let others = [
        tokens(&model, sequence.len(), 1),
        tokens(&model, 2 * sequence.len(), 2),
    ];
    let (mut first, mut second, mut third) = (
        executor.sequence(),
        executor.sequence(),
        executor.sequence(),
    );
    for (index, &token) in sequence.iter().enumerate() {
        let mut chunks = [
            Chunk {
                sequence: &mut second,
                tokens: &others[0][index..=index],
                logits: LogitsFor::Last,
            },
            Chunk {
                sequence: &mut first,
                tokens: &[token],
                logits: LogitsFor::Last,
            },
            Chunk {
                sequence: &mut third,
                tokens: &others[1][2 * index..2 * index + 2],
                logits: LogitsFor::None,
            },
        ];
        let logits = executor.forward(&mut chunks).expect("a valid batch");
        assert_eq!(logits.row_count(), 2);
        let actual = vec![bits(logits.row(1))];
        assert_same(
            &actual,
            &vec![expected[index].clone()],
            "beside other sequences",
        );
    }
}

/// Attention takes positions in chunks of 256: sequences of several, with windows that begin within them.
#[test]
fn sequences_of_several_chunks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for architecture in Architecture::ALL {
        if !["llama", "gemma3"].contains(&architecture.title) {
            continue;
        }
        let model = TinyModel {
            architecture,
            layer_count: architecture.layer_count,
            embedding: 64,
            feed_forward: 64,
            head_dim: Some(32),
            ..TinyModel::default()
        };
        model.write(&path).expect("writable");
        let model = Arc::new(Model::load(&path).expect("a sound model"));
        let sequence = tokens(&model, 510, 0);
        for kv_type in KvType::ALL {
            let mut best = executor(&model, Isa::best(), 2, kv_type);
            let expected = run(&mut best, &sequence, 1);
            for (isa, threads, chunk) in [
                (Isa::best(), 2, 256),
                (Isa::best(), 3, 5),
                (Isa::best(), 1, 100),
                (Isa::Scalar, 2, 256),
            ] {
                let actual = run(
                    &mut executor(&model, isa, threads, kv_type),
                    &sequence,
                    chunk,
                );
                let context = format!("{} {threads} threads by {chunk}", isa.name());
                assert_same(&actual, &expected, &context);
            }
        }
    }
}

/// Little enough for an emulated processor: a layer of a few formats, packed and not, in every instruction set there is.
#[test]
fn instruction_sets_agree_on_a_few_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for weights in [
        TensorType::F16,
        TensorType::Q4_0,
        TensorType::Q8_0,
        TensorType::Q4K,
        TensorType::Q6K,
    ] {
        let model = TinyModel {
            embedding: 256,
            feed_forward: 256,
            layer_count: 1,
            weights,
            ..TinyModel::default()
        };
        model.write(&path).expect("writable");
        let model = Arc::new(Model::load(&path).expect("a sound model"));
        let sequence = tokens(&model, 10, 0);
        for kv_type in KvType::ALL {
            let expected = run(
                &mut executor(&model, Isa::best(), 1, kv_type),
                &sequence,
                10,
            );
            for isa in supported() {
                let mut executor = executor(&model, isa, 2, kv_type);
                for chunk in [1, 10] {
                    let actual = run(&mut executor, &sequence, chunk);
                    let context = format!("{} {} by {chunk}", weights.name(), isa.name());
                    assert_same(&actual, &expected, &context);
                }
            }
            if kv_type == KvType::F16 {
                check_packed(&path, &sequence, &expected, 10);
            }
        }
    }
}

#[test]
fn tiny_models_of_every_format() {
    let folder = tempfile::tempdir().expect("a folder");
    for weights in TensorType::ALL {
        // Tying only changes which matrix is the output.
        for tied in [true, false]
            .into_iter()
            .take(if weights == TensorType::Q4_0 { 2 } else { 1 })
        {
            let path = folder.path().join("model.gguf");
            let model = TinyModel {
                embedding: 256,
                feed_forward: 512,
                weights,
                tied,
                ..TinyModel::default()
            };
            model.write(&path).expect("writable");
            check(&path, 130, 130);
        }
    }
}

#[test]
fn tiny_models_of_every_architecture() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for architecture in Architecture::ALL {
        let model = TinyModel {
            architecture,
            layer_count: architecture.layer_count,
            embedding: 64,
            feed_forward: 96,
            head_dim: Some(32),
            ..TinyModel::default()
        };
        // Rows that are whole blocks of nothing, heads that are not whole vectors.
        let odd = TinyModel {
            embedding: 52,
            feed_forward: 76,
            head_count: 3,
            head_count_kv: 1,
            head_dim: Some(18),
            ..model.clone()
        };
        for (model, weights) in [
            (&model, TensorType::Q4_0),
            (&model, TensorType::Q8_0),
            (&odd, TensorType::F16),
        ] {
            let model = TinyModel {
                weights,
                ..model.clone()
            };
            model.write(&path).expect("writable");
            eprintln!("{} in {}", architecture.title, weights.name());
            check(&path, 80, 80);
        }
    }
}

#[test]
fn the_model_of_the_environment() {
    let Some(path) = std::env::var_os("ANDON_TEST_MODEL") else {
        eprintln!("skipped: ANDON_TEST_MODEL names no model");
        return;
    };
    check(Path::new(&path), 80, 12);
}

#[test]
fn a_truncated_sequence_continues_as_if_the_rest_had_never_been() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    TinyModel::default().write(&path).expect("writable");
    let model = Arc::new(Model::load(&path).expect("a sound model"));
    let mut executor = executor(&model, Isa::best(), 2, KvType::F16);
    let sequence = tokens(&model, 140, 0);
    let expected = run(&mut executor, &sequence, 140);
    let mut cached = executor.sequence();
    let mut wrong = sequence[..70].to_vec();
    wrong.extend(tokens(&model, 60, 5));
    let chunk = Chunk {
        sequence: &mut cached,
        tokens: &wrong,
        logits: LogitsFor::None,
    };
    executor.forward(&mut [chunk]).expect("a valid batch");
    cached.truncate(70);
    let chunk = Chunk {
        sequence: &mut cached,
        tokens: &sequence[70..],
        logits: LogitsFor::All,
    };
    let logits = executor.forward(&mut [chunk]).expect("a valid batch");
    let actual: Rows = (0..logits.row_count())
        .map(|row| bits(logits.row(row)))
        .collect();
    assert_same(&actual, &expected[70..].to_vec(), "after truncation");
}
