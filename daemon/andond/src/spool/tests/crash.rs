//! Whatever a crash leaves of what was not synced, nothing that was safe is lost, no state goes back, and the file opens.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::backend::Disk;
use crate::request::Priority;
use crate::spool::book::begin_attempts;
use crate::spool::cipher::Secret;
use crate::spool::clock::{Seen, Stamp};
use crate::spool::record::{Door, Fingerprint, Header, Key, State};
use crate::spool::store::{Change, Store};

/// What a model of the store holds: header, request and answer.
type Model = BTreeMap<u64, (Header, Vec<u8>, Option<Vec<u8>>)>;

pub(in crate::spool) fn header(number: u64, state: State) -> Header {
    Header {
        key: Key {
            door: Door::Mqtt,
            client: format!("plc-{}", number % 3),
            id: number.to_string(),
        },
        task: None,
        priority: Priority::Interactive,
        fingerprint: Fingerprint::of(&[&number.to_le_bytes()]),
        state,
        attempt: 1,
        seed: number,
        arrived: Stamp::default(),
        due: None,
        answered: None,
        delivered: None,
        fault: None,
        request_bytes: 0,
        answer_bytes: 0,
        crashes: 0,
    }
}

/// A step of a spool's life.
#[derive(Debug, Clone)]
enum Step {
    /// Takes so many requests of so many bytes in one commit.
    Accept(u8, u16),
    /// Moves one of the records on, with an answer of so many bytes if that is what it needs.
    Forward(u16, u16),
    /// Drops one.
    Drop(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u8..4, 0u16..9000).prop_map(|(count, bytes)| Step::Accept(count, bytes)),
        5 => (any::<u16>(), 0u16..9000).prop_map(|(which, bytes)| Step::Forward(which, bytes)),
        1 => any::<u16>().prop_map(Step::Drop),
    ];
    proptest::collection::vec(step, 1..24)
}

/// The changes of a step, and the model after it.
fn changes(step: &Step, model: &Model, next: &mut u64) -> (Vec<Change>, Model) {
    let mut after = model.clone();
    let of = |which: u16| {
        let count = model.len().max(1);
        model.keys().nth(usize::from(which) % count).copied()
    };
    let changes = match step {
        Step::Accept(count, bytes) => (0..*count)
            .map(|_| {
                *next += 1;
                let request = vec![*next as u8; usize::from(*bytes)];
                let header = header(*next, State::Accepted);
                after.insert(*next, (header.clone(), request.clone(), None));
                Change::Put {
                    number: *next,
                    header: Box::new(header),
                    request: Some(Bytes::from(request)),
                    answer: None,
                }
            })
            .collect(),
        Step::Forward(which, bytes) => {
            let Some(number) = of(*which) else {
                return (Vec::new(), after);
            };
            let (header, _, answer) = after.get_mut(&number).unwrap();
            let mut given = None;
            header.state = match header.state {
                State::Accepted => State::Running,
                State::Running => {
                    let text = vec![number as u8 ^ 0xff; usize::from(*bytes)];
                    *answer = Some(text.clone());
                    given = Some(Bytes::from(text));
                    State::Answered
                }
                State::Answered | State::Delivered => State::Delivered,
            };
            vec![Change::Put {
                number,
                header: Box::new(header.clone()),
                request: None,
                answer: given,
            }]
        }
        Step::Drop(which) => {
            let Some(number) = of(*which) else {
                return (Vec::new(), after);
            };
            after.remove(&number);
            vec![Change::Drop(number)]
        }
    };
    (changes, after)
}

fn contents(store: &Store) -> Model {
    let headers = store.headers().expect("headers");
    headers
        .into_iter()
        .map(|(number, header)| {
            let request = store.request(number).expect("readable").expect("a request");
            let answer = store.answer(number).expect("readable");
            let answer = answer.map(|answer| answer.to_vec());
            (number, (header, request.to_vec(), answer))
        })
        .collect()
}

/// A stream of choices made of a seed, so that a failing case is told by a number.
fn chooser(mut seed: u64, likely: u64) -> impl FnMut() -> bool {
    move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % 100 < likely
    }
}

fn secret(encrypted: bool) -> Option<Secret> {
    encrypted.then(|| Secret::new(vec![3; 32]).expect("a key"))
}

