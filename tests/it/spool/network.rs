//! Networks that are slow, silent and cut, between the daemon and its broker.
//!
//! A relay delays and cuts connections in mid-message; where this may be done, a namespace of the kernel's has its cable pulled,
//! of which no connection is told, and made too thin for what has to pass. `cargo xtask crash` runs as many rounds of each as of
//! the kills; every day there are a few.

use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{self, Broker};
use andon_tests::daemon::Daemon;
use andon_tests::link::{Link, Weather};
use andon_tests::network::Network;

use super::campaign::{Chance, number};
use super::ledger::{Publisher, judge};
use super::{lasting_broker, lasting_broker_at, started};
use crate::metrics::sum;

/// Longer than one and a half of the shortest keep-alive, after which silence is noticed.
const SILENCE: Duration = Duration::from_secs(11);

/// From so many rounds on something must have been on its way when a connection ended, and come again.
const ROUNDS_FOR_REPEATS: u64 = 40;

/// So many unanswered requests are left when a round begins: with what a round asks they stay below what the daemon takes,
/// however slow the machine is, and a refusal is none that was foreseen.
const OPEN_MAX: usize = 32;

/// A daemon whose broker is somewhere else, and who asks it over that broker.
struct Gateway {
    daemon: Daemon,
    publisher: Publisher,
    asked: usize,
    seed: u64,
}

impl Gateway {
    fn start(seed: u64, broker: &Broker, mqtt: &str, before: Vec<String>) -> Gateway {
        let publisher = Publisher::start(broker.port(), "pub");
        let config = format!(
            "{mqtt}keep-alive-s = 5\n[limits]\nclient-requests-max = 64\nclient-requests-per-minute = 60000\n"
        );
        let builder = Daemon::builder().config(&config).before(before);
        let daemon = started(broker, builder);
        Gateway {
            daemon,
            publisher,
            asked: 0,
            seed,
        }
    }

    /// Asks a few things.
    fn ask(&mut self, chance: &mut Chance) {
        for _ in 0..=chance.next(6) {
            let tokens = 2 + chance.next(40);
            let stream = chance.next(2) == 0;
            let more = format!(
                r#""prompt":"the {}","temperature":1.0,"tokens_max":{tokens},"stream":{stream}"#,
                self.asked
            );
            let id = format!("{}-{}", self.seed, self.asked);
            self.publisher.ask(&id, &more);
            self.asked += 1;
            thread::sleep(Duration::from_millis(chance.next(40)));
        }
    }

    /// Connections to the broker that there were, by the journal.
    fn connections(&self) -> usize {
        self.daemon.log().matches("connected to the broker").count()
    }

    /// How often the journal says that there is none any more, or none to be had.
    fn losses(&self) -> usize {
        let log = self.daemon.log();
        log.matches("the broker is not connected").count()
    }

