//! Model files with something wrong in them, many of them: each is refused or runs, and none panics, hangs, or takes
//! more memory than is stated.
//!
//! `ANDON_MUTATIONS` says how many cases are run, `ANDON_MUTATIONS_FROM` the number of the first (so that a long run
//! can go on where it ended), `ANDON_MUTATIONS_JOBS` how many at once. A case is its number: to look at one again, run
//! it alone. See `cargo xtask mutate`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use andon_engine::embed::{Embedder, EmbedderOptions};
use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{ChatInput, ChatMessage, ChatTemplate, Special, Tokenizer};
use andon_engine::{
    Chunk, Executor, ExecutorOptions, Files, LoadError, LoadOptions, LogitsFor, Model,
};
use andon_os::heap::{self, Counting};
use andon_tests::mutate::{Draw, Sound};
use andon_tests::tiny_encoder::{Family, TinyEncoder};
use andon_tests::tiny_model::{Architecture, TensorType, TinyModel};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Cases of a plain test run.
const CASES: u64 = 3000;

/// A case that takes longer hangs: sound ones take a millisecond, and debug builds on busy machines a second.
const HANG: Duration = Duration::from_secs(120);

/// Tokens of a batch, and of the KV cache; small, so that what the cases ask for is what the file asks for.
const BATCH_TOKENS: usize = 8;
const KV_TOKENS: usize = 64;

/// Texts that tokenizers stumble over.
const TEXTS: [&str; 3] = [
    "Hello, the answer is 42.\n\n  ",
    "<|im_start|>\u{0}é\u{1F600}\u{301}   \t'll 123456",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

fn sound_files() -> Vec<Sound> {
    let mut files = Vec::new();
    for weights in TensorType::ALL {
        let whole = |width: usize| width.next_multiple_of(weights.block_elements()).max(32);
        let model = TinyModel {
            layer_count: 1,
            embedding: whole(64),
            feed_forward: whole(64),
            head_count: 2,
            head_count_kv: 1,
            weights,
            tied: files.len().is_multiple_of(2),
            ..TinyModel::default()
        };
        files.push(Sound::new(model.bytes()));
    }
    for architecture in Architecture::ALL {
        let model = TinyModel {
            architecture,
            layer_count: architecture.layer_count.min(2),
            embedding: 64,
            feed_forward: 64,
            head_count: 2,
            head_count_kv: 1,
            weights: TensorType::Q8_0,
            ..TinyModel::default()
        };
        files.push(Sound::new(model.bytes()));
    }
    for family in Family::ALL {
        let encoder = TinyEncoder {
            family,
            layer_count: 2,
            ..TinyEncoder::default()
        };
        files.push(Sound::new(encoder.bytes()));
    }
    files
}

/// How far a case came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    NoFile,
    NoWeights,
    NoTokenizer,
    NoExecutor,
    Ran,
}

/// Loads the file and does a little of everything with it.
fn try_out(bytes: &[u8]) -> Outcome {
    let files = Files::of_bytes(Path::new("mutated"), bytes).expect("memory for a small file");
    let model = match Model::from_files(files, &LoadOptions::default()) {
        Ok(model) => Arc::new(model),
        Err(LoadError::Gguf { .. } | LoadError::Split { .. }) => return Outcome::NoFile,
        Err(LoadError::Weights { .. }) => return Outcome::NoWeights,
        Err(_) => return Outcome::NoTokenizer,
    };
    let tokenizer = model.tokenizer();
    let mut tokens = Vec::new();
    for text in TEXTS {
        for special in [Special::Parse, Special::Plain] {
            tokens = tokenizer.encode_prompt(text, special);
            let count = model.info().vocabulary_count;
            assert!(tokens.iter().all(|&token| (token as usize) < count));
            tokenizer.decode(&tokens);
        }
    }
    if let Some(template) = model.chat_template() {
        let conversation = ["user", "assistant", "user"].map(|role| ChatMessage::new(role, "Hi"));
        // A template may refuse a conversation.
        drop(template.render(&ChatInput {
            messages: &conversation,
            add_generation_prompt: true,
            ..ChatInput::default()
        }));
    }
    let options = ExecutorOptions {
        threads: Some(1),
        batch_tokens_max: BATCH_TOKENS,
        kv_tokens_max: KV_TOKENS,
        ..ExecutorOptions::default()
    };
    tokens.resize(4, 0);
    let options_of_embedder = EmbedderOptions {
        threads: Some(1),
        context_tokens_max: Some(KV_TOKENS),
        ..EmbedderOptions::default()
    };
    if let Ok(mut embedder) = Embedder::new(Arc::clone(&model), &options_of_embedder) {
        // Damaged weights give no vector.
        drop(embedder.embed(&[&tokens, &tokens[..1]]));
        return Outcome::Ran;
    }
    let Ok(mut executor) = Executor::new(Arc::clone(&model), &options) else {
        return Outcome::NoExecutor;
    };
    let mut sequence = executor.sequence();
    for tokens in [&tokens[..3], &tokens[3..]] {
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens,
            logits: LogitsFor::Last,
        };
        match executor.forward(&mut [chunk]) {
            Ok(logits) => assert_eq!(logits.row(0).len(), model.info().vocabulary_count),
            // A context shorter than that.
            Err(_) => return Outcome::NoExecutor,
        }
    }
    Outcome::Ran
}

