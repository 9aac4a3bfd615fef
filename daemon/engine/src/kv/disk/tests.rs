//! Pages from one cache to another over the disk, and what may be wrong with what lies there.

use super::{PageCopy, PageStore, PageStoreOptions, StoreError};
use crate::kv::{Cache, Geometry, KvType, PAGE, PageName, Sequence};
use crate::pack;
use andon_kernels::{Isa, Table};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

fn geometry(kv_type: KvType) -> Geometry {
    Geometry {
        layer_count: 2,
        head_count: 3,
        head_dim: 4,
        kv_type,
    }
}

fn root(model: u8, kv_type: KvType) -> PageName {
    let model = pack::Key::of_digest([model; 32]);
    PageName::root(&model, &geometry(kv_type), &[1.0])
}

/// A cache of six pages whose pages have names.
fn cache(model: u8, kv_type: KvType) -> Cache {
    let cache = Cache::new(geometry(kv_type), 6 * PAGE, true).expect("small");
    cache.set_root(root(model, kv_type));
    cache
}

fn store_of(folder: &Path, cache: &Cache, root: PageName, pages_max: u64) -> PageStore {
    let options = PageStoreOptions {
        dir: folder.to_owned(),
        bytes_max: pages_max * file_bytes(cache),
        free_bytes_min: 0,
    };
    PageStore::open(options, root, cache.page_bytes()).expect("a folder")
}

fn file_bytes(cache: &Cache) -> u64 {
    (super::file::HEADER_BYTES + cache.page_bytes()) as u64
}

/// Two pages and a bit of a text.
fn text(number: u32) -> Vec<u32> {
    (0..2 * PAGE as u32 + 3).map(|at| at * 7 + number).collect()
}

/// A sequence of the text, computed as far as it is not remembered.
fn compute(cache: &mut Cache, text: &[u32]) -> Sequence {
    let table = Table::new(Isa::Scalar).expect("always there");
    let mut sequence = cache.sequence_of(text);
    let start = sequence.len();
    assert!(cache.reserve(&mut sequence, text.len()));
    for (position, &token) in text.iter().enumerate().skip(start) {
        let page = sequence.pages()[position / PAGE];
        let keys: Vec<f32> = (0..12).map(|index| (token * 13 + index) as f32).collect();
        let values: Vec<f32> = keys.iter().map(|key| key * 0.5 - 9.0).collect();
        for layer in 0..2 {
            let pages = cache.host().expect("they are here");
            pages.store(&table, page, layer, position % PAGE, &keys, &values);
        }
    }
    sequence.append(&text[start..], 0);
    sequence
}

/// What is worth keeping, without what the store has.
fn copies(cache: &Cache, store: &PageStore) -> Vec<PageCopy> {
    let generation = store.generation();
    let next = || cache.next_worthy();
    std::iter::from_fn(next)
        .map(|(page, age, named)| PageCopy {
            parent: named.parent,
            name: named.name,
            depth: named.depth as u32,
            tokens: named.tokens,
            content: cache.export(page).expect("it is here"),
            used: (age > 0).then_some(1 << 40).map(|base: u64| base - age),
            generation,
        })
        .filter(|copy| !store.contains(copy.depth, copy.name))
        .collect()
}

/// Computes a text twice, so that it is worth keeping, and keeps it; returns how many pages were written.
fn keep(cache: &mut Cache, store: &PageStore, number: u32) -> usize {
    for _ in 0..2 {
        drop(compute(cache, &text(number)));
    }
    let copies = copies(cache, store);
    let written = copies
        .iter()
        .map(|copy| store.write(copy).expect("written"));
    written.filter(|&written| written).count()
}

/// Reads the two pages of a text, as far as they are there, and compares them with `expected`.
fn found(store: &PageStore, number: u32, expected: &[Vec<u8>]) -> usize {
    let text = text(number);
    let mut parent = store.root();
    let mut count = 0;
    for (depth, tokens) in (0..).zip(text.chunks_exact(PAGE)) {
        let name = parent.below(tokens);
        let Some(mut page) = store.read(depth, name) else {
            break;
        };
        let mut content = vec![0; expected[depth as usize].len()];
        if let Err(error) = page.fill(&mut content).and_then(|()| page.finish()) {
            store.discard(depth, name, error);
            break;
        }
        assert_eq!(content, expected[depth as usize]);
        store.was_read(depth, name, parent);
        parent = name;
        count += 1;
    }
    count
}