fn cases(days: u32) -> ProptestConfig {
    let many = std::env::var("ANDON_SPOOL_CASES").ok();
    let cases = many.and_then(|many| many.parse().ok()).unwrap_or(days);
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(48))]

    /// The power goes after a commit, with anything lost that no sync promised, and once more while the file is being
    /// mended, in any mix of what was on its way there or not.
    #[test]
    fn a_power_cut_loses_nothing_that_was_safe(
        steps in steps(),
        encrypted in any::<bool>(),
        seed in any::<u64>(),
        likely in prop_oneof![Just(0u64), Just(10), Just(50), Just(90), Just(100)],
    ) {
        let secret = secret(encrypted);
        let disk = Disk::default();
        let mut store = Store::open(disk.clone(), secret.as_ref()).expect("opens");
        let (mut model, mut next) = (Model::new(), 0);
        for step in &steps {
            let (changes, after) = changes(step, &model, &mut next);
            store.apply(&changes, &Seen::default()).expect("applied");
            model = after;
        }
        let image = disk.after_power_cut(chooser(seed, likely));
        drop(store);
        // Opening repairs, and that is cut off, too.
        let disk = Disk::of(image);
        let store = Store::open(disk.clone(), secret.as_ref()).expect("opens after a cut");
        let again = disk.after_power_cut(chooser(seed.rotate_left(7), likely));
        prop_assert_eq!(&contents(&store), &model);
        drop(store);
        let store = Store::open(Disk::of(again), secret.as_ref()).expect("opens after two");
        prop_assert_eq!(&contents(&store), &model);
    }

    /// The same inside a commit: its writes are done in part and nothing was promised.
    #[test]
    fn a_commit_cut_off_is_there_whole_or_not_at_all(
        steps in steps(),
        encrypted in any::<bool>(),
        seed in any::<u64>(),
        likely in prop_oneof![Just(0u64), Just(10), Just(50), Just(90), Just(100)],
        operations in 0u64..40,
        cut_power in any::<bool>(),
    ) {
        let secret = secret(encrypted);
        let disk = Disk::default();
        let mut store = Store::open(disk.clone(), secret.as_ref()).expect("opens");
        let (mut model, mut next) = (Model::new(), 0);
        let (last, before) = steps.split_last().expect("a step at least");
        for step in before {
            let (changes, after) = changes(step, &model, &mut next);
            store.apply(&changes, &Seen::default()).expect("applied");
            model = after;
        }
        let (changes, after) = changes(last, &model, &mut next);
        disk.fail_in(operations, std::io::ErrorKind::Other);
        let outcome = store.apply(&changes, &Seen::default());
        let image = if cut_power {
            disk.after_power_cut(chooser(seed, likely))
        } else {
            disk.now()
        };
        drop(store);
        let mut possible = vec![after.clone()];
        if outcome.is_err() {
            possible.push(model);
        }
        let disk = Disk::of(image);
        let mut store = Store::open(disk, secret.as_ref()).expect("opens after a cut");
        prop_assert!(possible.contains(&contents(&store)), "neither before nor after");
        // What the writer does then: the same again.
        store.apply(&changes, &Seen::default()).expect("applied again");
        prop_assert_eq!(contents(&store), after);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// Starts that are cut off, one after the other: no attempt has the number of one before of which anything may have
    /// been published.
    #[test]
    fn attempts_only_rise(
        seed in any::<u64>(),
        starts in 1usize..6,
        likely in prop_oneof![Just(0u64), Just(50), Just(100)],
    ) {
        let disk = Disk::default();
        let mut store = Store::open(disk.clone(), None).expect("opens");
        let accepted = Change::Put {
            number: 1,
            header: Box::new(header(1, State::Accepted)),
            request: Some(Bytes::from_static(b"x")),
            answer: None,
        };
        store.apply(&[accepted], &Seen::default()).expect("applied");
        let mut image = disk.after_power_cut(chooser(seed, likely));
        let mut published = 1;
        for start in 0..starts {
            let disk = Disk::of(image);
            let mut store = Store::open(disk.clone(), None).expect("opens");
            let mut records = store.headers().expect("headers");
            begin_attempts(&mut records, false);
            let begun = records[&1].clone();
            prop_assert!(begun.attempt > published);
            let put = Change::Put {
                number: 1,
                header: Box::new(begun.clone()),
                request: None,
                answer: None,
            };
            // Nothing is published of an attempt whose beginning was cut off.
            if (seed >> start) & 1 == 0 {
                store.apply(&[put], &Seen::default()).expect("applied");
                published = begun.attempt;
            }
            image = disk.after_power_cut(chooser(seed ^ start as u64, likely));
        }
    }
}
