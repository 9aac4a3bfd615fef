//! What came of worlds.

use std::fmt;

use crate::ledger::Outcome;

/// What happened in worlds.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events in all.
    pub events: u64,
    /// Worlds.
    pub worlds: u64,
    /// Requests by how they ended.
    pub ended: [u64; Outcome::ALL.len()],
    /// How often a request was parked.
    pub parked: u64,
    /// Passes.
    pub passes: u64,
    /// Passes that were given up for an alarm.
    pub interrupted: u64,
    /// Requests that found no room when they were to start.
    pub no_room: u64,
    /// Requests that gave their room to an alarm.
    pub aside: u64,
    /// Requests that were delivered again.
    pub again: u64,
    /// Times that the daemon died and was started again, and requests that it then took from its spool.
    pub restarts: u64,
    /// See `restarts`.
    pub respooled: u64,
    /// Alarms whose start was held to its bound, and how long the worst waited for its first pass, in thousandths of
    /// a step.
    pub alarms: u64,
    /// See `alarms`.
    pub alarm_wait: u64,
    /// Longest wait of another request between two passes, in thousandths of what is promised.
    pub starved: u64,
}

impl Report {
    /// Takes in those of other worlds.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.worlds += other.worlds;
        for (mine, theirs) in self.ended.iter_mut().zip(other.ended) {
            *mine += theirs;
        }
        self.parked += other.parked;
        self.passes += other.passes;
        self.interrupted += other.interrupted;
        self.no_room += other.no_room;
        self.aside += other.aside;
        self.again += other.again;
        self.restarts += other.restarts;
        self.respooled += other.respooled;
        self.alarms += other.alarms;
        self.alarm_wait = self.alarm_wait.max(other.alarm_wait);
        self.starved = self.starved.max(other.starved);
    }

    /// How many requests ended how.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let words = Outcome::ALL.iter().map(|outcome| outcome.word());
        words.zip(self.ended)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} events in {} worlds", self.events, self.worlds)?;
        let requests: u64 = self.ended.iter().sum();
        write!(f, "{requests} requests:")?;
        for (word, count) in self.outcomes() {
            write!(f, " {count} {word};")?;
        }
        writeln!(
            f,
            " {} delivered again; {} taken from the spool at {} restarts",
            self.again, self.respooled, self.restarts
        )?;
        writeln!(
            f,
            "{} passes, {} given up for an alarm; {} times parked, {} times no room, {} times set aside for an alarm",
            self.passes, self.interrupted, self.parked, self.no_room, self.aside
        )?;
        write!(
            f,
            "{} alarms began at once: the latest after {:.3} steps; others waited for at most {:.3} of what is promised",
            self.alarms,
            self.alarm_wait as f64 / 1000.0,
            self.starved as f64 / 1000.0
        )
    }
}