/// The content of the two full pages of a text.
fn contents(cache: &mut Cache, number: u32) -> Vec<Vec<u8>> {
    let sequence = compute(cache, &text(number));
    let pages = sequence.pages()[..2].iter();
    pages
        .map(|&page| cache.export(page).expect("they are here"))
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

#[test]
fn a_page_has_the_same_bytes_in_another_cache() {
    for kv_type in KvType::ALL {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("pages");
        let mut first = cache(1, kv_type);
        let store = store_of(&folder, &first, root(1, kv_type), 9);
        let mode = fs::metadata(&folder).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(compute(&mut first, &text(1)));
        assert!(copies(&first, &store).is_empty(), "it was asked once");
        assert_eq!(keep(&mut first, &store, 1), 2);
        assert_eq!(keep(&mut first, &store, 1), 0, "both are there");
        let expected = contents(&mut first, 1);
        // At another place of another cache, after a start.
        let store = store_of(&folder, &first, root(1, kv_type), 9);
        let mut second = cache(1, kv_type);
        let other = compute(&mut second, &text(2));
        let mut sequence = second.sequence();
        let mut parent = store.root();
        for (depth, tokens) in (0..).zip(text(1).chunks_exact(PAGE)) {
            let name = parent.below(tokens);
            let mut page = store.read(depth, name).expect("it is there");
            let length = sequence.len() + PAGE;
            assert!(second.reserve(&mut sequence, length));
            let place = *sequence.pages().last().expect("reserved");
            let read = second.import(place, |piece| page.fill(piece));
            read.and_then(|()| page.finish()).expect("sound");
            sequence.append(tokens, 0);
            assert_eq!(sequence.end(), Some(name));
            parent = name;
        }
        assert_ne!(sequence.pages(), &other.pages()[..2]);
        drop((sequence, other));
        assert_eq!(contents(&mut second, 1), expected);
        assert_ne!(contents(&mut second, 2), expected);
    }
}

#[test]
fn what_is_damaged_is_removed_and_none_of_it_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut cache = cache(1, KvType::Q8);
    let store = store_of(folder, &cache, root(1, KvType::Q8), 9);
    assert_eq!(keep(&mut cache, &store, 1), 2);
    let expected = contents(&mut cache, 1);
    let [first, second] = files(folder).try_into().expect("two files");
    let [good, other] = [&first, &second].map(|path| fs::read(path).expect("readable"));
    let header = super::file::HEADER_BYTES;
    let places = (0..header)
        .step_by(3)
        .chain((header..good.len()).step_by(101));
    let mut bad: Vec<Vec<u8>> = Vec::new();
    for at in places {
        let mut flipped = good.clone();
        flipped[at] ^= 0x40;
        bad.push(flipped);
        bad.push(good[..at].to_vec());
    }
    // The end was lost, or never written; another page's content; more than there should be.
    let mut lost = good.clone();
    lost[good.len() - 512..].fill(0);
    bad.extend([lost, [&good[..], b"x"].concat(), other.clone()]);
    for (number, bad) in bad.iter().enumerate() {
        let store = store_of(folder, &cache, root(1, KvType::Q8), 9);
        fs::write(&first, bad).expect("writable");
        assert_eq!(found(&store, 1, &expected), 0, "case {number}");
        assert!(!first.exists(), "case {number}");
        assert_eq!(store.counts().damaged, 1);
        assert!(
            store.chains(9).next().is_none(),
            "what is behind it has lost its beginning"
        );
        // It is of use again once its beginning is.
        fs::write(&first, &good).expect("writable");
        let store = store_of(folder, &cache, root(1, KvType::Q8), 9);
        assert_eq!(found(&store, 1, &expected), 2);
    }
    // Also where only the header is read.
    fs::write(&first, &good[..good.len() - 1]).expect("writable");
    let store = store_of(folder, &cache, root(1, KvType::Q8), 9);
    assert!(store.chains(9).next().is_none());
    assert_eq!(store.counts().damaged, 1);
    // A file that somebody removed is not there, no more.
    let store = store_of(folder, &cache, root(1, KvType::Q8), 9);
    fs::remove_file(&second).expect("removable");
    fs::write(&first, &good).expect("writable");
    let store_after = store_of(folder, &cache, root(1, KvType::Q8), 9);
    assert_eq!(found(&store_after, 1, &expected), 1);
    assert_eq!(found(&store, 1, &expected), 0);
    assert_eq!(store.counts().damaged, 0);
}

