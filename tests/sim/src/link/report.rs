//! What came of days.

use std::fmt;

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Answered by the local model, as was meant.
    Local,
    /// Answered upstream.
    Cloud,
    /// Answered by the local model, since upstream could not be had.
    Fallback,
    /// It insisted on upstream, which could not be had, and was told so.
    Failed,
    /// It was told that its deadline has passed.
    Expired,
    /// It was told that nobody could answer it for days.
    GivenUp,
    /// It was not taken.
    Refused,
}

impl End {
    /// Every end.
    pub const ALL: [Self; 7] = [
        Self::Local,
        Self::Cloud,
        Self::Fallback,
        Self::Failed,
        Self::Expired,
        Self::GivenUp,
        Self::Refused,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Local => "answered here",
            Self::Cloud => "answered upstream",
            Self::Fallback => "answered here instead",
            Self::Failed => "told that nobody answers",
            Self::Expired => "told that it is too late",
            Self::GivenUp => "given up",
            Self::Refused => "not taken",
        }
    }
}

/// What happened on days.
#[derive(Clone, Debug, Default)]
pub struct LinkReport {
    /// Days.
    pub days: u64,
    /// Events.
    pub events: u64,
    /// Requests by how they ended.
    pub ended: [u64; End::ALL.len()],
    /// Those answered upstream after they had waited.
    pub late: u64,
    /// Questions that were sent.
    pub sent: u64,
    /// Of them those that broke off with the link.
    pub broken: u64,
    /// Requests that a budget has stopped.
    pub stopped: u64,
    /// Days and months of a budget that have more than was in it, each by one request.
    pub over: u64,
    /// How often a request that may wait found one of its client's in line, and went behind.
    pub behind: u64,
    /// How often the link went.
    pub link_downs: u64,
    /// Times that the daemon died, and requests that it took from its spool then.
    pub crashes: u64,
    /// See `crashes`.
    pub respooled: u64,
}

impl LinkReport {
    /// Takes in those of other days.
    pub fn add(&mut self, other: &Self) {
        self.days += other.days;
        self.events += other.events;
        for (mine, theirs) in self.ended.iter_mut().zip(other.ended) {
            *mine += theirs;
        }
        self.late += other.late;
        self.sent += other.sent;
        self.broken += other.broken;
        self.stopped += other.stopped;
        self.over += other.over;
        self.behind += other.behind;
        self.link_downs += other.link_downs;
        self.crashes += other.crashes;
        self.respooled += other.respooled;
    }

    /// How many requests ended how.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let words = End::ALL.iter().map(|end| end.word());
        words.zip(self.ended)
    }
}

impl fmt::Display for LinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} events in {} days of a flapping link",
            self.events, self.days
        )?;
        let requests: u64 = self.ended.iter().sum();
        write!(f, "{requests} requests:")?;
        for (word, count) in self.outcomes() {
            write!(f, " {count} {word};")?;
        }
        writeln!(
            f,
            " {} of them late, {} behind others of their client",
            self.late, self.behind
        )?;
        write!(
            f,
            "the link went {} times, with {} of {} questions; budgets stopped {}, and {} went over by one request; \
             {} taken from the spool after {} deaths",
            self.link_downs,
            self.broken,
            self.sent,
            self.stopped,
            self.over,
            self.respooled,
            self.crashes
        )
    }
}