/// What may be held at once while a file of so many bytes is loaded and run as above. Less than what [`Model`] states
/// for loading, since the sound files have a small template and few special tokens.
fn heap_bytes_max(file_bytes: usize) -> usize {
    let bytes = (8 << 20) + 32 * file_bytes;
    assert!(bytes <= Model::heap_bytes_max(file_bytes));
    bytes
}

fn case(files: &[Sound], seed: u64) -> (Outcome, usize, usize) {
    let mut draw = Draw::new(seed);
    let file = &files[draw.below(files.len())];
    let other = &files[draw.below(files.len())];
    let bytes = file.changed(other, &mut draw);
    let (outcome, most) = heap::measure(heap_bytes_max(bytes.len()), seed, || try_out(&bytes));
    (outcome, most, bytes.len())
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        let number = text.replace('_', "");
        number
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

/// What a job is at: the case, and when it began, in milliseconds of the run.
#[derive(Default)]
struct At {
    case: AtomicU64,
    began_ms: AtomicU64,
}

#[test]
fn mutated_files_do_no_harm() {
    let from = variable("ANDON_MUTATIONS_FROM").unwrap_or(0);
    let cases = variable("ANDON_MUTATIONS").unwrap_or(CASES);
    let jobs = variable("ANDON_MUTATIONS_JOBS").unwrap_or(2).max(1);
    let files = sound_files();
    for file in &files {
        assert_eq!(try_out(file.bytes()), Outcome::Ran, "the sound files run");
    }
    let epoch = Instant::now();
    let now_ms = || u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
    let next = AtomicU64::new(from);
    let (done, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let outcomes: [AtomicU64; 5] = Default::default();
    let at: Vec<At> = (0..jobs).map(|_| At::default()).collect();
    std::thread::scope(|scope| {
        let jobs: Vec<_> = at
            .iter()
            .map(|at| {
                let (files, next, done, most, outcomes) = (&files, &next, &done, &most, &outcomes);
                scope.spawn(move || {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= from + cases {
                            at.began_ms.store(u64::MAX, Ordering::Relaxed);
                            return;
                        }
                        at.case.store(seed, Ordering::Relaxed);
                        at.began_ms.store(now_ms(), Ordering::Relaxed);
                        let tried = std::panic::catch_unwind(|| case(files, seed));
                        let Ok((outcome, bytes, _)) = tried else {
                            eprintln!("case {seed} panicked");
                            std::process::abort();
                        };
                        most.fetch_max(bytes as u64, Ordering::Relaxed);
                        outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
                        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                        if done.is_multiple_of(50_000) {
                            eprintln!("{done} of {cases} cases, {} s", now_ms() / 1000);
                        }
                    }
                })
            })
            .collect();
        while !jobs.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            for at in &at {
                let began_ms = at.began_ms.load(Ordering::Relaxed);
                if Duration::from_millis(now_ms().saturating_sub(began_ms)) > HANG {
                    eprintln!("case {} hangs", at.case.load(Ordering::Relaxed));
                    std::process::abort();
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let outcomes = outcomes.map(|count| count.load(Ordering::Relaxed));
    eprintln!(
        "cases {from} to {}: {outcomes:?} [no file, no weights, no tokenizer, no executor, ran], at most {} heap bytes, {} s",
        from + cases,
        most.load(Ordering::Relaxed),
        now_ms() / 1000
    );
    assert_eq!(outcomes.iter().sum::<u64>(), cases);
    if cases >= CASES {
        let [file, weights, tokenizer, _, ran] = outcomes;
        assert!(
            [file, weights, tokenizer, ran]
                .iter()
                .all(|&count| count > cases / 100),
            "every way out was taken: {outcomes:?}"
        );
    }
}

/// A file of metadata alone.
#[derive(Default)]
struct Draft {
    pairs: u64,
    metadata: Vec<u8>,
    tensors: u64,
    directory: Vec<u8>,
}

impl Draft {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs += 1;
        self.metadata.extend(text(key.as_bytes()));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
    }

    fn str(&mut self, key: &str, value: &str) {
        self.put(key, 8, &text(value.as_bytes()));
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, elements: &[u8]) {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((count as u64).to_le_bytes());
        value.extend(elements);
        self.put(key, 9, &value);
    }

    fn strs<T: AsRef<str>>(&mut self, key: &str, values: &[T]) {
        let elements: Vec<u8> = values
            .iter()
            .flat_map(|value| text(value.as_ref().as_bytes()))
            .collect();
        self.array(key, 8, values.len(), &elements);
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.pairs.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.directory);
        if self.tensors > 0 {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.resize(bytes.len() + self.tensors as usize * 32, 0);
        }
        bytes
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// Short words, all different.
fn word(mut number: usize) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut word = String::new();
    loop {
        word.push(char::from(LETTERS[number % 64]));
        number /= 64;
        if number == 0 {
            return word;
        }
    }
}

/// A vocabulary whose tokens are of `kind`.
fn vocabulary<T: AsRef<str>>(model: &str, tokens: &[T], kind: i32) -> Draft {
    let mut draft = Draft::default();
    draft.str("tokenizer.ggml.model", model);
    draft.str("tokenizer.ggml.pre", "gpt-2");
    draft.strs("tokenizer.ggml.tokens", tokens);
    let kinds: Vec<u8> = tokens.iter().flat_map(|_| kind.to_le_bytes()).collect();
    draft.array("tokenizer.ggml.token_type", 5, tokens.len(), &kinds);
    draft
}

/// Files that ask for as much as they can with as few bytes as they can.
fn costly_files() -> Vec<(&'static str, Vec<u8>)> {
    let mut files = Vec::new();
    let mut draft = Draft::default();
    (0..60_000).for_each(|number| draft.put(&word(number), 7, &[1]));
    files.push(("many metadata entries", draft.finish()));

    let mut draft = Draft::default();
    for number in 0..100_000_u64 {
        draft.tensors += 1;
        draft
            .directory
            .extend(text(word(number as usize).as_bytes()));
        draft.directory.extend(1_u32.to_le_bytes());
        draft.directory.extend(1_u64.to_le_bytes());
        draft.directory.extend(0_u32.to_le_bytes());
        draft.directory.extend((number * 32).to_le_bytes());
    }
    files.push(("many tensors", draft.finish()));

    let words: Vec<String> = (0..300_000).map(word).collect();
    let mut draft = vocabulary("gpt2", &words, 1);
    let merges: Vec<String> = (64..300_000)
        .map(|number| {
            let word = word(number);
            let (left, right) = word.split_at(1);
            format!("{left} {right}")
        })
        .collect();
    draft.strs("tokenizer.ggml.merges", &merges);
    files.push(("many tokens and merges", draft.finish()));

    let mut draft = vocabulary("llama", &words, 1);
    let scores: Vec<u8> = (0..words.len()).flat_map(|_| 0_f32.to_le_bytes()).collect();
    draft.array("tokenizer.ggml.scores", 6, words.len(), &scores);
    files.push(("many tokens with scores", draft.finish()));

    for (name, model) in [
        ("many pieces", "t5"),
        ("many words", "bert"),
        ("a trie", "rwkv"),
    ] {
        let mut words = words.clone();
        if model == "bert" {
            words[..3].clone_from_slice(&["[UNK]", "[CLS]", "[SEP]"].map(str::to_owned));
        }
        let mut draft = vocabulary(model, &words, 1);
        draft.array("tokenizer.ggml.scores", 6, words.len(), &scores);
        draft.put("tokenizer.ggml.unknown_token_id", 4, &0_u32.to_le_bytes());
        draft.put("tokenizer.ggml.eos_token_id", 4, &1_u32.to_le_bytes());
        draft.put("tokenizer.ggml.cls_token_id", 4, &1_u32.to_le_bytes());
        draft.put("tokenizer.ggml.seperator_token_id", 4, &2_u32.to_le_bytes());
        files.push((name, draft.finish()));
    }
    for model in ["t5", "rwkv", "llama"] {
        let mut draw = Draw::new(2);
        let words: Vec<String> = (0..500)
            .map(|_| {
                (0..20_000)
                    .map(|_| char::from(b'a' + draw.below(26) as u8))
                    .collect()
            })
            .collect();
        let mut draft = vocabulary(model, &words, 1);
        draft.array(
            "tokenizer.ggml.scores",
            6,
            words.len(),
            &scores[..words.len() * 4],
        );
        draft.put("tokenizer.ggml.unknown_token_id", 4, &0_u32.to_le_bytes());
        files.push(("long tokens", draft.finish()));
    }
    for (name, count) in [
        ("too many special tokens", words.len()),
        ("many special tokens", 130_000),
    ] {
        let mut draft = vocabulary("gpt2", &words[..count], 4);
        draft.strs::<&str>("tokenizer.ggml.merges", &[]);
        files.push((name, draft.finish()));
    }
    for (name, count, length) in [
        ("long special tokens", 16, 60_000),
        ("one long special token", 1, 1_000_000),
        ("special tokens just within bounds", 8, 65_000),
    ] {
        let mut draw = Draw::new(1);
        let tokens: Vec<String> = (0..count)
            .map(|_| {
                (0..length)
                    .map(|_| char::from(b'a' + draw.below(26) as u8))
                    .collect()
            })
            .collect();
        let mut draft = vocabulary("gpt2", &tokens, 4);
        draft.strs::<&str>("tokenizer.ggml.merges", &[]);
        files.push((name, draft.finish()));
    }
    let mut draft = Draft::default();
    draft.str("tokenizer.ggml.model", "gpt2");
    draft.str("tokenizer.ggml.pre", "gpt-2");
    let mut draw = Draw::new(3);
    let tokens: Vec<String> = (0..8)
        .map(|_| {
            (0..65_000)
                .map(|_| char::from(b'a' + draw.below(26) as u8))
                .collect()
        })
        .collect();
    draft.strs("tokenizer.ggml.tokens", &tokens);
    let kinds: Vec<u8> = tokens.iter().flat_map(|_| 4_i32.to_le_bytes()).collect();
    draft.array("tokenizer.ggml.token_type", 5, tokens.len(), &kinds);
    draft.strs::<&str>("tokenizer.ggml.merges", &[]);
    draft.str(
        "tokenizer.chat_template",
        &format!("{{{{ [{}] }}}}", "1,".repeat(520_000)),
    );
    files.push(("all that is bounded by itself", draft.finish()));
    for (name, template) in [
        ("a long template", "{{ a }}".repeat(140_000)),
        ("a deep template", "{% if a %}".repeat(100_000)),
        ("a template of names", "{% set a=b %}".repeat(80_000)),
        (
            "a nested expression",
            format!("{{{{ {}1{} }}}}", "(".repeat(500_000), ")".repeat(500_000)),
        ),
        ("a list", format!("{{{{ [{}] }}}}", "1,".repeat(500_000))),
    ] {
        let mut draft = vocabulary("gpt2", &["a", "b"], 1);
        draft.strs::<&str>("tokenizer.ggml.merges", &[]);
        draft.str("tokenizer.chat_template", &template);
        files.push((name, draft.finish()));
    }
    files
}

#[test]
fn costly_files_keep_to_the_limit() {
    for (name, bytes) in costly_files() {
        let began = Instant::now();
        let load = || -> Result<(), String> {
            let text = |error: &dyn std::fmt::Display| error.to_string();
            let gguf = Gguf::parse(&bytes).map_err(|error| text(&error))?;
            let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|error| text(&error))?;
            ChatTemplate::from_gguf(&gguf, &tokenizer).map_err(|error| text(&error))?;
            Ok(())
        };
        let (outcome, most) = heap::measure(usize::MAX, 0, load);
        let limit = Model::heap_bytes_max(bytes.len());
        eprintln!(
            "{name}: {} bytes, {most} of heap ({}% of the limit), {} ms: {outcome:.100?}",
            bytes.len(),
            most * 100 / limit,
            began.elapsed().as_millis()
        );
        assert!(
            most <= limit,
            "{name}: {most} bytes of heap for {}",
            bytes.len()
        );
    }
}
