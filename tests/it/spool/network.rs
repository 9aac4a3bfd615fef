//! Networks that are slow, silent and cut, between the daemon and its broker.
//!
//! `cargo xtask crash` runs as many rounds of this as of the kills; every day there are a few.

use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker;
use andon_tests::daemon::Daemon;
use andon_tests::link::{Link, Weather};

use super::campaign::{Chance, number};
use super::ledger::{Publisher, judge};
use super::{lasting_broker, metric};

#[test]
fn whatever_the_network_does_nothing_is_lost_and_nothing_is_answered_in_two_ways() {
    let rounds = number("ANDON_CRASH_ROUNDS", 4);
    let seed = number("ANDON_CRASH_SEED", 1);
    let mut chance = Chance::new(seed);
    let folder = tempfile::TempDir::new().unwrap();
    let broker = lasting_broker(folder.path());
    let link = Link::to(broker.port()).unwrap();
    let publisher = Publisher::start(broker.port(), "pub");
    // Silence is noticed after one and a half of the shortest keep-alive.
    let config = broker::config(link.port())
        + "keep-alive-s = 5\n[limits]\nclient-requests-max = 64\nclient-requests-per-minute = 60000\n";
    let status = broker.watch("andon/test/status", "mqttv5").unwrap();
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let online = |value: serde_json::Value| value["state"] == "online";
    status
        .wait_for(|seen| seen.json().is_ok_and(online))
        .unwrap();
    drop(status);
    let mut asked = 0;
    for round in 0..rounds {
        let weather = match round % 4 {
            0 => Weather::Slow(Duration::from_millis(chance.next(60))),
            1 => Weather::Down,
            2 => Weather::Silent,
            _ => Weather::Fair,
        };
        for _ in 0..=chance.next(6) {
            let tokens = 2 + chance.next(40);
            let stream = chance.next(2) == 0;
            let more = format!(
                r#""prompt":"the {asked}","temperature":1.0,"tokens_max":{tokens},"stream":{stream}"#
            );
            publisher.ask(&format!("{seed}-{asked}"), &more);
            asked += 1;
            thread::sleep(Duration::from_millis(chance.next(40)));
        }
        link.set(weather);
        let mut longest = Duration::from_millis(chance.next(1500));
        if weather == Weather::Silent && chance.next(8) == 0 {
            longest += Duration::from_secs(8);
        }
        thread::sleep(longest);
        // Cuts fall where messages are on their way.
        if weather == Weather::Fair {
            link.cut();
        } else {
            link.set(Weather::Fair);
        }
    }
    publisher.settled();
    let began = Instant::now();
    while ["accepted", "running", "answered"]
        .iter()
        .any(|state| metric(&daemon, "andon_spool_requests", state) > 0.0)
    {
        assert!(began.elapsed() < Duration::from_secs(60), "some are open");
        thread::sleep(Duration::from_millis(100));
    }
    // With nothing left to come, the whole of it.
    let ledger = publisher.settled();
    let repeated = judge(&ledger, true);
    assert_eq!(ledger.len(), usize::try_from(asked).unwrap());
    let connections = daemon.log().matches("connected to the broker").count();
    assert!(connections > 1, "{}", daemon.log());
    eprintln!(
        "{rounds} rounds of weather of seed {seed}: {asked} requests, {connections} connections, 0 lost, 0 answered in \
         two ways; {repeated} answers came again"
    );
}
