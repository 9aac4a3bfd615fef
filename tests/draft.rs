//! Whatever a draft model guesses, answers are those of the model alone, and nothing is left behind in either KV cache.

#![forbid(unsafe_code)]

use andon_engine::generate::{
    Event, FinishReason, GenerationId, GenerationRequest, Generator, GeneratorOptions,
};
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::kv::PAGE;
use andon_engine::sample::SamplingOptions;
use andon_engine::speculate::{DraftError, DraftModel, Drafter, PassCosts, Sources, Wanted};
use andon_engine::{Chunk, Executor, ExecutorOptions, LoadOptions, LogitsFor, Model};
use andon_tests::tiny_model::TinyModel;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The model, and one of the same vocabulary with other weights.
fn models(folder: &Path) -> [Arc<Model>; 2] {
    [1, 2].map(|seed| {
        let path = folder.join(format!("{seed}.gguf"));
        let tiny = TinyModel {
            seed,
            ..TinyModel::default()
        };
        tiny.write(&path).expect("writable");
        Arc::new(Model::load(&path).expect("a sound model"))
    })
}

fn options(pages: usize) -> ExecutorOptions {
    ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: 64,
        kv_tokens_max: pages * PAGE,
        ..ExecutorOptions::default()
    }
}

/// How much more work the draft says that it did, so that its guesses seem to cost nothing.
const FAST: usize = 1000;

/// A draft whose KV cache can be looked at while a generator has it.
#[derive(Clone, Debug)]
struct Seen(Arc<Mutex<DraftModel>>);

impl Seen {
    fn free(&self) -> usize {
        self.0.lock().expect("sound").executor().kv_tokens_free()
    }
    fn has_same_vocabulary(&self) -> bool {
        self.0.lock().expect("sound").has_same_vocabulary()
    }
}

impl Drafter for Seen {
    fn missing(&self, id: u64, text: &[u32]) -> Option<usize> {
        self.0.lock().expect("sound").missing(id, text)
    }
    fn read(&mut self, beside: Option<&mut Executor>, id: u64, text: &[u32]) -> usize {
        FAST * self.0.lock().expect("sound").read(beside, id, text)
    }
    fn draft(&mut self, beside: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        FAST * self.0.lock().expect("sound").draft(beside, wanted)
    }
    fn forget(&mut self, id: u64) {
        self.0.lock().expect("sound").forget(id);
    }
}

/// A generator with a draft of `pages`, which it takes to cost next to nothing.
fn generator(model: &Arc<Model>, draft: Option<(&Arc<Model>, usize)>) -> (Generator, Option<Seen>) {
    let executor = Executor::new(Arc::clone(model), &options(64)).expect("a valid executor");
    let draft = draft.map(|(draft, pages)| {
        let options = ExecutorOptions {
            prefix_cache: true,
            ..options(pages)
        };
        let draft = DraftModel::new(Arc::clone(draft), &executor, &options).expect("a draft");
        assert!(draft.bytes() > 0);
        Seen(Arc::new(Mutex::new(draft)))
    });
    let options = GeneratorOptions {
        parallel_max: 6,
        prefill_chunk_tokens: 50,
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::new(executor, options);
    generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
    if let Some(draft) = &draft {
        generator.set_drafter(Box::new(draft.clone()), 0.0);
    }
    (generator, draft)
}

fn request(number: usize, vocabulary: usize) -> GenerationRequest {
    let token = |at: usize| ((at * 7919 + number % 3 * 104_729 + 3) % vocabulary) as u32;
    GenerationRequest {
        prompt: (0..10 + number * 37).map(token).collect(),
        tokens_max: Some(20 + number * 7),
        sampling: SamplingOptions {
            temperature: [0.0, 15.0][number % 2],
            seed: number as u64,
            repeat_penalty: [1.0, 1.1][number / 2 % 2],
            ..SamplingOptions::default()
        },
        logprobs: number.is_multiple_of(3).then_some(0),
        ignore_end: true,
        sources: Sources {
            model: true,
            ..Sources::default()
        },
        ..GenerationRequest::default()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    logprobs: Vec<u32>,
    end: Option<FinishReason>,
}

/// Runs requests side by side, and cancels the second after some steps if `cancels`. Returns the answers, and how many
/// tokens were guessed and accepted.
fn run(generator: &mut Generator, cancels: bool) -> (Vec<Answer>, usize, usize) {
    let vocabulary = generator.executor().model().info().vocabulary_count;
    run_requests(generator, cancels, |number| request(number, vocabulary))
}

/// The same for other requests.
fn run_requests(
    generator: &mut Generator,
    cancels: bool,
    request: impl Fn(usize) -> GenerationRequest,
) -> (Vec<Answer>, usize, usize) {
    let mut ids: Vec<GenerationId> = Vec::new();
    for number in 0..4 {
        let count = NonZero::new(if number == 3 { 3 } else { 1 }).expect("at least one");
        let started = generator.start_group(request(number), count);
        ids.extend(started.expect("a start"));
    }
    let mut answers: BTreeMap<GenerationId, Answer> = BTreeMap::new();
    let (mut guessed, mut accepted) = (0, 0);
    for round in 0.. {
        if generator.active() == 0 {
            break;
        }
        if cancels && round == 3 {
            assert!(generator.cancel(ids[1]));
        }
        let stepped = generator.step(&mut |id, event| {
            let answer = answers.entry(id).or_default();
            match event {
                Event::PromptDone { .. } => {}
                Event::Text { ids, tokens, .. } => {
                    answer.ids.extend_from_slice(ids);
                    let bits = tokens.iter().map(|token| token.logprob.to_bits());
                    answer.logprobs.extend(bits);
                }
                Event::Finished { reason, usage, .. } => {
                    answer.end = Some(reason);
                    guessed += usage.guessed_tokens;
                    accepted += usage.accepted_tokens;
                }
            }
        });
        stepped.expect("a step");
    }
    let answers = ids.iter().map(|id| answers.remove(id).expect("an answer"));
    (answers.collect(), guessed, accepted)
}

#[test]
fn a_draft_changes_no_answer_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let [model, other] = models(folder.path());
    let (expected, none, _) = run(&mut generator(&model, None).0, false);
    assert_eq!(none, 0);
    // The last has no room for all of the prompts.
    for (draft, pages) in [(&model, 64), (&other, 64), (&model, 4)] {
        for cancels in [false, true] {
            let (mut generator, seen) = generator(&model, Some((draft, pages)));
            let free = seen.as_ref().map(Seen::free);
            let (answers, guessed, accepted) = run(&mut generator, cancels);
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                if cancels && answer.end == Some(FinishReason::Cancelled) {
                    assert_eq!(index, 1);
                    assert_eq!(answer.ids, expected.ids[..answer.ids.len()]);
                } else {
                    assert_eq!(answer, expected);
                }
            }
            assert!(guessed > 10, "{guessed} guesses");
            if Arc::ptr_eq(draft, &model) {
                assert_eq!(accepted, guessed, "a model foresees itself");
            } else {
                assert!(accepted < guessed);
            }
            assert_eq!(seen.as_ref().map(Seen::free), free);
            assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
        }
    }
}

