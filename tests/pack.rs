//! Packed weights as files: cut off while they are written, damaged, of other layouts, too many for their folder. None
//! of it changes an answer or ends a program.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use andon_engine::embed::{Embedder, EmbedderOptions};
use andon_engine::pack::{Cache, CacheOptions, Key, Pack, PackError};
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_tests::tiny_encoder::TinyEncoder;
use andon_tests::tiny_model::{TensorType, TinyModel};

/// Bytes that have a checksum of their own, as the format says.
const BLOCK_BYTES: u64 = 256 << 10;

fn cache(dir: &Path) -> Cache {
    Cache::new(CacheOptions {
        dir: dir.to_owned(),
        bytes_max: u64::MAX,
        free_bytes_min: 0,
    })
}

fn make(cache: &Cache, model: &Model, key: &Key) -> Result<Pack, PackError> {
    cache.make(model, key, 2, &mut |_, _| true)
}

/// A model whose packed matrices take several blocks.
fn large(path: &Path) -> Arc<Model> {
    let model = TinyModel {
        embedding: 512,
        feed_forward: 2048,
        layer_count: 2,
        weights: TensorType::Q4_0,
        ..TinyModel::default()
    };
    model.write(path).expect("written");
    load(path)
}

fn small(path: &Path, seed: u64) -> Arc<Model> {
    let model = TinyModel {
        weights: TensorType::Q8_0,
        seed,
        ..TinyModel::default()
    };
    model.write(path).expect("written");
    load(path)
}

fn load(path: &Path) -> Arc<Model> {
    Arc::new(Model::load(path).expect("a sound model"))
}

fn executor(model: &Arc<Model>) -> Executor {
    let options = ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: 64,
        kv_tokens_max: 256,
        ..ExecutorOptions::default()
    };
    Executor::new(Arc::clone(model), &options).expect("an executor")
}

fn logits(executor: &mut Executor) -> Vec<u32> {
    let mut sequence = executor.sequence();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens: &[1, 17, 40, 99],
        logits: LogitsFor::Last,
    };
    let logits = executor.forward(&mut [chunk]).expect("logits");
    logits.row(0).iter().map(|value| value.to_bits()).collect()
}

/// Turns one bit of a file over.
fn flip(path: &Path, byte: u64, bit: u8) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("opened");
    let mut value = [0];
    file.read_exact_at(&mut value, byte).expect("read");
    value[0] ^= 1 << bit;
    file.write_all_at(&value, byte).expect("written");
}

/// What lies in a folder of packs, and what of it is being written.
fn files(dir: &Path) -> (Vec<PathBuf>, usize) {
    let all: Vec<_> = fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let packs = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "pack");
    let (packs, others): (Vec<_>, Vec<_>) = all.into_iter().partition(packs);
    (packs, others.len())
}

#[test]
fn a_flipped_bit_of_any_block_is_found_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = large(&folder.path().join("model.gguf"));
    let expected = logits(&mut executor(&model));
    let key = model.pack_key().expect("a key");
    let cache = cache(&folder.path().join("cache"));
    let pack = make(&cache, &model, &key).expect("a pack");
    let (path, bytes) = (pack.path().to_owned(), pack.bytes());
    assert_eq!(fs::metadata(&path).expect("there").len(), bytes);
    model.attach_pack(pack).expect("its own");
    assert_eq!(logits(&mut executor(&model)), expected);
    assert!(model.pack().is_some());

    // One bit in each block's length of the file; what lies between matrices belongs to none and is never read.
    let mut found = 0;
    for start in (0..bytes).step_by(BLOCK_BYTES as usize / 2) {
        let byte = (start + 4097 + start / 7 % 4096).min(bytes - 1);
        flip(&path, byte, (start / 3 % 8) as u8);
        match Pack::open(&path, &key) {
            Ok(pack) => {
                let model = load(&folder.path().join("model.gguf"));
                model.attach_pack(pack).expect("its own");
                let used = model.pack().expect("attached");
                let mut executor = executor(&model);
                assert_eq!(logits(&mut executor), expected, "byte {byte}");
                if let Some(failure) = used.failure() {
                    assert!(
                        matches!(failure, PackError::Checksum { offset, bytes, .. }
                        if (*offset..offset + bytes).contains(&byte)),
                        "{failure}"
                    );
                    assert!(model.pack().is_none(), "a damaged pack is left");
                    found += 1;
                }
                assert_eq!(logits(&mut executor), expected);
            }
            Err(error) => assert!(matches!(error, PackError::HeaderChecksum { .. }), "{error}"),
        }
        flip(&path, byte, (start / 3 % 8) as u8);
    }
    assert!(
        found as u64 > bytes / BLOCK_BYTES,
        "{found} found of {bytes} bytes"
    );
}

