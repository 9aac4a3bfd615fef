//! The spool whole, on a real folder.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use crate::config::spool::{Durable, SpoolConfig};
use crate::fault::{Fault, FaultCode};
use crate::request::Priority;
use crate::spool::book::Filter;
use crate::spool::clock::Seen;
use crate::spool::record::{Door, Fingerprint, Key, State};
use crate::spool::store::Store;
use crate::spool::tests::backend::Disk;
use crate::spool::writer::Place;
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
    let again = spool.again(number, 2, None, waiter().0).expect("there");
    assert_eq!((again.attempt, again.state), (3, State::Accepted));
    let begun = spool.again(number, 2, None, waiter().0);
    assert!(begun.is_none(), "another was begun already");
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
    // Nothing of what was dropped is left anywhere, and all else is.
    let (then, done) = waiter();
    spool.rewrite(then);
    done.recv().expect("told").expect("nothing to do");
    assert_eq!(read(&spool, number).expect("kept").request, "x");
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

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_waits_for_a_disk_that_hangs_is_told_and_no_more_is_taken() {
    let disk = Disk::default();
    let store = Store::open(disk.clone(), None).expect("opens");
    let config = SpoolConfig {
        patience_ms: 500,
        ..SpoolConfig::default()
    };
    let telemetry = Arc::new(Telemetry::new());
    let spool = Spool::start(&config, telemetry, Place::Memory, store).expect("starts");
    disk.hang(true);
    let fault = accept(&spool, new("1", "x")).expect_err("it hangs");
    assert_eq!(fault.code, FaultCode::Unavailable);
    assert!(spool.find(&key("1")).is_none());
    // The writer may have begun a little later than who waits for it.
    until("it fails", || spool.failing().is_some());
    let fault = accept(&spool, new("2", "x")).expect_err("nothing more");
    assert_eq!(fault.code, FaultCode::Unavailable);
    disk.hang(false);
    until("it works again", || spool.failing().is_none());
    accept(&spool, new("1", "x")).expect("it works");
    spool.close();
    drop(spool);
    let mut store = Store::open(Disk::of(disk.now()), None).expect("opens");
    assert_eq!(store.headers().expect("headers").len(), 1);
    store.apply(&[], &Seen::default()).expect("whole");
}

#[test]
fn a_spool_that_is_closed_tells_whoever_comes_later() {
    let config = SpoolConfig {
        durable: Durable::Off,
        ..SpoolConfig::default()
    };
    let spool = open(&config);
    accept(&spool, new("1", "x")).expect("kept");
    let (then, _) = waiter();
    let fault = spool
        .accept(new("1", "y"), then)
        .expect_err("its name is taken");
    assert_eq!(fault.code, FaultCode::DuplicateId);
    spool.close();
    accept(&spool, new("2", "x")).expect_err("closed");
    let (then, read) = waiter();
    spool.read(1, then);
    read.recv().expect("told").expect_err("closed");
    let (then, done) = waiter();
    spool.rewrite(then);
    done.recv().expect("told").expect_err("closed");
}

#[test]
fn the_clock_is_noted_at_the_end_also_where_nothing_else_is_written() {
    let disk = Disk::default();
    let store = Store::open(disk.clone(), None).expect("opens");
    let telemetry = Arc::new(Telemetry::new());
    let config = SpoolConfig::default();
    let spool = Spool::start(&config, telemetry, Place::Memory, store).expect("starts");
    accept(&spool, new("1", "x")).expect("kept");
    std::thread::sleep(Duration::from_millis(5));
    let before = spool.inner.clock.seen();
    spool.close();
    drop(spool);
    let store = Store::open(Disk::of(disk.now()), None).expect("opens");
    assert!(store.seen().expect("noted").ran_ms >= before.ran_ms);
}

#[test]
fn what_the_daemon_tries_anew_by_itself_is_as_old_as_it_is_and_what_rests_runs_no_more() {
    let config = SpoolConfig {
        durable: Durable::Off,
        ..SpoolConfig::default()
    };
    let spool = open(&config);
    let number = accept(&spool, new("1", "x")).expect("kept");
    let header = || spool.get(number).expect("there");
    let first = header();
    spool.running(number);
    spool.leave(number);
    assert_eq!(header().state, State::Running, "for a moment");
    spool.rest(number);
    assert_eq!(header(), first);
    std::thread::sleep(Duration::from_millis(5));
    spool.running(number);
    spool.anew(number);
    let second = header();
    assert_eq!((second.attempt, second.state), (2, State::Accepted));
    assert_eq!((second.arrived, second.due), (first.arrived, first.due));
    answer(&spool, number, "y");
    let answered = header();
    spool.anew(number);
    spool.rest(number);
    assert_eq!(header(), answered, "that has its answer");
    spool.close();
}

#[test]
fn of_those_that_may_end_the_daemon_one_runs_at_a_time() {
    let folder = TempDir::new().expect("a folder");
    let config = config(folder.path());
    let spool = open(&config);
    let numbers: Vec<u64> = ["1", "2", "3"]
        .iter()
        .map(|id| accept(&spool, new(id, "x")).expect("kept"))
        .collect();
    spool.running(numbers[0]);
    spool.running(numbers[1]);
    // On the disk with whatever comes next.
    accept(&spool, new("4", "x")).expect("kept");
    let image = std::fs::read(folder.path().join("spool.redb")).expect("readable");
    spool.close();
    drop(spool);
    // As if the daemon had been killed.
    std::fs::write(folder.path().join("spool.redb"), image).expect("writable");
    let spool = open(&config);
    let crashes = |number| spool.get(number).map(|header| header.crashes);
    assert_eq!(
        numbers.iter().map(|n| crashes(*n)).collect::<Vec<_>>(),
        [Some(1), Some(1), Some(0)]
    );
    assert!(spool.may_run(numbers[0]) && spool.may_run(numbers[0]));
    assert!(!spool.may_run(numbers[1]) && spool.may_run(numbers[2]));
    spool.leave(numbers[0]);
    assert!(spool.may_run(numbers[1]) && !spool.may_run(numbers[0]));
    answer(&spool, numbers[1], "y");
    assert!(spool.may_run(numbers[0]));
    let (then, failed) = waiter();
    assert!(spool.fail(
        numbers[1],
        Bytes::from_static(b"late"),
        FaultCode::DeadlineExceeded,
        then
    ));
    failed.recv().expect("told").expect("kept");
    let kept = read(&spool, numbers[1]).expect("there");
    assert_eq!(kept.answer.as_deref(), Some(b"late".as_slice()));
    spool.forget(numbers[1]);
    let (then, _) = waiter();
    assert!(
        !spool.fail(numbers[1], Bytes::new(), FaultCode::Internal, then),
        "it is gone"
    );
}