#[test]
fn a_draft_guesses_what_an_answer_may_have() {
    let folder = tempfile::tempdir().expect("a folder");
    let [model, other] = models(folder.path());
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "stops": { "type": "boolean" },
            "codes": { "type": "array", "items": { "type": "integer", "maximum": 99 }, "maxItems": 4 },
        },
        "required": ["name", "stops", "codes"],
        "additionalProperties": false,
    });
    let constraints = [
        Constraint::JsonSchema(schema),
        Constraint::Regex("([a-z]{2,4} ){3,9}".to_owned()),
    ];
    let vocabulary = model.grammar_vocabulary().expect("a vocabulary");
    let grammars = constraints.map(|constraint| {
        let grammar = Grammar::compile(vocabulary, &constraint, 80).expect("it compiles");
        Arc::new(grammar)
    });
    let count = model.info().vocabulary_count;
    let held = |number: usize| GenerationRequest {
        constraint: Some(Arc::clone(&grammars[number % 2])),
        tokens_max: Some(80),
        ignore_end: false,
        // Where it is asked for, what is forced is taken token by token.
        logprobs: (number == 2).then_some(0),
        ..request(number, count)
    };
    let (expected, ..) = run_requests(&mut generator(&model, None).0, false, held);
    for draft in [&model, &other] {
        let (mut generator, seen) = generator(&model, Some((draft, 64)));
        let free = seen.as_ref().map(Seen::free);
        let (answers, guessed, accepted) = run_requests(&mut generator, false, held);
        assert_eq!(answers, expected);
        assert!(guessed > 10, "{guessed} guesses");
        if Arc::ptr_eq(draft, &model) {
            // What a shape bars is not guessed either. Where it closes an answer in time, other tokens are taken.
            assert!(
                accepted * 10 >= guessed * 9,
                "{accepted} of {guessed}: a model foresees itself"
            );
        }
        assert_eq!(seen.as_ref().map(Seen::free), free);
    }
}

#[test]
fn a_draft_of_another_vocabulary_changes_no_answer_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let [model, _] = models(folder.path());
    let (expected, ..) = run(&mut generator(&model, None).0, false);
    for merge_count in [1, 7] {
        let path = folder.path().join("other.gguf");
        let tiny = TinyModel {
            merge_count,
            ..TinyModel::default()
        };
        tiny.write(&path).expect("writable");
        let draft = Arc::new(Model::load(&path).expect("a sound model"));
        for (pages, cancels) in [(64, false), (64, true), (4, false)] {
            let (mut generator, seen) = generator(&model, Some((&draft, pages)));
            assert!(!seen.as_ref().is_some_and(Seen::has_same_vocabulary));
            let free = seen.as_ref().map(Seen::free);
            let (answers, guessed, _) = run(&mut generator, cancels);
            for (answer, expected) in answers.iter().zip(&expected) {
                if cancels && answer.end == Some(FinishReason::Cancelled) {
                    assert_eq!(answer.ids, expected.ids[..answer.ids.len()]);
                } else {
                    assert_eq!(answer, expected);
                }
            }
            assert!(guessed > 10, "{guessed} guesses");
            assert_eq!(seen.as_ref().map(Seen::free), free);
        }
    }
}

