//! Pages on the disk: whatever was written, read, damaged, given up or erased, and whenever the program was ended, answers are
//! those of a program without memory.

use super::{Answer, PAGES, Random, alone, request, step};
use andon_engine::generate::{
    GenerationId, GenerationRequest, Generator, GeneratorOptions, Reading, StartError,
};
use andon_engine::kv::disk::{PageStore, PageStoreOptions};
use andon_engine::kv::{KvType, PAGE};
use andon_engine::{Executor, ExecutorOptions, Model};
use andon_tests::tiny_model::TinyModel;
use std::collections::HashMap;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

const ONE: NonZero<u32> = NonZero::<u32>::MIN;

fn model(folder: &Path) -> Arc<Model> {
    let path = folder.join("model.gguf");
    TinyModel::default().write(&path).expect("writable");
    Arc::new(Model::load(&path).expect("a sound model"))
}

fn bytes_max(executor: &Executor, pages: u64) -> u64 {
    pages * (executor.page_bytes() as u64 + 4096)
}

/// A program's start: a generator that keeps pages in the folder, up to `pages_max` of them.
fn start(
    model: &Arc<Model>,
    kv_type: KvType,
    folder: &Path,
    pages_max: u64,
) -> (Generator, Arc<PageStore>) {
    let options = ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: 128,
        kv_tokens_max: PAGES * PAGE,
        kv_type,
        prefix_cache: true,
        ..ExecutorOptions::default()
    };
    let mut executor = Executor::new(Arc::clone(model), &options).expect("a valid executor");
    let key = model.pack_key().expect("a key");
    let root = executor.page_root(&key).expect("computed");
    let bytes = executor.page_bytes();
    let options = PageStoreOptions {
        dir: folder.to_owned(),
        bytes_max: bytes_max(&executor, pages_max),
        free_bytes_min: 0,
    };
    let store = Arc::new(PageStore::open(options, root, bytes).expect("a folder"));
    executor.keep_pages_in(Arc::clone(&store));
    let options = GeneratorOptions {
        parallel_max: 5,
        prefill_chunk_tokens: 50,
        ..GeneratorOptions::default()
    };
    (Generator::new(executor, options), store)
}

/// Writes what is worth it, a few pages at most.
fn write(generator: &Generator, store: &PageStore, most: usize) {
    for _ in 0..most {
        let Some(page) = generator.executor().page_to_keep() else {
            break;
        };
        store.write(&page).expect("there is room");
    }
}

fn ask(generator: &mut Generator, request: &GenerationRequest) -> Answer {
    let id = generator.start(request.clone()).expect("room for one");
    let mut answers = HashMap::new();
    while generator.active() > 0 {
        step(generator, &mut answers);
    }
    answers.remove(&id).expect("an answer")
}

/// A request of so many tokens.
fn of_length(length: usize, tokens_max: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: (0..length as u32).map(|at| at * 31 % 250 + 1).collect(),
        tokens_max: Some(tokens_max),
        logprobs: Some(0),
        ignore_end: true,
        ..GenerationRequest::default()
    }
}