#[test]
fn a_pack_of_other_weights_is_told_from_its_own_whatever_its_checksums_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = small(&folder.path().join("a.gguf"), 1);
    let other = small(&folder.path().join("b.gguf"), 2);
    let key = Key::of_digest([7; 32]);
    let cache = cache(&folder.path().join("cache"));
    // Whoever can write into the folder can make one that is sound, of weights of his own, under the model's key.
    let pack = make(&cache, &other, &key).expect("a pack");
    let error = pack.compare(&model, &mut |_, _| true).expect_err("others");
    assert!(matches!(error, PackError::OtherBytes { .. }), "{error}");
    assert!(pack.compare(&other, &mut |_, _| true).is_ok());
    let stopped = pack.compare(&other, &mut |_, _| false);
    assert!(matches!(stopped, Err(PackError::Stopped)), "{stopped:?}");
    let pack = make(&cache, &model, &key).expect("a pack");
    assert!(pack.compare(&model, &mut |_, _| true).is_ok());
    let shape = large(&folder.path().join("c.gguf"));
    let error = pack.compare(&shape, &mut |_, _| true);
    assert!(
        matches!(error, Err(PackError::OtherModel { .. })),
        "{error:?}"
    );
}

#[test]
fn every_bit_and_every_length_of_a_header_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = small(&folder.path().join("model.gguf"), 1);
    let key = model.pack_key().expect("a key");
    let cache = cache(&folder.path().join("cache"));
    let path = make(&cache, &model, &key)
        .expect("a pack")
        .path()
        .to_owned();
    let whole = fs::read(&path).expect("read");
    let header = whole[72..80]
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes));
    let header = header.expect("the size of the header");
    let copy = folder.path().join("copy.pack");
    fs::write(&copy, &whole).expect("written");
    for byte in 0..header {
        flip(&copy, byte, (byte % 8) as u8);
        Pack::open(&copy, &key).expect_err("a header that was changed");
        flip(&copy, byte, (byte % 8) as u8);
    }
    Pack::open(&copy, &key).expect("as it was");
    for length in (0..header + 64).chain([whole.len() as u64 - 1, whole.len() as u64 + 1]) {
        let file = File::options().write(true).open(&copy).expect("opened");
        file.set_len(length).expect("cut");
        Pack::open(&copy, &key).expect_err("a file of another length");
        fs::write(&copy, &whole).expect("written");
    }
    let other = small(&folder.path().join("other.gguf"), 2);
    let other_key = other.pack_key().expect("a key");
    let error = Pack::open(&copy, &other_key).expect_err("of another model");
    assert!(matches!(error, PackError::OtherModel { .. }), "{error}");
    // A key that lies is found by the matrices.
    let smaller = TinyModel {
        feed_forward: 96,
        weights: TensorType::Q8_0,
        ..TinyModel::default()
    };
    smaller
        .write(&folder.path().join("smaller.gguf"))
        .expect("written");
    let error = load(&folder.path().join("smaller.gguf"))
        .attach_pack(Pack::open(&copy, &key).expect("sound"))
        .expect_err("other matrices");
    assert!(matches!(error, PackError::OtherModel { .. }), "{error}");
}

#[test]
fn a_pack_cut_off_under_its_map_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let expected = logits(&mut executor(&large(&path)));
    for keep in [0, 1, 2] {
        // Before anything of it was read, and after all of it was checked.
        for used in [false, true] {
            let model = load(&path);
            let key = model.pack_key().expect("a key");
            let cache = cache(&folder.path().join("cache"));
            let pack = make(&cache, &model, &key).expect("a pack");
            let (place, bytes) = (pack.path().to_owned(), pack.bytes());
            model.attach_pack(pack).expect("its own");
            let mut executor = executor(&model);
            if used {
                assert_eq!(logits(&mut executor), expected);
                assert!(model.pack().is_some());
            }
            let file = File::options().write(true).open(&place).expect("opened");
            file.set_len(bytes * keep / 3).expect("cut");
            assert_eq!(logits(&mut executor), expected);
            assert!(model.pack().is_none(), "it is left");
            assert!(model.damaged().is_none(), "the model is sound");
            assert!(matches!(
                cache.find(&key),
                Err(PackError::Length { .. } | PackError::Io { .. })
            ));
            // It is made anew while the model runs, and taken up by the next batch.
            let pack = make(&cache, &model, &key).expect("a pack");
            model.attach_pack(pack).expect("its own");
            assert_eq!(logits(&mut executor), expected);
            assert!(model.pack().is_some());
        }
    }
}

