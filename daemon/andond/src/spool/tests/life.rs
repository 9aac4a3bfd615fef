//! The spool whole, on a real folder.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use crate::config::spool::{Durable, SpoolConfig};
use crate::fault::{Fault, FaultCode};
use crate::request::Priority;
use crate::spool::book::Filter;
use crate::spool::record::{Door, Fingerprint, Key, State};
use crate::spool::{Kept, New, Order, Spool, SpoolError, Then};
use crate::telemetry::Telemetry;

fn config(dir: &Path) -> SpoolConfig {
    SpoolConfig {
        dir: dir.to_path_buf(),
        ..SpoolConfig::default()
    }
}

fn open(config: &SpoolConfig) -> Spool {
    Spool::open(config, Arc::new(Telemetry::new())).expect("opens")
}

fn key(id: &str) -> Key {
    Key {
        door: Door::Mqtt,
        client: "plc".to_owned(),
        id: id.to_owned(),
    }
}

fn new(id: &str, request: &'static str) -> New {
    New {
        key: key(id),
        task: Some("explain".to_owned()),
        priority: Priority::Interactive,
        fingerprint: Fingerprint::of(&[request.as_bytes()]),
        seed: 9,
        left: Some(Duration::from_secs(60)),
        request: Bytes::from_static(request.as_bytes()),
    }
}

fn waiter<T: Send + 'static>() -> (Then<T>, Receiver<Result<T, Fault>>) {
    let (sender, receiver) = channel();
    (
        Box::new(move |outcome| drop(sender.send(outcome))),
        receiver,
    )
}

fn accept(spool: &Spool, new: New) -> Result<u64, Fault> {
    let (then, kept) = waiter();
    let number = spool.accept(new, then)?;
    kept.recv().expect("told").map(|()| number)
}

fn answer(spool: &Spool, number: u64, text: &'static str) {
    let (then, kept) = waiter();
    assert!(spool.answer(number, Bytes::from_static(text.as_bytes()), None, then));
    kept.recv().expect("told").expect("kept");
}

fn read(spool: &Spool, number: u64) -> Option<Kept> {
    let (then, read) = waiter();
    spool.read(number, then);
    read.recv().expect("told").expect("readable")
}

#[test]
fn a_request_goes_through_its_states_and_starts() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path().join("state/spool");
    let config = config(&dir);
    let spool = open(&config);
    assert!(spool.is_durable());
    let number = accept(&spool, new("1", "why?")).expect("kept");
    spool.running(number);
    assert_eq!(
        spool.find(&key("1")).map(|(_, header)| header.state),
        Some(State::Running)
    );
    assert!(matches!(
        Spool::open(&config, Arc::new(Telemetry::new())),
        Err(SpoolError::InUse(_))
    ));
    spool.close();
    drop(spool);

    let spool = open(&config);
    let (found, header) = spool.find(&key("1")).expect("still there");
    assert_eq!(
        (found, header.attempt, header.state),
        (number, 2, State::Accepted)
    );
    assert_eq!(header.seed, 9);
    assert!(spool.deadline(&header).is_some());
    assert_eq!(read(&spool, number).expect("kept").request, "why?");
    answer(&spool, number, "because");
    let (then, _) = waiter();
    assert!(!spool.answer(number, Bytes::new(), None, then), "once only");
    spool.delivered(number);
    spool.close();
    drop(spool);

    let spool = open(&config);
    let kept = read(&spool, number).expect("kept for a repetition");
    assert_eq!(
        (kept.header.state, kept.header.attempt),
        (State::Delivered, 2)
    );
    assert_eq!(kept.answer.as_deref(), Some(b"because".as_slice()));
    let again = spool.again(number, None, waiter().0).expect("there");
    assert_eq!((again.attempt, again.state), (3, State::Accepted));
    assert_eq!(read(&spool, number).expect("kept").answer, None);
}

#[test]
fn a_daemon_that_stops_in_order_leaves_nothing_running() {
    let folder = TempDir::new().expect("a folder");
    let config = config(folder.path());
    let mut number = 0;
    for _ in 0..2 {
        let spool = open(&config);
        if number == 0 {
            number = accept(&spool, new("1", "x")).expect("kept");
        }
        spool.running(number);
        spool.close();
    }
    let header = open(&config).get(number).expect("there");
    assert_eq!((header.attempt, header.crashes), (3, 0));
}

