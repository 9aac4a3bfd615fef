//! Files that a disk changed after they were closed: refused, or whole.

use std::collections::BTreeMap;
use std::env;

use bytes::Bytes;

use super::backend::Disk;
use crate::request::Priority;
use crate::spool::SpoolError;
use crate::spool::clock::{Seen, Stamp};
use crate::spool::record::{Door, Fingerprint, Header, Key, State};
use crate::spool::store::{Change, Store};

/// What a store holds.
type Contents = BTreeMap<u64, (Header, Option<Bytes>, Option<Bytes>)>;

fn contents(image: Vec<u8>) -> Result<Contents, SpoolError> {
    let store = Store::open(Disk::of(image), None)?;
    let headers = store.headers()?.into_iter();
    headers
        .map(|(number, header)| {
            let (request, answer) = (store.request(number)?, store.answer(number)?);
            Ok((number, (header, request, answer)))
        })
        .collect()
}

/// A store of so many records, closed in order.
fn image(records: u64) -> Vec<u8> {
    let disk = Disk::of(Vec::new());
    let mut store = Store::open(disk.clone(), None).expect("made");
    for number in 0..records {
        let header = Header {
            key: Key {
                door: Door::Mqtt,
                client: "plc".to_owned(),
                id: number.to_string(),
            },
            task: None,
            priority: Priority::Batch,
            fingerprint: Fingerprint::of(&[b"what was asked"]),
            state: State::Answered,
            attempt: 1,
            seed: number,
            arrived: Stamp::default(),
            due: None,
            answered: None,
            delivered: None,
            fault: None,
            request_bytes: 300,
            answer_bytes: 9,
            crashes: 0,
        };
        let change = Change::Put {
            number,
            header: Box::new(header),
            request: Some(Bytes::from(vec![b'q'; 300])),
            answer: Some(Bytes::from_static(b"an answer")),
        };
        store.apply(&[change], &Seen::default()).expect("kept");
    }
    drop(store);
    disk.now()
}

/// Numbers without an end (xorshift64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("small")
    }
}

#[test]
fn a_file_that_was_changed_after_it_was_closed_is_refused_or_whole() {
    let said = env::var("ANDON_SPOOL_CASES").ok();
    let cases = said.and_then(|text| text.parse().ok()).unwrap_or(200);
    let image = image(40);
    let sound = contents(image.clone()).expect("sound");
    assert_eq!(sound.len(), 40);
    let mut chance = Chance(0x5eed);
    let mut refused = 0;
    for case in 0..cases {
        let mut image = image.clone();
        for _ in 0..=chance.below(3) {
            // The header says where everything is.
            let end = if chance.below(4) == 0 {
                512
            } else {
                image.len()
            };
            image[chance.below(end)] ^= u8::try_from(1 + chance.below(255)).expect("a byte");
        }
        if chance.below(8) == 0 {
            image.truncate(chance.below(image.len()));
        }
        match contents(image) {
            Ok(found) => assert!(found == sound, "case {case}: {} records", found.len()),
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    // It tries what matters, and leaves alone what nothing uses.
    assert!(refused > cases / 8, "{refused} of {cases}");
    assert!(refused < cases, "{refused} of {cases}");
}

#[test]
fn a_number_that_no_spool_gets_to_is_damage() {
    let disk = Disk::of(image(1));
    let mut store = Store::open(disk.clone(), None).expect("sound");
    let header = store
        .headers()
        .expect("sound")
        .remove(&0)
        .expect("a record");
    let put = Change::Put {
        number: u64::MAX,
        header: Box::new(header),
        request: None,
        answer: None,
    };
    store.apply(&[put], &Seen::default()).expect("room");
    drop(store);
    let error = contents(disk.now()).expect_err("nothing comes after it");
    assert!(matches!(error, SpoolError::Damaged(_)), "{error}");
}