#[test]
fn encoders_begin_again_without_a_pack_that_broke() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let encoder = TinyEncoder {
        weights: TensorType::Q8_0,
        ..TinyEncoder::default()
    };
    encoder.write(&path).expect("written");
    let options = EmbedderOptions {
        threads: Some(2),
        ..EmbedderOptions::default()
    };
    let tokens = [1, 5, 9, 2];
    let embed = |embedder: &mut Embedder| -> Vec<u32> {
        let vectors = embedder.embed(&[&tokens]).expect("vectors");
        vectors[0].iter().map(|value| value.to_bits()).collect()
    };
    let expected = embed(&mut Embedder::new(load(&path), &options).expect("an embedder"));
    let model = load(&path);
    let key = model.pack_key().expect("a key");
    let pack = make(&cache(folder.path()), &model, &key).expect("a pack");
    let (place, bytes) = (pack.path().to_owned(), pack.bytes());
    model.attach_pack(pack).expect("its own");
    let mut embedder = Embedder::new(Arc::clone(&model), &options).expect("an embedder");
    assert_eq!(embed(&mut embedder), expected);
    let mut encoding = embedder.start(&[&tokens]).expect("begun");
    assert!(!embedder.step(&mut encoding), "one layer of several");
    let file = File::options().write(true).open(&place).expect("opened");
    file.set_len(bytes / 2).expect("cut");
    while !embedder.step(&mut encoding) {}
    let vector = embedder.vector(&encoding, 0).expect("a vector");
    let bits: Vec<_> = vector.iter().map(|value| value.to_bits()).collect();
    assert_eq!(bits, expected);
    assert!(model.pack().is_none());
}