#[test]
fn what_is_dropped_is_gone_from_the_file_too() {
    let folder = TempDir::new().expect("a folder");
    let config = config(folder.path());
    let spool = open(&config);
    let mut orders = spool.orders(Door::Mqtt);
    let number = accept(&spool, new("1", "the-secret-of-the-plant")).expect("kept");
    let file = || std::fs::read(folder.path().join("spool.redb")).expect("readable");
    let told = |bytes: &[u8]| bytes.windows(10).any(|bytes| bytes == b"the-secret");
    assert!(told(&file()));
    let filter = Filter {
        client: Some("plc".to_owned()),
        ..Filter::default()
    };
    assert_eq!(spool.drop_all(&filter), 1);
    assert_eq!(
        orders.try_recv().ok(),
        Some(Order::Dropped(number, key("1")))
    );
    let (then, done) = waiter();
    spool.rewrite(then);
    done.recv().expect("told").expect("written");
    assert!(!told(&file()));
    assert!(spool.find(&key("1")).is_none());
    // It goes on in the new file.
    accept(&spool, new("2", "x")).expect("kept");
    spool.close();
    drop(spool);
    assert_eq!(open(&config).list(&Filter::default()).len(), 1);
}

#[test]
fn a_full_spool_refuses_and_what_was_delivered_gives_way() {
    let folder = TempDir::new().expect("a folder");
    let spool = open(&SpoolConfig {
        requests_max: 2,
        ..config(folder.path())
    });
    let first = accept(&spool, new("1", "x")).expect("room");
    accept(&spool, new("2", "x")).expect("room");
    let fault = accept(&spool, new("3", "x")).expect_err("full");
    assert_eq!(fault.code, FaultCode::Busy);
    assert!(fault.retry_after.is_some());
    answer(&spool, first, "y");
    assert!(accept(&spool, new("3", "x")).is_err(), "not delivered yet");
    spool.delivered(first);
    accept(&spool, new("3", "x")).expect("the delivered one gives way");
    assert!(spool.find(&key("1")).is_none());
}

#[test]
fn a_spool_in_memory_does_the_same_and_ends_with_the_daemon() {
    let config = SpoolConfig {
        durable: Durable::Off,
        dir: "/nowhere/at/all".into(),
        ..SpoolConfig::default()
    };
    let spool = open(&config);
    assert!(!spool.is_durable());
    let number = accept(&spool, new("1", "x")).expect("kept");
    answer(&spool, number, "y");
    assert_eq!(
        read(&spool, number).expect("kept").answer.as_deref(),
        Some(b"y".as_slice())
    );
    spool.close();
    assert!(open(&config).find(&key("1")).is_none());
}

#[test]
fn a_folder_that_cannot_be_is_told_with_a_way_out() {
    let config = config(Path::new("/proc/andon-spool"));
    let error = Spool::open(&config, Arc::new(Telemetry::new())).expect_err("no folder");
    assert!(matches!(error, SpoolError::Folder(..)));
    assert!(error.needs_a_person());
    assert!(error.to_string().contains("StateDirectory"), "{error}");
}

#[test]
fn a_spool_in_the_clear_is_encrypted_once_there_is_a_key() {
    let folder = TempDir::new().expect("a folder");
    let plain = config(&folder.path().join("spool"));
    let spool = open(&plain);
    let number = accept(&spool, new("1", "the-secret")).expect("kept");
    spool.close();
    drop(spool);
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, [5; 32]).expect("writable");
    let sealed = SpoolConfig {
        key_file: Some(key_file.clone()),
        ..plain.clone()
    };
    let spool = open(&sealed);
    let file = std::fs::read(plain.dir.join("spool.redb")).expect("readable");
    for word in [b"the-secret".as_slice(), b"explain"] {
        assert!(!file.windows(word.len()).any(|bytes| bytes == word));
    }
    assert_eq!(read(&spool, number).expect("kept").request, "the-secret");
    spool.close();
    drop(spool);
    let failure = |config| Spool::open(config, Arc::new(Telemetry::new())).expect_err("refused");
    assert!(matches!(failure(&plain), SpoolError::NoKey));
    std::fs::write(&key_file, [6; 32]).expect("writable");
    assert!(matches!(failure(&sealed), SpoolError::WrongKey));
    std::fs::write(&key_file, b"short").expect("writable");
    assert!(matches!(failure(&sealed), SpoolError::Key(..)));
}
