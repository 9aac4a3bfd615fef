//! What was spent upstream, written down.
//!
//! The arithmetic is [`andon_policy::budget`]'s; here is the file that it survives in. What a request may come to is on the disk
//! before the request is sent, and what it came to soon after; so what a power cut takes is never less than what was spent.
//! The file is small and is written anew as a whole each time, beside the old one, synced, and put in its place by renaming.
//! Requests that come while it is written share the next time.
//!
//! Invariant: with budgets configured nothing is sent that is not in the file, and a file that cannot be read is no file in
//! which nothing was spent: it is said which one it is, and nothing goes up until somebody has seen to it.

mod file;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use andon_policy::budget::{Budgets, Kept, Moment, Reservation, Rule, Spend, Stop, Verdict, Who};
use andon_policy::route::Purse;
use serde::{Deserialize, Serialize};

use self::file::Folder;
use crate::config::budget::BudgetConfig;
use crate::config::{Config, Current};
use crate::spool::clock::{Clock, Seen};
use crate::telemetry::Telemetry;

/// How long what a request came to may be in memory only. Until then the file has what it might have come to.
const WRITE_AFTER: Duration = Duration::from_secs(5);

/// Why nothing may be spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A budget is used up.
    Spent(Stop),
    /// It is not known what was spent: what is wrong with the file, and which one it is.
    Unknown(String),
    /// It cannot be written down now.
    Unwritten(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Spent(stop) => write!(f, "{stop}"),
            Refusal::Unknown(why) => write!(f, "it is not known what was spent: {why}"),
            Refusal::Unwritten(why) => write!(f, "what is spent cannot be written down: {why}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    seen: Seen,
    kept: Kept,
}

#[derive(Debug)]
struct Book {
    budgets: Budgets,
    clock: Clock,
}

impl Book {
    /// One in which nothing was spent.
    fn new(rules: Vec<Rule>) -> Book {
        let clock = Clock::after(&Seen::default());
        Book {
            budgets: Budgets::new(rules, moment(&clock)),
            clock,
        }
    }

    fn now(&self) -> Moment {
        moment(&self.clock)
    }
}

fn moment(clock: &Clock) -> Moment {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    let stamp = clock.now();
    Moment {
        wall_ms: u64::try_from(wall.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
        ran_ms: stamp.ran_ms,
        starts: stamp.starts,
    }
}

#[derive(Debug)]
struct State {
    /// The one whose budgets hold.
    config: Arc<Config>,
    /// What was spent, or why that is not known.
    book: Result<Book, String>,
    /// Counts what has changed.
    changes: u64,
    /// Whether somebody is to write soon.
    writes_soon: bool,
    /// Whether the last attempt to write has failed.
    failing: bool,
}

/// What is on the disk.
#[derive(Debug)]
struct Disk {
    folder: Option<Folder>,
    /// As much of what has changed.
    changes: u64,
}

#[derive(Debug)]
struct Inner {
    current: Current,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
    disk: Mutex<Disk>,
}

/// Reads a line of the file as if it had been written there, has something spent by it, and writes it again: what a fuzzer asks.
///
/// # Errors
/// What is wrong with it.
pub fn rewritten(line: &str) -> Result<String, String> {
    let mut written = file::parse(&file::sealed(line))?;
    let mut budgets = Budgets::restored(Vec::new(), written.kept);
    let now = moment(&Clock::after(&written.seen));
    let rules = budgets
        .spent(now)
        .into_iter()
        .map(|(name, client, ..)| Rule {
            name,
            each_client: client.is_some(),
            ..Rule::default()
        });
    let rules = rules.collect();
    budgets.set_rules(rules);
    let who = Who {
        client: "",
        task: None,
    };
    if let Ok(held) = budgets.reserve(now, who, Spend::default()) {
        budgets.settle(now, &held, Spend::default());
    }
    written.kept = budgets.kept();
    let text = file::text(&written)?;
    let line = text.lines().next();
    Ok(line.unwrap_or_default().to_owned())
}

/// Knows what was spent. Cheap to clone. See the module.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

fn rules(config: &Config) -> Vec<Rule> {
    config.budget.iter().map(BudgetConfig::rule).collect()
}

impl Ledger {
    /// Reads what was spent, if there are budgets. Whatever is wrong with that is said in the journal, and then nothing may be.
    #[must_use]
    pub fn open(current: Current, telemetry: Arc<Telemetry>) -> Ledger {
        let config = current.get();
        let (book, folder) = match Ledger::read(&config) {
            Ok((book, folder)) => (Ok(book), folder),
            Err(why) => {
                crate::event!(
                    LedgerUnusable,
                    "it is not known what was spent upstream, so nothing is sent: {why}"
                );
                telemetry.ledger_failing(true);
                (Err(why), None)
            }
        };
        let state = State {
            config,
            book,
            changes: 0,
            writes_soon: false,
            failing: false,
        };
        let disk = Disk { folder, changes: 0 };
        Ledger(Arc::new(Inner {
            current,
            telemetry,
            state: Mutex::new(state),
            disk: Mutex::new(disk),
        }))
    }

    fn read(config: &Config) -> Result<(Book, Option<Folder>), String> {
        // The first budget needs a restart, so that without one there is nothing to write.
        if config.budget.is_empty() {
            return Ok((Book::new(Vec::new()), None));
        }
        let folder = Folder::take(&config.ledger.dir)?;
        let Some(written) = folder.read()? else {
            return Ok((Book::new(rules(config)), Some(folder)));
        };
        let book = Book {
            budgets: Budgets::restored(rules(config), written.kept),
            clock: Clock::after(&written.seen),
        };
        Ok((book, Some(folder)))
    }

    /// Whether a request that comes to so much at most may be sent, and how much it has to be worth.
    ///
    /// # Errors
    /// It may not.
    pub fn purse(&self, who: Who<'_>, expected: Spend) -> Result<Purse, Refusal> {
        let mut state = self.0.state();
        let book = state.book(&self.0.current)?;
        let now = book.now();
        match book.budgets.verdict(now, who, expected) {
            Verdict::Allow => Ok(Purse::Open),
            Verdict::Slope(raise) => Ok(Purse::Slope(raise)),
            Verdict::Stop(stop) => Err(Refusal::Spent(stop)),
        }
    }

    /// Holds what a request may come to at most, and has that on the disk. Has to be awaited where tokio runs.
    ///
    /// # Errors
    /// There is not so much left, or it cannot be written down.
    pub async fn reserve(&self, who: Who<'_>, expected: Spend) -> Result<Held, Refusal> {
        let (mut held, changes) = {
            let mut state = self.0.state();
            let book = state.book(&self.0.current)?;
            let now = book.now();
            let is_free = book.budgets.is_empty();
            let reservation = (book.budgets.reserve(now, who, expected)).map_err(Refusal::Spent)?;
            let held = Held {
                inner: Arc::clone(&self.0),
                reservation,
                // It is not sent yet.
                unsettled: Some(Spend::default()),
            };
            if is_free {
                return Ok(held);
            }
            state.changes += 1;
            (held, state.changes)
        };
        let inner = Arc::clone(&self.0);
        let written = tokio::task::spawn_blocking(move || inner.write(changes)).await;
        written
            .unwrap_or_else(|_| Err("the daemon stops".to_owned()))
            .map_err(Refusal::Unwritten)?;
        held.unsettled = Some(expected);
        Ok(held)
    }

    /// Writes what is not written. To be called last, and where it may take a while.
    pub fn close(&self) {
        let changes = self.0.state().changes;
        // Who reads the journal was told why not.
        drop(self.0.write(changes));
    }

    /// Tells the metrics what was spent, which by now may be less than when something was last.
    pub fn report(&self) {
        self.0.report();
    }
}

impl State {
    /// The book, with the budgets that are configured now.
    fn book(&mut self, current: &Current) -> Result<&mut Book, Refusal> {
        let config = current.get();
        if self.book.is_err() && config.budget.is_empty() {
            // Nobody limits anything any more.
            self.book = Ok(Book::new(Vec::new()));
        }
        let book = match &mut self.book {
            Ok(book) => book,
            Err(why) => return Err(Refusal::Unknown(why.clone())),
        };
        if !Arc::ptr_eq(&config, &self.config) {
            book.budgets.set_rules(rules(&config));
            self.config = config;
        }
        Ok(book)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has at least as much of what has changed on the disk.
    fn write(&self, changes: u64) -> Result<(), String> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.changes >= changes {
            return Ok(());
        }
        let Some(folder) = &disk.folder else {
            return Ok(());
        };
        let (written, changes) = {
            let state = self.state();
            let Ok(book) = &state.book else {
                return Ok(());
            };
            let written = Written {
                format: file::FORMAT,
                seen: book.clock.seen(),
                kept: book.budgets.kept(),
            };
            (written, state.changes)
        };
        let outcome = folder.write(&written);
        if outcome.is_ok() {
            disk.changes = changes;
        }
        drop(disk);
        self.tell(&outcome);
        self.report();
        outcome
    }

    fn tell(&self, outcome: &Result<(), String>) {
        let was_failing = std::mem::replace(&mut self.state().failing, outcome.is_err());
        self.telemetry.ledger_failing(outcome.is_err());
        match outcome {
            Err(why) if !was_failing => {
                crate::event!(
                    LedgerFailing,
                    "what is spent upstream cannot be written down, so nothing is sent that a budget is for: {why}"
                );
            }
            Ok(()) if was_failing => {
                crate::event!(
                    LedgerRecovered,
                    "what is spent upstream is written down again"
                );
            }
            _ => {}
        }
    }

    fn report(&self) {
        let mut state = self.state();
        let Ok(book) = state.book(&self.current) else {
            return;
        };
        let now = book.now();
        let spent = book.budgets.spent(now);
        let names: Vec<String> = state
            .config
            .budget
            .iter()
            .map(|budget| budget.name.clone())
            .collect();
        drop(state);
        for name in names {
            let of_it = spent.iter().filter(|(budget, ..)| *budget == name);
            let (day, month) = of_it
                .fold(Default::default(), |(day, month): (Spend, Spend), spent| {
                    (day.plus(spent.2), month.plus(spent.3))
                });
            self.telemetry.budget_spent(&name, day, month);
        }
    }

    /// Has somebody write in a while, unless somebody will.
    fn write_soon(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if std::mem::replace(&mut self.state().writes_soon, true) {
            return;
        }
        let inner = Arc::clone(self);
        runtime.spawn(async move {
            tokio::time::sleep(WRITE_AFTER).await;
            let changes = {
                let mut state = inner.state();
                state.writes_soon = false;
                state.changes
            };
            // How that went is said in the journal.
            drop(tokio::task::spawn_blocking(move || inner.write(changes)).await);
        });
    }
}

/// What is held for a request. Dropped without a word it counts as spent once the request may have been sent.
#[derive(Debug)]
#[must_use = "dropped, all of it counts as spent"]
pub struct Held {
    inner: Arc<Inner>,
    reservation: Reservation,
    /// What it counts as when it is dropped.
    unsettled: Option<Spend>,
}

impl Held {
    /// The request came to this; nothing, if it was not sent.
    pub fn settle(mut self, spent: Spend) {
        self.unsettled = Some(spent);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(spent) = self.unsettled.take() else {
            return;
        };
        let mut state = self.inner.state();
        let Ok(book) = &mut state.book else { return };
        let now = book.now();
        book.budgets.settle(now, &self.reservation, spent);
        let is_free = book.budgets.is_empty();
        state.changes += 1;
        drop(state);
        if !is_free {
            self.inner.write_soon();
        }
    }
}