    /// Waits until the journal says of more ends of connections than these.
    fn lost(&self, before: usize) {
        let began = Instant::now();
        while self.losses() <= before {
            assert!(began.elapsed() < Duration::from_secs(60), "no end is seen");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The journal says of so many ends of connections, and another one after each.
    fn told(&self, ends: usize) {
        self.connected();
        let (connections, losses) = (self.connections(), self.losses());
        assert!(
            connections > ends && losses >= ends,
            "{connections} connections, {losses} losses, {ends} ends"
        );
    }

    /// Waits until the daemon is connected and has answered most of what was asked.
    fn connected(&self) {
        let began = Instant::now();
        while self.publisher.open() > OPEN_MAX {
            assert!(began.elapsed() < Duration::from_secs(180), "no answers");
            thread::sleep(Duration::from_millis(20));
        }
        let began = Instant::now();
        while sum(&self.daemon, "andon_mqtt_connected", "") < 0.5 {
            assert!(began.elapsed() < Duration::from_secs(60), "no connection");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything was answered, and judges that.
    fn judge(&self, what: &str, rounds: u64) {
        self.publisher.settled();
        let began = Instant::now();
        while ["accepted", "running", "answered"]
            .iter()
            .any(|state| sum(&self.daemon, "andon_spool_requests", state) > 0.0)
        {
            assert!(began.elapsed() < Duration::from_secs(60), "some are open");
            thread::sleep(Duration::from_millis(100));
        }
        // With nothing left to come, the whole of it.
        let ledger = self.publisher.settled();
        let dropped = self.daemon.log().contains("events were dropped");
        let outcome = judge(&ledger, dropped);
        assert_eq!(ledger.len(), self.asked);
        assert_eq!(outcome.given_up, 0, "nothing killed the daemon");
        eprintln!(
            "{rounds} rounds of {what} of seed {}: {} requests, {} connections, {} ends of one, 0 lost, 0 answered in two \
             ways; {} answers came again",
            self.seed,
            self.asked,
            self.connections(),
            self.losses(),
            outcome.repeated
        );
        if rounds >= ROUNDS_FOR_REPEATS {
            assert!(
                outcome.repeated > 0,
                "no connection ended with an answer on its way"
            );
        }
    }
}

#[test]
fn whatever_the_network_does_nothing_is_lost_and_nothing_is_answered_in_two_ways() {
    let rounds = number("ANDON_CRASH_ROUNDS", 4);
    let seed = number("ANDON_CRASH_SEED", 1);
    let mut chance = Chance::new(seed);
    let folder = tempfile::TempDir::new().unwrap();
    let broker = lasting_broker(folder.path());
    let link = Link::to(broker.port()).unwrap();
    let mut gateway = Gateway::start(seed, &broker, &broker::config(link.port()), Vec::new());
    let (mut ends, mut long) = (0, false);
    for round in 0..rounds {
        let weather = match round % 4 {
            0 => Weather::Slow(Duration::from_millis(10 + chance.next(50))),
            1 => Weather::Down,
            2 => Weather::Silent,
            _ => Weather::Fair,
        };
        // What is to end has to be there.
        gateway.connected();
        let losses = gateway.losses();
        gateway.ask(&mut chance);
        link.set(weather);
        let mut longest = Duration::from_millis(chance.next(1500));
        if weather == Weather::Silent && (!long || chance.next(8) == 0) {
            long = true;
            longest = SILENCE;
            ends += 1;
        }
        thread::sleep(longest);
        // Cuts fall where messages are on their way.
        if weather == Weather::Fair {
            link.cut();
        } else {
            link.set(Weather::Fair);
        }
        if matches!(weather, Weather::Fair | Weather::Down) {
            ends += 1;
            gateway.lost(losses);
        }
    }
    gateway.judge("weather", rounds);
    gateway.told(ends);
}

#[test]
fn whatever_happens_to_the_cable_nothing_is_lost_and_nothing_is_answered_in_two_ways() {
    let network = match Network::make() {
        Ok(network) => network,
        Err(error) => {
            eprintln!("skipped: no network can be made here: {error}");
            return;
        }
    };
    let rounds = number("ANDON_CRASH_ROUNDS", 2);
    let seed = number("ANDON_CRASH_SEED", 1);
    let mut chance = Chance::new(seed);
    let folder = tempfile::TempDir::new().unwrap();
    let broker = lasting_broker_at(folder.path(), Some(network.outside()));
    let mqtt = broker
        .config()
        .replace("127.0.0.1", &network.outside().to_string());
    let mut gateway = Gateway::start(seed, &broker, &mqtt, network.inside());
    let mut ends = 0;
    for round in 0..rounds {
        gateway.connected();
        if round % 2 == 0 {
            gateway.ask(&mut chance);
            network.plug(false).unwrap();
            // What is asked meanwhile waits at the broker.
            gateway.ask(&mut chance);
            if round == 0 || chance.next(8) == 0 {
                thread::sleep(SILENCE);
                ends += 1;
            } else {
                thread::sleep(Duration::from_millis(chance.next(2500)));
            }
            network.plug(true).unwrap();
        } else {
            let kilobits = u32::try_from(24 + chance.next(100)).unwrap();
            network.thin(kilobits).unwrap();
            gateway.ask(&mut chance);
            thread::sleep(Duration::from_millis(chance.next(3000)));
            network.whole().unwrap();
        }
    }
    gateway.judge("cable", rounds);
    gateway.told(ends);
}