#[test]
fn what_cannot_be_opened_for_now_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut cache = cache(1, KvType::F16);
    let store = store_of(folder, &cache, root(1, KvType::F16), 9);
    assert_eq!(keep(&mut cache, &store, 1), 2);
    let text = text(1);
    let name = store.root().below(&text[..PAGE]);
    let failed = |number| StoreError::io(folder, "open")(std::io::Error::from_raw_os_error(number));
    let (too_many_open, broken) = (failed(24), failed(5));
    store.give_up(0, name, &too_many_open);
    assert!(store.contains(0, name) && store.read(0, name).is_some());
    store.give_up(0, name, &broken);
    assert!(!store.contains(0, name) && files(folder).len() == 1);
    assert_eq!(store.counts().damaged, 1);
}

#[test]
fn a_folder_that_others_may_look_into_is_closed_to_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("mine");
    let cache = cache(1, KvType::F16);
    store_of(folder, &cache, root(1, KvType::F16), 9);
    let mode = fs::metadata(folder).expect("a folder").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn models_and_types_in_one_folder_do_not_see_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut caches = [(1, KvType::F16), (2, KvType::F16), (1, KvType::Q8)]
        .map(|(model, kv_type)| (root(model, kv_type), cache(model, kv_type)));
    for (root, cache) in &mut caches {
        let store = store_of(folder, cache, *root, 99);
        assert_eq!(keep(cache, &store, 1), 2);
    }
    for (number, (root, cache)) in caches.iter_mut().enumerate() {
        let expected = contents(cache, 1);
        let store = store_of(folder, cache, *root, 99);
        assert_eq!(store.counts().pages, 6);
        assert_eq!(found(&store, 1, &expected), 2, "{number}");
        assert_eq!(store.chains(99).collect::<Vec<_>>(), [&text(1)[..2 * PAGE]]);
    }
    // Also if a file of one lies under a name of another.
    let all = files(folder);
    let of = |root: PageName| {
        let root = root.to_string();
        let mine = |path: &&PathBuf| path.to_string_lossy().contains(&root);
        all.iter().filter(mine).cloned().collect::<Vec<_>>()
    };
    let (first, second) = (of(caches[0].0), of(caches[1].0));
    fs::copy(&second[0], &first[0]).expect("copied");
    let (root, cache) = &mut caches[0];
    let expected = contents(cache, 1);
    let store = store_of(folder, cache, *root, 99);
    assert_eq!(found(&store, 1, &expected), 0);
    assert_eq!(store.counts().damaged, 1);
}

#[test]
fn there_is_never_more_than_configured_and_the_longest_unused_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut cache = cache(1, KvType::F16);
    let root = root(1, KvType::F16);
    fs::write(folder.join("notes"), "of somebody else").expect("writable");
    fs::write(folder.join(".0123456789abcdef.tmp"), "half a page").expect("writable");
    let store = store_of(folder, &cache, root, 5);
    assert_eq!(files(folder).len(), 1, "what was left half written is gone");
    let expected: Vec<Vec<Vec<u8>>> = (0..3).map(|text| contents(&mut cache, text)).collect();
    assert_eq!(keep(&mut cache, &store, 0), 2);
    assert_eq!(keep(&mut cache, &store, 1), 2);
    // Used again, from the disk or from memory.
    assert_eq!(found(&store, 0, &expected[0]), 2);
    assert_eq!(keep(&mut cache, &store, 2), 2);
    let counts = store.counts();
    assert_eq!((counts.pages, counts.bytes), (5, 5 * file_bytes(&cache)));
    assert_eq!(counts.written, 6);
    let all = |store: &PageStore| [0, 1, 2].map(|text| found(store, text as u32, &expected[text]));
    assert_eq!(all(&store), [2, 1, 2]);
    // When they were used is known after a start.
    store.note_uses();
    let store = store_of(folder, &cache, root, 5);
    let texts = |most| store.chains(most).collect::<Vec<_>>();
    assert_eq!(texts(3), [&text(1)[..PAGE], &text(2)[..2 * PAGE]]);
    assert_eq!(texts(9).len(), 3);
    store.touch(&[root.below(&text(0)[..PAGE])]);
    assert_eq!(texts(1), [&text(0)[..PAGE]]);
    let store = store_of(folder, &cache, root, 2);
    assert_eq!(keep(&mut cache, &store, 3), 2);
    assert_eq!((store.counts().pages, all(&store)), (2, [0, 0, 0]));
    assert!(folder.join("notes").exists());
}