#[test]
fn what_a_killed_program_was_writing_is_cleared_away() {
    const PLACE: &str = "ANDON_TEST_PACK_IN";
    if let Some(place) = std::env::var_os(PLACE) {
        // The program that is killed: this test, run by itself.
        let place = PathBuf::from(place);
        let model = load(&place.join("model.gguf"));
        let key = model.pack_key().expect("a key");
        let mut slowly = |done, total| {
            println!("{done} of {total}");
            std::thread::sleep(Duration::from_millis(20));
            true
        };
        let made = cache(&place.join("cache")).make(&model, &key, 1, &mut slowly);
        made.expect("a pack");
        println!("made");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let model = large(&folder.path().join("model.gguf"));
    let key = model.pack_key().expect("a key");
    let dir = folder.path().join("cache");
    for lines in [1, 3, 8] {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--nocapture"])
            .arg("what_a_killed_program_was_writing_is_cleared_away")
            .env(PLACE, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let said = BufReader::new(child.stdout.take().expect("its output")).lines();
        let said = said.map(|line| line.expect("a line"));
        let _ = said.filter(|line| line.contains(" of ")).nth(lines - 1);
        // One that another program is writing is left alone.
        let beside = cache(&dir);
        assert_eq!(files(&dir).1, 1);
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert!(beside.find(&key).expect("no pack is no failure").is_none());
        assert_eq!(files(&dir), (Vec::new(), 1));
        let next = cache(&dir);
        assert_eq!(files(&dir), (Vec::new(), 0));
        assert!(next.find(&key).expect("no pack is no failure").is_none());
    }
    // Whoever asked for it may think better of it.
    let cache = cache(&dir);
    let stopped = cache.make(&model, &key, 2, &mut |done, total| done * 2 < total);
    assert!(matches!(stopped, Err(PackError::Stopped)));
    assert_eq!(files(&dir), (Vec::new(), 0));
    make(&cache, &model, &key).expect("a pack");
    assert_eq!(files(&dir).0.len(), 1);
}

#[test]
fn packs_of_other_layouts_are_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = small(&folder.path().join("model.gguf"), 1);
    let key = model.pack_key().expect("a key");
    let dir = folder.path().join("cache");
    let cache = cache(&dir);
    assert!(cache.find(&key).expect("no pack is no failure").is_none());
    assert_eq!(cache.bytes(&key), None);
    let path = make(&cache, &model, &key)
        .expect("a pack")
        .path()
        .to_owned();
    // One of an older program by its name, and one by what is in it.
    let older = dir.join(format!("{key}-r16k4-0.pack"));
    fs::copy(&path, &older).expect("copied");
    for (byte, name) in [(8, "format"), (12, "layout"), (16, "family")] {
        flip(&path, byte, 6);
        let error = cache.find(&key).expect_err("another layout");
        assert!(
            matches!(
                (&error, name),
                (PackError::Version { .. }, "format") | (PackError::Layout { .. }, _)
            ),
            "{error}"
        );
        make(&cache, &model, &key).expect("made anew");
        assert!(cache.find(&key).expect("sound").is_some());
        assert_eq!(files(&dir), (vec![path.clone()], 0));
    }
    // It gives way before any other, also where the model's packs are held.
    let other = small(&folder.path().join("other.gguf"), 2);
    let other_key = other.pack_key().expect("a key");
    make(&cache, &other, &other_key).expect("a pack");
    fs::rename(&path, &older).expect("renamed");
    let bytes = fs::metadata(&older).expect("there").len();
    let bounded = Cache::new(CacheOptions {
        dir: dir.clone(),
        bytes_max: 2 * bytes,
        free_bytes_min: 0,
    });
    bounded.hold(&key);
    make(&bounded, &model, &key).expect("a pack");
    assert!(!older.exists());
    assert!(cache.bytes(&other_key).is_some());
    assert!(cache.remove(&other_key).expect("removed"));

    assert!(cache.remove(&key).expect("removed"));
    assert!(!cache.remove(&key).expect("nothing to remove"));
    assert_eq!(files(&dir), (Vec::new(), 0));
}

#[test]
fn the_longest_unused_gives_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");
    let models: Vec<_> = (1..=4)
        .map(|seed| small(&folder.path().join(format!("{seed}.gguf")), seed))
        .collect();
    let keys: Vec<_> = models
        .iter()
        .map(|model| model.pack_key().expect("a key"))
        .collect();
    let first = make(&cache(&dir), &models[0], &keys[0]).expect("a pack");
    let bytes = first.bytes();
    let bounded = |packs: u64| {
        Cache::new(CacheOptions {
            dir: dir.clone(),
            bytes_max: packs * bytes + bytes / 2,
            free_bytes_min: 0,
        })
    };
    let there = |cache: &Cache| -> Vec<usize> {
        (0..4)
            .filter(|&index| cache.bytes(&keys[index]).is_some())
            .collect()
    };
    let cache = bounded(2);
    make(&cache, &models[1], &keys[1]).expect("a pack");
    // The times of files are not told apart by less than a tick of the kernel's clock.
    std::thread::sleep(Duration::from_millis(20));
    assert!(cache.find(&keys[0]).expect("sound").is_some());
    std::thread::sleep(Duration::from_millis(20));
    make(&cache, &models[2], &keys[2]).expect("a pack");
    assert_eq!(there(&cache), [0, 2], "the second was not used since");
    cache.hold(&keys[0]);
    std::thread::sleep(Duration::from_millis(20));
    make(&cache, &models[3], &keys[3]).expect("a pack");
    assert_eq!(there(&cache), [0, 3], "what is held stays");
    // One's own does not give way to itself, and takes no room beside itself.
    make(&cache, &models[3], &keys[3]).expect("made anew");
    assert_eq!(there(&cache), [0, 3]);

    let error = make(&bounded(0), &models[1], &keys[1]).expect_err("no room at all");
    assert!(matches!(error, PackError::TooLarge { .. }), "{error}");
    let full = Cache::new(CacheOptions {
        dir: dir.clone(),
        bytes_max: u64::MAX,
        free_bytes_min: u64::MAX,
    });
    full.hold(&keys[0]);
    let error = make(&full, &models[1], &keys[1]).expect_err("no room on the disk");
    assert!(matches!(error, PackError::NoSpace { .. }), "{error}");
    assert_eq!(there(&full), [0, 3], "nothing gave way in vain");
    let nowhere = self::cache(&folder.path().join("1.gguf/cache"));
    let error = make(&nowhere, &models[1], &keys[1]).expect_err("no folder");
    assert!(matches!(error, PackError::Io { .. }), "{error}");
    assert!(nowhere.find(&keys[1]).is_err());
}