/// Every printable character of ASCII, and what merges make of them.
fn printable() -> Vec<u32> {
    let byte = |byte: u8| 3 + u32::from(byte);
    let bytes = (b' '..=b'~').map(byte);
    bytes.chain(259..275).collect()
}

#[test]
fn a_trimmed_draft_guesses_among_its_own_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let [model, _] = models(folder.path());
    let path = folder.path().join("trimmed.gguf");
    let tokens = printable();
    let tiny = TinyModel {
        draft_tokens: Some(tokens.clone()),
        ..TinyModel::default()
    };
    tiny.write(&path).expect("writable");
    let options_of = LoadOptions::default().for_draft();
    let draft = Arc::new(Model::load_with(&path, &options_of).expect("a sound draft"));
    assert_eq!(draft.draft_tokens(), Some(&tokens[..]));
    assert!(draft.bytes_per_token() < model.bytes_per_token());

    // A row has what the whole model says of these tokens.
    let mut whole = Executor::new(Arc::clone(&model), &options(8)).expect("a valid executor");
    let mut trimmed = Executor::beside(&whole, Arc::clone(&draft), &options(8)).expect("a draft");
    let rows = |executor: &mut Executor| -> Vec<Vec<u32>> {
        let mut sequence = executor.sequence();
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens: &[40, 50, 60],
            logits: LogitsFor::Guesses(1),
        };
        let logits = executor.forward(&mut [chunk]).expect("a pass");
        let bits = |row: usize| logits.row(row).iter().map(|logit| logit.to_bits());
        (0..logits.row_count())
            .map(|row| bits(row).collect())
            .collect()
    };
    let (whole, trimmed) = (rows(&mut whole), rows(&mut trimmed));
    assert_eq!(trimmed.len(), 2);
    for (whole, trimmed) in whole.iter().zip(&trimmed) {
        let expected: Vec<u32> = tokens.iter().map(|&id| whole[id as usize]).collect();
        assert_eq!(trimmed, &expected);
    }

    let (expected, ..) = run(&mut generator(&model, None).0, false);
    let (mut generator, seen) = generator(&model, Some((&draft, 64)));
    let free = seen.as_ref().map(Seen::free);
    let (answers, guessed, accepted) = run(&mut generator, false);
    assert_eq!(answers, expected);
    // What is most likely is among its tokens, though what is drawn seldom is.
    assert!(accepted >= 20, "{accepted} of {guessed} guesses were right");
    assert_eq!(seen.as_ref().map(Seen::free), free);
}

/// The file of a trimmed draft with the bytes behind each occurrence of `place` replaced.
fn changed(place: &[u8], skipped: usize, new: &[u8]) -> Vec<u8> {
    let trimmed = TinyModel {
        draft_tokens: Some(printable()),
        ..TinyModel::default()
    };
    let mut bytes = trimmed.bytes();
    let found = |bytes: &[u8], from: usize| {
        let mut windows = bytes[from..].windows(place.len());
        windows.position(|window| window == place)
    };
    let mut from = 0;
    while let Some(at) = found(&bytes, from) {
        let at = from + at + skipped;
        bytes[at..at + new.len()].copy_from_slice(new);
        from = at + new.len();
    }
    bytes
}

#[test]
fn a_trimmed_draft_of_another_vocabulary_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let [model, _] = models(folder.path());
    let executor = Executor::new(Arc::clone(&model), &options(8)).expect("a valid executor");
    let refused = |bytes: Vec<u8>| {
        let path = folder.path().join("other.gguf");
        std::fs::write(&path, bytes).expect("writable");
        let options_of = LoadOptions::default().for_draft();
        let draft = Arc::new(Model::load_with(&path, &options_of).expect("a sound model"));
        DraftModel::new(draft, &executor, &options(8)).err()
    };
    let key = b"tokenizer.ggml.eos_token_id";
    // Behind the key comes the type of its value.
    let end = refused(changed(key, key.len() + 4, &[1, 0, 0, 0]));
    assert!(
        matches!(end, Some(DraftError::Special { name: "end", target, draft: Some(1) }) if target == model.tokenizer().eos()),
        "{end:?}"
    );
    let token = refused(changed(b"<|im_start|>", 0, b"<|im_stArt|>"));
    assert!(
        matches!(&token, Some(DraftError::Token { id: 1, target, draft }) if target == "<|im_start|>" && draft == "<|im_stArt|>"),
        "{token:?}"
    );
    let more = TinyModel {
        fills_gaps: true,
        ..TinyModel::default()
    };
    assert!(
        refused(more.bytes()).is_none(),
        "what is behind all others is no difference"
    );
    let small = ExecutorOptions {
        batch_tokens_max: 8,
        ..options(8)
    };
    let small = DraftModel::new(model, &executor, &small).err();
    assert!(
        matches!(small, Some(DraftError::Batch { tokens: 8 })),
        "{small:?}"
    );
}