#[test]
fn where_there_is_no_room_the_error_says_so_and_nothing_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pages");
    let mut cache = cache(1, KvType::F16);
    for _ in 0..2 {
        drop(compute(&mut cache, &text(1)));
    }
    let options = |bytes_max, free_bytes_min| PageStoreOptions {
        dir: path.clone(),
        bytes_max,
        free_bytes_min,
    };
    let open = |options| PageStore::open(options, root(1, KvType::F16), cache.page_bytes());
    let full = open(options(u64::MAX, u64::MAX)).expect("a folder");
    let copies = copies(&cache, &full);
    assert_eq!(copies.len(), 2);
    let error = full.write(&copies[0]).expect_err("the disk is full");
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    let small = open(options(100, 0)).expect("a folder");
    let error = small.write(&copies[0]).expect_err("too large");
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert!(files(&path).is_empty());
    // What is behind a page that is not there would never be found.
    let store = open(options(u64::MAX, 0)).expect("a folder");
    assert!(!store.write(&copies[1]).expect("not written"));
    fs::remove_dir(&path).expect("empty");
    let error = store.write(&copies[0]).expect_err("the folder is gone");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    fs::write(&path, "a file").expect("writable");
    let error = open(options(u64::MAX, 0)).expect_err("no folder");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(super::kept(&folder.path().join("none")).is_ok_and(|kept| kept == (0, 0)));
}

#[test]
fn what_is_erased_is_gone_and_not_written_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut cache = cache(1, KvType::F16);
    let store = store_of(folder, &cache, root(1, KvType::F16), 9);
    assert_eq!(keep(&mut cache, &store, 1), 2);
    for _ in 0..2 {
        drop(compute(&mut cache, &text(2)));
    }
    let taken = copies(&cache, &store);
    let running = compute(&mut cache, &text(3));
    cache.remembered().forget();
    assert_eq!(store.erase().expect("erased"), 2);
    assert!(files(folder).is_empty());
    assert_eq!(store.counts().pages, 0);
    for copy in taken {
        assert!(!store.write(&copy).expect("not written"));
    }
    // In memory there is nothing either, nor will there be of what is under way.
    for number in 1..=3 {
        assert!(cache.sequence_of(&text(number)).is_empty());
    }
    assert_eq!(running.end(), None);
    assert_eq!(cache.tokens_free(), 3 * PAGE);
    let mut fork = cache.fork(&running).expect("a page");
    assert!(cache.reserve(&mut fork, 3 * PAGE));
    fork.append(&[1; PAGE - 3], 0);
    drop((running, fork));
    assert!(cache.sequence_of(&text(3)).is_empty());
    assert_eq!(cache.tokens_free(), 6 * PAGE);
    // What comes later is.
    assert_eq!(keep(&mut cache, &store, 1), 2);
    assert_eq!(super::kept(folder).expect("readable").0, 2);
    assert_eq!(super::erase(folder).expect("erased"), 2);
    assert_eq!(super::kept(folder).expect("readable").0, 0);
}

#[test]
fn at_the_end_all_is_worth_keeping_and_what_was_used_last_comes_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cache = cache(1, KvType::F16);
    let root = root(1, KvType::F16);
    let store = store_of(folder.path(), &cache, root, 99);
    for number in [1, 2, 3] {
        drop(compute(&mut cache, &text(number)));
    }
    // One page of it had to give way: three texts leave room for none of their ends.
    cache.all_found(4);
    let copies = copies(&cache, &store);
    let of = |number: u32| text(number)[..PAGE].to_vec();
    let firsts = copies.iter().filter(|copy| copy.depth == 0);
    let firsts: Vec<&[u32]> = firsts.map(|copy| &*copy.tokens).collect();
    assert_eq!(firsts, [&of(3)[..], &of(2)[..]]);
    assert_eq!(copies.len(), 4);
    for copy in &copies {
        assert!(store.write(copy).expect("written"));
    }
    let store = store_of(folder.path(), &cache, root, 99);
    let texts: Vec<Vec<u32>> = store.chains(99).collect();
    assert_eq!(texts, [&text(2)[..2 * PAGE], &text(3)[..2 * PAGE]]);
}
