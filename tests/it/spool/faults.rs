//! Disks that are full or read-only, and folders that are not there.

use std::fs;
use std::time::{Duration, Instant};

use andon_tests::broker::Broker;
use andon_tests::daemon::Daemon;
use andon_tests::mount::Mount;

use super::ledger::{Publisher, judge};
use super::started;
use crate::metrics::sum;

fn config(broker: &Broker, mount: &Mount) -> String {
    format!(
        "{}[spool]\ndir = \"{}\"\npatience-ms = 200\n",
        broker.config(),
        mount.path().join("spool").display()
    )
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const SHORT: &str = r#""prompt":"a","tokens_max":2"#;

/// Asks until a request is refused because it cannot be kept; says how many were answered before.
fn until_refused(publisher: &Publisher, name: &str) -> usize {
    let long = format!(r#""prompt":"{}","tokens_max":2"#, "word ".repeat(4000));
    for count in 0..200 {
        let id = format!("{name}-{count}");
        publisher.ask(&id, &long);
        wait("no word", || publisher.open() == 0);
        let end = publisher.end_of(&id);
        if end.contains("\"unavailable\"") {
            assert!(end.contains("cannot be kept"), "{end}");
            return count;
        }
    }
    panic!("the disk is never full");
}

#[test]
fn on_a_full_or_read_only_disk_requests_are_refused_and_none_is_lost() {
    let Some(mount) = Mount::make("size=2m") else {
        eprintln!(
            "skipped: nothing may be mounted here; full disks are left to the tests of failing backends"
        );
        return;
    };
    let broker = Broker::start().unwrap();
    let builder = Daemon::builder().config(&config(&broker, &mount));
    let mut daemon = started(&broker, builder);
    let publisher = Publisher::start(broker.port(), "pub");
    publisher.ask("before", SHORT);
    publisher.settled();
    let fill = mount.path().join("fill");
    fs::write(&fill, vec![0; 1 << 20]).unwrap();
    until_refused(&publisher, "full");
    assert!((sum(&daemon, "andon_spool_failing", "") - 1.0).abs() < 0.5);
    assert!(daemon.log().contains("the spool fails"), "{}", daemon.log());
    fs::remove_file(&fill).unwrap();
    wait("the spool never works again", || {
        publisher.ask("after", SHORT);
        std::thread::sleep(Duration::from_millis(200));
        let ends = publisher.settled()["after"].ends.clone();
        ends.iter().any(|end| end.contains("\"answer\""))
    });
    // What was kept while it was full was kept.
    daemon.restart().unwrap();
    publisher.ask("before", SHORT);
    let ledger = publisher.settled();
    assert_eq!(ledger["before"].ends[0], ledger["before"].ends[1]);

    // A start on a read-only one says what is wrong, and that a person has to see to it.
    daemon.kill().unwrap();
    assert!(mount.run(&["-o", "remount,ro"]));
    daemon.relaunch(&[]).unwrap();
    let status = daemon.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(78), "{}", daemon.log());
    assert!(daemon.log().contains("StateDirectory"), "{}", daemon.log());
    assert!(mount.run(&["-o", "remount,rw"]));
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    publisher.ask("rw", SHORT);
    let ledger = publisher.settled();
    judge(
        &ledger.into_iter().filter(|(id, _)| id == "rw").collect(),
        false,
    );

    // A start that has no room to make a spool says so, and needs nobody but who makes some.
    daemon.kill().unwrap();
    fs::remove_file(mount.path().join("spool/spool.redb")).unwrap();
    assert!(fs::write(&fill, vec![0; 4 << 20]).is_err(), "it is full");
    daemon.relaunch(&[]).unwrap();
    let status = daemon.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(
        daemon.log().contains("is full: make room"),
        "{}",
        daemon.log()
    );
    fs::remove_file(&fill).unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
}

#[test]
fn without_a_folder_the_daemon_starts_only_if_it_may_forget() {
    let dir = "[spool]\ndir = \"/proc/andon\"\n";
    let mut daemon = Daemon::builder().config(dir).spawn().unwrap();
    let status = daemon.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(78));
    let log = daemon.log();
    for words in [
        "/proc/andon",
        "spool.dir",
        "StateDirectory",
        "spool.durable",
    ] {
        assert!(log.contains(words), "{log}");
    }
    let off = format!("{dir}durable = \"off\"\n");
    let daemon = Daemon::builder().config(&off).start().unwrap();
    assert!(daemon.log().contains("do not survive"), "{}", daemon.log());
}