#[test]
fn what_is_being_written_takes_room_and_what_is_left_over_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");
    let models = [1, 2].map(|seed| small(&folder.path().join(format!("{seed}.gguf")), seed));
    let keys = models
        .each_ref()
        .map(|model| model.pack_key().expect("a key"));
    let bytes = make(&cache(&dir), &models[0], &keys[0])
        .expect("a pack")
        .bytes();
    assert!(cache(&dir).remove(&keys[0]).expect("removed"));
    let bounded = |bytes_max| {
        Cache::new(CacheOptions {
            dir: dir.clone(),
            bytes_max,
            free_bytes_min: 0,
        })
    };
    // Left over since the caches were opened: as large as both packs may be.
    let (narrow, wide) = (bounded(2 * bytes - 1), bounded(2 * bytes));
    let left = dir.join(".0123456789abcdef.tmp");
    let file = File::create_new(&left).expect("made");
    file.set_len(2 * bytes).expect("set");
    drop(file);
    for (beside, fits) in [(&narrow, false), (&wide, true)] {
        let mut second = None;
        let mut in_the_middle = |_, _| {
            second.get_or_insert_with(|| make(beside, &models[1], &keys[1]));
            true
        };
        let first = narrow.make(&models[0], &keys[0], 1, &mut in_the_middle);
        first.expect("a pack");
        assert!(!left.exists(), "it belonged to nobody");
        match second.expect("it was tried") {
            Ok(_) => assert!(fits, "two that are larger than both may be"),
            Err(PackError::NoSpace { .. }) => assert!(!fits, "there is room for both"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(files(&dir), (files(&dir).0, 0));
    }
    assert_eq!(files(&dir).0.len(), 2);
}

#[test]
fn what_others_have_in_the_folder_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");
    fs::create_dir(&dir).expect("a folder");
    let others = [
        "pack-0123456789abcdef.pack",
        ".pack",
        ".tmp",
        ".notes.tmp",
        ".0123456789abcdef0.tmp",
    ];
    for name in others {
        fs::write(dir.join(name), [0; 1000]).expect("written");
    }
    let left = dir.join(".0123456789abcdef.tmp");
    fs::write(&left, b"").expect("written");
    let models = [1, 2].map(|seed| small(&folder.path().join(format!("{seed}.gguf")), seed));
    let keys = models
        .each_ref()
        .map(|model| model.pack_key().expect("a key"));
    let bytes = make(&cache(&dir), &models[0], &keys[0])
        .expect("a pack")
        .bytes();
    assert!(!left.exists(), "it is one of ours");
    let bounded = Cache::new(CacheOptions {
        dir: dir.clone(),
        bytes_max: bytes,
        free_bytes_min: 0,
    });
    make(&bounded, &models[1], &keys[1]).expect("a pack");
    assert_eq!(bounded.bytes(&keys[0]), None, "it gave way");
    for name in others {
        assert!(dir.join(name).exists(), "{name}");
    }
}

#[test]
fn keys_tell_models_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let key = || load(&path).pack_key().expect("a key");
    small(&path, 1);
    let first = key();
    assert_eq!(key(), first);
    // The same size, time and inode, and one tensor that is another.
    let time = fs::metadata(&path)
        .expect("there")
        .modified()
        .expect("a time");
    let bytes = fs::read(&path).expect("read");
    let mut changed = bytes.clone();
    let middle = bytes.len() / 2;
    for byte in &mut changed[middle..middle + 256] {
        *byte ^= 1;
    }
    let write = |bytes: &[u8]| {
        let file = File::options().write(true).open(&path).expect("opened");
        file.write_all_at(bytes, 0).expect("written");
        file.set_modified(time).expect("set");
    };
    write(&changed);
    assert_ne!(key(), first);
    write(&bytes);
    assert_eq!(key(), first);
    // The same bytes, written later.
    fs::write(&path, &bytes).expect("written");
    assert_ne!(key(), first);
    // A model in several files.
    let parts = TinyModel::default().parts(7);
    let part = |number: usize| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    for (number, bytes) in (1..).zip(&parts) {
        fs::write(part(number), bytes).expect("written");
    }
    let whole = load(&part(1)).pack_key().expect("a key");
    assert_eq!(load(&part(3)).pack_key().expect("a key"), whole);
    fs::write(part(2), &parts[1]).expect("written");
    assert_ne!(load(&part(1)).pack_key().expect("a key"), whole);
}

#[test]
fn a_model_in_several_files_is_packed_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = TinyModel {
        weights: TensorType::Q4_1,
        ..TinyModel::default()
    };
    let whole = folder.path().join("whole.gguf");
    model.write(&whole).expect("written");
    let expected = logits(&mut executor(&load(&whole)));
    let part = |number: usize| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    for (number, bytes) in (1..).zip(&model.parts(7)) {
        fs::write(part(number), bytes).expect("written");
    }
    let split = load(&part(1));
    let raw = split.bytes_per_token();
    let key = Key::of_digest([7; 32]);
    let pack = make(&cache(folder.path()), &split, &key).expect("a pack");
    split.attach_pack(pack).expect("its own");
    assert_eq!(logits(&mut executor(&split)), expected);
    assert!(split.pack().is_some());
    assert!(
        split.bytes_per_token() >= raw,
        "rows are filled up to whole tiles"
    );
}