#[test]
fn whatever_happens_to_the_disk_changes_no_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    let vocabulary = model.info().vocabulary_count;
    let pages = folder.path().join("pages");
    let mut random = Random(0xD15C);
    let (mut generator, mut store) = start(&model, KvType::F16, &pages, 8);
    let (mut asked, mut answers) = (Vec::new(), HashMap::new());
    let mut ids: HashMap<GenerationId, usize> = HashMap::new();
    let (mut restored, mut damaged, mut starts) = (0, 0, 0);
    while asked.len() < 300 || generator.active() > 0 {
        if asked.len() < 300 {
            let request = request(&mut random, vocabulary);
            match generator.start(request.clone()) {
                Ok(id) => {
                    ids.insert(id, asked.len());
                    asked.push(request);
                }
                Err(StartError::Busy { .. } | StartError::KvFull { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let mut said = HashMap::new();
        step(&mut generator, &mut said);
        for (id, part) in said {
            let answer: &mut Answer = answers.entry(ids[&id]).or_default();
            answer.said.extend(part.said);
            answer.end = part.end.or(answer.end.take());
            answer.cached = answer.cached.max(part.cached);
        }
        match random.below(20) {
            0..3 => write(&generator, &store, 3),
            3 => store.note_uses(),
            4 if random.below(3) == 0 => {
                let counts = store.counts();
                restored += counts.restored;
                damaged += counts.damaged;
                starts += 1;
                if random.below(2) == 0 {
                    // In good order.
                    let executor = generator.executor_mut().expect("an executor");
                    executor.keep_all(4);
                    write(&generator, &store, 9);
                }
                for (_, number) in ids.drain() {
                    // What was not answered by then is not compared.
                    let answer: &mut Answer = answers.entry(number).or_default();
                    answer.end.get_or_insert(super::FinishReason::Cancelled);
                }
                (generator, store) = start(&model, KvType::F16, &pages, 8);
            }
            5 => {
                let files = fs::read_dir(&pages).expect("a folder");
                if let Some(file) = files.filter_map(Result::ok).next() {
                    let mut bytes = fs::read(file.path()).expect("readable");
                    let at = random.below(bytes.len().max(1));
                    match random.below(3) {
                        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                        1 => bytes.truncate(at),
                        _ => bytes.iter_mut().skip(at).for_each(|byte| *byte = 0),
                    }
                    fs::write(file.path(), bytes).expect("writable");
                }
            }
            6 if random.below(8) == 0 => {
                generator.executor().remembered().forget();
                store.erase().expect("erased");
                assert!(fs::read_dir(&pages).expect("a folder").next().is_none());
            }
            _ => {}
        }
        assert!(store.counts().bytes <= bytes_max(generator.executor(), 8));
    }
    for (number, request) in asked.iter().enumerate() {
        let expected = alone(&model, request, ONE).remove(0);
        let answer = &answers[&number];
        if answer.end == expected.end {
            assert_eq!(answer.said, expected.said, "request {number}");
        } else {
            assert_eq!(answer.end, Some(super::FinishReason::Cancelled));
            assert_eq!(answer.said, expected.said[..answer.said.len()]);
        }
    }
    restored += store.counts().restored;
    let enough = restored > 5 && damaged > 0 && starts > 3;
    assert!(
        enough,
        "{restored} pages read, {damaged} damaged, {starts} starts"
    );
}

#[test]
fn after_a_start_only_what_is_new_is_computed() {
    for kv_type in KvType::ALL {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path());
        let asked = of_length(5 * PAGE + 9, 8);
        let (mut generator, store) = start(&model, kv_type, folder.path(), 99);
        let expected = ask(&mut generator, &asked);
        assert_eq!(ask(&mut generator, &asked).cached, 5 * PAGE);
        write(&generator, &store, 99);
        assert_eq!(store.counts().written, 5);
        let (mut generator, store) = start(&model, kv_type, folder.path(), 99);
        let again = ask(&mut generator, &asked);
        assert_eq!((again.said, again.cached), (expected.said, 5 * PAGE));
        assert_eq!(store.counts().restored, 5);
        // From memory now, as if it had been computed.
        assert_eq!(ask(&mut generator, &asked).cached, 5 * PAGE);
        assert_eq!(store.counts().restored, 5);
        // Of another type, or of another model, nothing is found.
        let other = KvType::ALL.into_iter().find(|other| *other != kv_type);
        let (mut generator, _) = start(&model, other.expect("two"), folder.path(), 99);
        assert_eq!(ask(&mut generator, &asked).cached, 0);
    }
}

#[test]
fn what_is_read_before_anybody_asks_takes_no_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    let asked = of_length(5 * PAGE + 9, 8);
    let (mut generator, store) = start(&model, KvType::F16, folder.path(), 99);
    let expected = ask(&mut generator, &asked);
    ask(&mut generator, &asked);
    write(&generator, &store, 99);
    let (mut generator, store) = start(&model, KvType::F16, folder.path(), 99);
    let executor = generator.executor_mut().expect("an executor");
    let free = executor.kv_tokens_free();
    let mut chains = store.chains(99);
    let mut text = chains.next().expect("a text");
    text.push(0);
    for restored in 1..=5 {
        assert!(executor.remember_next(&text));
        assert_eq!(store.counts().restored, restored);
        assert_eq!(executor.kv_tokens_free(), free, "nobody holds it");
    }
    assert!(!executor.remember_next(&text), "that was all");
    let again = ask(&mut generator, &asked);
    assert_eq!((again.said, again.cached), (expected.said, 5 * PAGE));
    assert_eq!(store.counts().restored, 5);
}

#[test]
fn what_is_behind_a_page_that_is_missing_is_computed() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    let asked = of_length(5 * PAGE + 9, 8);
    let pages = folder.path().join("pages");
    let (mut generator, store) = start(&model, KvType::F16, &pages, 99);
    let expected = ask(&mut generator, &asked);
    ask(&mut generator, &asked);
    write(&generator, &store, 99);
    let files = fs::read_dir(&pages).expect("a folder");
    let second = files
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains("-000001-"));
    fs::remove_file(second.expect("five files")).expect("removable");
    let (mut generator, store) = start(&model, KvType::F16, &pages, 99);
    let again = ask(&mut generator, &asked);
    assert_eq!((again.said, again.cached), (expected.said, PAGE));
    assert_eq!(store.counts().restored, 1);
    // Written again is what is missing, once it is asked again.
    ask(&mut generator, &asked);
    write(&generator, &store, 99);
    assert_eq!((store.counts().written, store.counts().pages), (1, 5));
}

#[test]
fn answers_go_on_while_pages_are_read_and_who_is_urgent_comes_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    let asked = of_length(5 * PAGE + 9, 8);
    let (mut generator, store) = start(&model, KvType::F16, folder.path(), 99);
    let expected = ask(&mut generator, &asked);
    ask(&mut generator, &asked);
    write(&generator, &store, 99);
    let (mut generator, store) = start(&model, KvType::F16, folder.path(), 99);
    let mut other = of_length(3, 60);
    other.prompt.reverse();
    let answering = generator.start(other).expect("room");
    let mut answers = HashMap::new();
    step(&mut generator, &mut answers);
    let reading = generator.start(asked.clone()).expect("room");
    let before = answers[&answering].said.len();
    for pages in 1..=5 {
        step(&mut generator, &mut answers);
        assert_eq!(
            store.counts().restored,
            pages,
            "one is no less than a piece of a prompt"
        );
    }
    assert!(answers[&answering].said.len() > before);
    generator.cancel(answering);
    while generator.active() > 0 {
        step(&mut generator, &mut answers);
    }
    assert_eq!(answers[&reading].said, expected.said);
    // Alone all come at once, unless somebody is to be answered first.
    for interrupted in [false, true] {
        let (mut generator, store) = start(&model, KvType::F16, folder.path(), 99);
        generator.start(asked.clone()).expect("room");
        let reading = Reading {
            tokens_max: 50,
            order: None,
        };
        let done = generator.step_reading(reading, &mut |_, _| {}, &|| interrupted);
        done.expect("a step");
        let restored = store.counts().restored;
        assert_eq!(restored, if interrupted { 1 } else { 5 });
    }
}
