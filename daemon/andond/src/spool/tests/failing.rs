//! Disks that are full, read-only, or broken for a while; keys and schemas that do not fit.

use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;

use super::backend::Disk;
use super::crash::header;
use crate::spool::SpoolError;
use crate::spool::cipher::Secret;
use crate::spool::clock::Seen;
use crate::spool::record::State;
use crate::spool::schema::{SCHEMA, sample};
use crate::spool::store::{Change, Store};

fn put(number: u64, bytes: usize) -> Change {
    Change::Put {
        number,
        header: Box::new(header(number, State::Accepted)),
        request: Some(Bytes::from(vec![7; bytes])),
        answer: None,
    }
}

#[test]
fn a_full_disk_loses_nothing_and_goes_on_once_there_is_room() {
    let disk = Disk::default();
    let mut store = Store::open(disk.clone(), None).expect("opens");
    store.apply(&[put(1, 100)], &Seen::default()).expect("room");
    disk.fill_at(disk.bytes());
    let mut number = 1;
    let error = loop {
        number += 1;
        match store.apply(&[put(number, 30_000)], &Seen::default()) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full(_)), "{error}");
    drop(store);
    // Still full: what was kept is still there, and what was not is not.
    let store = Store::open(Disk::of(disk.now()), None).expect("opens");
    let kept = store.headers().expect("headers");
    assert!(kept.len() as u64 >= number - 1 && kept.len() as u64 <= number);
    drop(store);
    disk.mend();
    let mut store = Store::open(disk, None).expect("opens");
    store
        .apply(&[put(number, 30_000)], &Seen::default())
        .expect("room again");
    assert_eq!(store.headers().expect("headers").len() as u64, number);
}

#[test]
fn whatever_operation_fails_the_store_opens_again_with_all_that_was_safe() {
    for operations in 0..60 {
        let disk = Disk::default();
        let mut store = Store::open(disk.clone(), None).expect("opens");
        store
            .apply(&[put(1, 5000)], &Seen::default())
            .expect("kept");
        disk.fail_in(operations, ErrorKind::ReadOnlyFilesystem);
        let kept = store.apply(&[put(2, 5000)], &Seen::default()).is_ok();
        drop(store);
        // Broken still: it cannot be opened, and says so.
        if !kept {
            let error = Store::open(disk.clone(), None).expect_err("it fails");
            assert!(matches!(error, SpoolError::Storage(_)), "{error}");
        }
        disk.mend();
        let store = Store::open(disk, None).expect("opens");
        let numbers: Vec<u64> = store.headers().expect("headers").into_keys().collect();
        assert!(
            numbers == [1, 2] || (!kept && numbers == [1]),
            "{numbers:?}"
        );
    }
}

#[test]
fn a_commit_costs_one_sync() {
    let disk = Disk::default();
    let mut store = Store::open(disk.clone(), None).expect("opens");
    store.apply(&[put(1, 10)], &Seen::default()).expect("kept");
    let before = disk.syncs();
    let many: Vec<Change> = (2..50).map(|number| put(number, 200)).collect();
    store.apply(&many, &Seen::default()).expect("kept");
    assert_eq!(disk.syncs() - before, 1);
}

#[test]
fn space_is_used_again() {
    let disk = Disk::default();
    let mut store = Store::open(disk.clone(), None).expect("opens");
    let mut largest = 0;
    for round in 0..400 {
        let number = round + 1;
        store
            .apply(&[put(number, 20_000)], &Seen::default())
            .expect("kept");
        if round >= 10 {
            store
                .apply(&[Change::Drop(number - 10)], &Seen::default())
                .expect("dropped");
        }
        if round == 100 {
            largest = disk.bytes();
        }
    }
    assert!(
        disk.bytes() <= largest.max(4 << 20),
        "{} bytes, {largest} after a while",
        disk.bytes()
    );
}

#[test]
fn another_key_no_key_and_a_later_schema_are_told_apart() {
    let secret = |byte| Secret::new(vec![byte; 40]).expect("a key");
    let disk = Disk::default();
    let mut store = Store::open(disk.clone(), Some(&secret(1))).expect("opens");
    store.apply(&[put(1, 100)], &Seen::default()).expect("kept");
    store.pretend_schema(SCHEMA + 1);
    drop(store);
    let image = disk.now();
    let open = |secret: Option<Secret>| Store::open(Disk::of(image.clone()), secret.as_ref());
    assert!(matches!(open(None), Err(SpoolError::NoKey)));
    assert!(matches!(open(Some(secret(2))), Err(SpoolError::WrongKey)));
    let error = open(Some(secret(1))).expect_err("too new");
    assert!(matches!(error, SpoolError::Newer { found, .. } if found == SCHEMA + 1));
    assert!(error.needs_a_person());
    let name = b"plc-1";
    assert!(!image.windows(name.len()).any(|bytes| bytes == name));
}

#[test]
fn a_file_of_an_earlier_schema_is_brought_up_to_date() {
    for found in [1, 2] {
        let secret = Secret::new(vec![1; 40]).expect("a key");
        let disk = Disk::default();
        let mut store = Store::open(disk.clone(), Some(&secret)).expect("opens");
        store
            .apply(&[put(1, 9), put(2, 9)], &Seen::default())
            .expect("kept");
        let (header, seen, becomes) = sample(found);
        store.pretend_earlier(found, &header, &seen);
        drop(store);
        for _ in 0..2 {
            let store = Store::open(disk.clone(), Some(&secret)).expect("opens");
            let headers = store.headers().expect("headers");
            assert!(headers.len() == 2 && headers.values().all(|header| *header == becomes));
            let seen = store.seen().expect("noted");
            assert_eq!((seen.boot, seen.up_ms, seen.ran_ms), (7, 9000, 9000));
            assert!(store.request(1).expect("readable").is_some());
        }
    }
}

#[test]
fn what_is_no_spool_is_not_opened_and_not_changed() {
    let image = vec![b'x'; 8192];
    let disk = Disk::of(image.clone());
    let error = Store::open(disk.clone(), None).expect_err("no spool");
    assert!(matches!(error, SpoolError::Damaged(_)), "{error}");
    assert_eq!(disk.now(), image);
}

#[test]
fn a_disk_too_full_to_begin_is_told_as_such() {
    let disk = Disk::default();
    disk.fill_at(1000);
    let error = Store::open(disk, None).expect_err("no room");
    assert!(matches!(error, SpoolError::Full(None)), "{error}");
    let error = error.of(Path::new("/var/lib/x")).to_string();
    assert!(error.contains("/var/lib/x is full"), "{error}");
}
