//! Rounds of kill -9 under load, at every place where a request changes its state, with a real broker in between.
//!
//! `cargo xtask crash --rounds N --seed S` runs many; every day there are a few. Answers are drawn at random, with no
//! seed said, so that one computed again is the same only if the spool kept what it was drawn with.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use std::{env, thread};

use andon_tests::daemon::Daemon;
use andond::spool::KILL_POINTS;

use super::ledger::{Publisher, judge};
use super::{lasting_broker, started};
use crate::metrics::sum;

/// Where the daemon is made to end, beside wherever a clock finds it: at all places but the last, to which requests do not
/// come, since a store is replaced seldom.
const POINTS: &[&str] = KILL_POINTS.split_last().unwrap().1;

/// A way through `POINTS` that 5 rounds find the sharpest places of.
const STRIDE: usize = 5;

/// From so many rounds on each place must have ended a daemon: they come to each ten times.
const ROUNDS_FOR_ALL: u64 = 140;

/// What the environment says, for long runs.
pub(super) fn number(name: &str, otherwise: u64) -> u64 {
    let said = env::var(name).ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Numbers that a seed says.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    pub(super) fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

#[test]
fn whatever_the_moment_of_a_kill_nothing_is_lost_and_nothing_is_answered_in_two_ways() {
    let rounds = number("ANDON_CRASH_ROUNDS", 5);
    let seed = number("ANDON_CRASH_SEED", 1);
    let mut chance = Chance::new(seed);
    let folder = tempfile::TempDir::new().unwrap();
    let mut broker = lasting_broker(folder.path());
    let publisher = Publisher::start(broker.port(), "pub");
    let config = broker.config() + "[limits]\nclient-requests-max = 64\n";
    let mut daemon = started(&broker, Daemon::builder().config(&config));
    let (mut asked, mut ended_there) = (0, 0);
    let mut missed: BTreeSet<&str> = POINTS.iter().copied().collect();
    for round in 0..rounds {
        let point = POINTS[(usize::try_from(round).unwrap() * STRIDE) % POINTS.len()];
        // The first time of a point is often the first request's; later ones have others beside them.
        let kill_at = format!("{point}:{}", 1 + chance.next(3));
        daemon.kill().unwrap();
        daemon.relaunch(&[("ANDOND_KILL_AT", &kill_at)]).unwrap();
        for _ in 0..=chance.next(6) {
            let tokens = 2 + chance.next(20);
            let stream = chance.next(2) == 0;
            let more = format!(
                r#""prompt":"the {asked}","temperature":1.0,"tokens_max":{tokens},"stream":{stream}"#
            );
            let id = format!("{seed}-{asked}");
            publisher.ask(&id, &more);
            if chance.next(5) == 0 {
                publisher.ask(&id, &more);
            }
            asked += 1;
            thread::sleep(Duration::from_millis(chance.next(30)));
        }
        if round % 4 == 3 {
            broker.terminate().unwrap();
            thread::sleep(Duration::from_millis(chance.next(200)));
            broker.start_again().unwrap();
        }
        // Mostly, so that some kills fall into the start.
        if chance.next(4) > 0 {
            // One that ends before it is ready was killed there.
            drop(daemon.wait_ready());
        }
        let longest = Duration::from_millis(300 + chance.next(2500));
        let began = Instant::now();
        while began.elapsed() < longest && daemon.is_running() {
            thread::sleep(Duration::from_millis(5));
        }
        if !daemon.is_running() {
            ended_there += 1;
            missed.remove(point);
        }
    }
    daemon.restart().unwrap();
    publisher.settled();
    for state in ["accepted", "running", "answered"] {
        let began = Instant::now();
        while sum(&daemon, "andon_spool_requests", state) > 0.0 {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "some are {state} still"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
    // With nothing left to come, the whole of it.
    let ledger = publisher.settled();
    let outcome = judge(&ledger, false);
    assert!(!daemon.log().contains("damaged"), "{}", daemon.log());
    eprintln!(
        "{rounds} rounds of seed {seed}: {asked} requests, 0 lost, 0 answered in two ways; {} given up since the daemon ended \
         over them again and again, {} answers came again; {ended_there} rounds ended at their point, none at {missed:?}",
        outcome.given_up, outcome.repeated,
    );
    // A request is killed over at most twice a round, and given up the third time.
    assert!(outcome.given_up * 10 <= asked, "{outcome:?} of {asked}");
    assert!(
        ended_there * 8 >= rounds,
        "{ended_there} of {rounds} rounds"
    );
    if rounds >= ROUNDS_FOR_ALL {
        assert!(missed.is_empty(), "nothing ended at {missed:?}");
    }
}
