//! What may be spent upstream: tokens and money, in a day and in a month.
//!
//! [`Budgets`] is asked before a request is sent ([`Budgets::verdict`]), is told what it may come to at most
//! ([`Budgets::reserve`]) and what it came to ([`Budgets::settle`]). What is reserved counts as spent until then, in what is
//! kept over a crash ([`Budgets::kept`]) too. Days and months are those of UTC by a [`Calendar`] that a wrong clock does not
//! deceive twice. A request counts in each budget that it fits, and all of these have to have room for it.
//!
//! Invariant: where no request comes to more than was reserved for it, what is spent in a day or month exceeds what a budget has
//! by less than one request, however many are under way: a request that does not fit what is left goes only while nothing else
//! is reserved and something is left, and nothing goes beside it.

mod calendar;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

pub use calendar::{Calendar, Moment, Reading, Turn};

/// Most clients that a budget of each client tells apart; others are stopped.
pub const CLIENTS_MAX: usize = 1024;
/// Most accounts that are kept, those of budgets included that are not configured any more.
pub const ACCOUNTS_MAX: usize = 65_536;

/// Tokens, and money in millionths of whatever unit prices are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spend {
    /// Tokens, of prompt and answer.
    pub tokens: u64,
    /// Millionths of the unit of money.
    pub micros: u64,
}

impl Spend {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            micros: self.micros.saturating_add(other.micros),
        }
    }

    /// This without the other, and never less than nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            micros: self.micros.saturating_sub(other.micros),
        }
    }
}

/// What tokens cost at an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Millionths of the unit of money for a million tokens of prompts.
    pub prompt_micros_per_million: u64,
    /// The same for tokens of answers.
    pub answer_micros_per_million: u64,
}

impl Price {
    /// What a request comes to. Money is rounded up, so that nothing is free that is not.
    #[must_use]
    pub fn spend(&self, prompt_tokens: u64, answer_tokens: u64) -> Spend {
        let of = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let micros = of(prompt_tokens, self.prompt_micros_per_million)
            .saturating_add(of(answer_tokens, self.answer_micros_per_million))
            .div_ceil(1_000_000);
        Spend {
            tokens: prompt_tokens.saturating_add(answer_tokens),
            micros: u64::try_from(micros).unwrap_or(u64::MAX),
        }
    }
}

/// Reads an amount of money as millionths: digits, and after a point at most six more.
#[must_use]
pub fn micros(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 6 {
        return None;
    }
    let scale = 10_u64.pow(6 - u32::try_from(part.len()).ok()?);
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = part.parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(part * scale)
}

/// What may be spent in a time; `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cap {
    /// Tokens.
    pub tokens: Option<u64>,
    /// Millionths of the unit of money.
    pub micros: Option<u64>,
}

/// How a budget makes itself felt before it is used up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// From this share on, in per cent; 100 is not before.
    pub from_percent: u8,
    /// By so much the bar for what goes up is raised where all is used up; in proportion before.
    pub raise: f32,
}

impl Default for Slope {
    fn default() -> Self {
        Self {
            from_percent: 100,
            raise: 0.0,
        }
    }
}

/// A budget, and what counts in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Its name, by which what was spent is known again.
    pub name: String,
    /// The clients that it is for; one that ends in `*` is all that begin so. None named is all.
    pub clients: Vec<String>,
    /// The tasks that it is for. None named is all, and what names no task.
    pub tasks: Vec<String>,
    /// Whether each client has one of its own.
    pub each_client: bool,
    /// What may be spent in a day.
    pub day: Cap,
    /// What may be spent in a month.
    pub month: Cap,
    /// How it makes itself felt before.
    pub slope: Slope,
}

impl Rule {
    fn fits(&self, who: Who<'_>) -> bool {
        let client = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => who.client.starts_with(begin),
            None => pattern == who.client,
        };
        let task = |name: &String| who.task == Some(name.as_str());
        (self.clients.is_empty() || self.clients.iter().any(client))
            && (self.tasks.is_empty() || self.tasks.iter().any(task))
    }
}

/// Who spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who<'a> {
    /// The client.
    pub client: &'a str,
    /// The task that it asks.
    pub task: Option<&'a str>,
}

/// A stretch of time that a budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// A day.
    Day,
    /// A month.
    Month,
}

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Tokens.
    Tokens,
    /// Money.
    Money,
    /// Places for clients: there are too many to tell apart.
    Clients,
}

/// Why nothing may be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The budget's name.
    pub budget: String,
    /// For which time.
    pub span: Span,
    /// What of it.
    pub what: What,
    /// When there is some again, in milliseconds.
    pub again_in_ms: u64,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = match self.span {
            Span::Day => "day",
            Span::Month => "month",
        };
        let name = &self.budget;
        match self.what {
            What::Tokens => write!(f, "budget {name:?} has no tokens left for this {span}"),
            What::Money => write!(f, "budget {name:?} has no money left for this {span}"),
            What::Clients => write!(
                f,
                "budget {name:?} has {CLIENTS_MAX} clients of this {span} already"
            ),
        }
    }
}

/// Whether something may be spent.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may where it is worth more: the bar is to be raised by so much.
    Slope(f32),
    /// It may not.
    Stop(Stop),
}

/// What a request may come to, held until it is settled.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "what is not settled stays reserved"]
pub struct Reservation(u64);

/// What was spent in a day or a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    spent: Spend,
    /// What of it was spent since the machine was started, or since time passed into this day or month.
    since: Spend,
}

impl Tally {
    const fn add(&mut self, spend: Spend) {
        self.spent = self.spent.plus(spend);
        self.since = self.since.plus(spend);
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::None => {}
            Turn::Passed => *self = Self::default(),
            Turn::Set => self.spent = self.since,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Account {
    day: Tally,
    month: Tally,
    reserved: Spend,
    open: u32,
}

impl Account {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The account of a budget: of all its clients, or of one.
type AccountName = (String, Option<String>);

/// What an account is kept as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAccount {
    /// The budget's name.
    pub budget: String,
    /// The client whose it is, where each has one.
    pub client: Option<String>,
    /// Spent today.
    pub day: Tally,
    /// Spent this month.
    pub month: Tally,
}

/// What budgets are kept as: what is reserved is in it as spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The calendar.
    pub calendar: Calendar,
    /// The accounts of which something was spent.
    pub accounts: Vec<KeptAccount>,
}

#[derive(Clone, Debug)]
struct Open {
    accounts: Vec<AccountName>,
    expected: Spend,
}

/// All budgets. See the module.
#[derive(Debug)]
pub struct Budgets {
    rules: Vec<Rule>,
    calendar: Calendar,
    accounts: BTreeMap<AccountName, Account>,
    open: BTreeMap<u64, Open>,
    reservations: u64,
}

impl Budgets {
    /// Budgets of which nothing was spent.
    #[must_use]
    pub fn new(rules: Vec<Rule>, now: Moment) -> Self {
        Self {
            rules,
            calendar: Calendar::new(now),
            accounts: BTreeMap::new(),
            open: BTreeMap::new(),
            reservations: 0,
        }
    }

    /// Budgets of which was spent what was kept.
    #[must_use]
    pub fn restored(rules: Vec<Rule>, kept: Kept) -> Self {
        let accounts = kept.accounts.into_iter().take(ACCOUNTS_MAX).map(|kept| {
            let account = Account {
                day: kept.day,
                month: kept.month,
                ..Account::default()
            };
            ((kept.budget, kept.client), account)
        });
        Self {
            rules,
            calendar: kept.calendar,
            accounts: accounts.collect(),
            open: BTreeMap::new(),
            reservations: 0,
        }
    }

    /// Has other rules hold from now on. What was spent of a budget is known by its name.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is to be kept, with what is reserved as if it had been spent.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let accounts = self.accounts.iter().map(|((budget, client), account)| {
            let (mut day, mut month) = (account.day, account.month);
            day.add(account.reserved);
            month.add(account.reserved);
            KeptAccount {
                budget: budget.clone(),
                client: client.clone(),
                day,
                month,
            }
        });
        Kept {
            calendar: self.calendar,
            accounts: accounts.collect(),
        }
    }

    /// What each account has spent today and this month, what is reserved not among it.
    pub fn spent(&mut self, now: Moment) -> Vec<(String, Option<String>, Spend, Spend)> {
        self.turn(now);
        let accounts = self.accounts.iter();
        accounts
            .map(|((name, client), account)| {
                let (day, month) = (account.day.spent, account.month.spent);
                (name.clone(), client.clone(), day, month)
            })
            .collect()
    }

    /// What is reserved of an account is spent only when it is settled, whatever day it is then.
    fn turn(&mut self, now: Moment) {
        let reading = self.calendar.read(now);
        if !reading.started && reading.day == Turn::None && reading.month == Turn::None {
            return;
        }
        for account in self.accounts.values_mut() {
            if reading.started {
                account.day.since = Spend::default();
                account.month.since = Spend::default();
            }
            account.day.turn(reading.day);
            account.month.turn(reading.month);
        }
        self.accounts.retain(|_, account| !account.is_empty());
    }

    /// The accounts of a request, each with the rule that it is of.
    fn accounts_of(&self, who: Who<'_>) -> Vec<(&Rule, AccountName)> {
        let fitting = self.rules.iter().filter(|rule| rule.fits(who));
        fitting
            .map(|rule| {
                let client = rule.each_client.then(|| String::from(who.client));
                (rule, (rule.name.clone(), client))
            })
            .collect()
    }

    /// Whether a request that comes to no more than `expected` may be sent.
    pub fn verdict(&mut self, now: Moment, who: Who<'_>, expected: Spend) -> Verdict {
        self.turn(now);
        let mut raise: f32 = 0.0;
        for (rule, name) in self.accounts_of(who) {
            let account = match self.accounts.get(&name) {
                Some(account) => *account,
                None if self.has_place(&name) => Account::default(),
                None => return Verdict::Stop(self.stop(rule, Span::Month, What::Clients)),
            };
            for (span, cap, tally) in [
                (Span::Day, rule.day, account.day),
                (Span::Month, rule.month, account.month),
            ] {
                for (what, cap, of) in [
                    (What::Tokens, cap.tokens, tokens as fn(Spend) -> u64),
                    (What::Money, cap.micros, money),
                ] {
                    let Some(cap) = cap else { continue };
                    let used = of(tally.spent.plus(account.reserved));
                    let fits = used.saturating_add(of(expected)) <= cap;
                    let alone = account.open == 0 && used < cap;
                    if !fits && !alone {
                        return Verdict::Stop(self.stop(rule, span, what));
                    }
                    raise = raise.max(rule.slope.raise_at(used, cap));
                }
            }
        }
        if raise > 0.0 {
            Verdict::Slope(raise)
        } else {
            Verdict::Allow
        }
    }

    /// Whether an account that is new has a place.
    fn has_place(&self, (budget, client): &AccountName) -> bool {
        let of_budget = self.accounts.keys().filter(|(name, _)| name == budget);
        self.accounts.len() < ACCOUNTS_MAX
            && (client.is_none() || of_budget.take(CLIENTS_MAX).count() < CLIENTS_MAX)
    }

    fn stop(&self, rule: &Rule, span: Span, what: What) -> Stop {
        Stop {
            budget: rule.name.clone(),
            span,
            what,
            again_in_ms: match span {
                Span::Day => self.calendar.day_ends_in_ms(),
                Span::Month => self.calendar.month_ends_in_ms(),
            },
        }
    }

    /// Holds what a request may come to, until it is settled.
    ///
    /// # Errors
    /// There is not so much left.
    pub fn reserve(
        &mut self,
        now: Moment,
        who: Who<'_>,
        expected: Spend,
    ) -> Result<Reservation, Stop> {
        if let Verdict::Stop(stop) = self.verdict(now, who, expected) {
            return Err(stop);
        }
        let names: Vec<AccountName> = self
            .accounts_of(who)
            .into_iter()
            .map(|(_, name)| name)
            .collect();
        for name in &names {
            let account = self.accounts.entry(name.clone()).or_default();
            account.reserved = account.reserved.plus(expected);
            account.open += 1;
        }
        self.reservations += 1;
        let open = Open {
            accounts: names,
            expected,
        };
        self.open.insert(self.reservations, open);
        Ok(Reservation(self.reservations))
    }

    /// Gives back what was held for a request and counts what it came to: nothing, if it was not sent.
    pub fn settle(&mut self, now: Moment, reservation: &Reservation, spent: Spend) {
        self.turn(now);
        let Some(open) = self.open.remove(&reservation.0) else {
            return;
        };
        for name in open.accounts {
            let account = self.accounts.entry(name).or_default();
            account.reserved = account.reserved.minus(open.expected);
            account.open = account.open.saturating_sub(1);
            account.day.add(spent);
            account.month.add(spent);
        }
    }
}

const fn tokens(spend: Spend) -> u64 {
    spend.tokens
}

const fn money(spend: Spend) -> u64 {
    spend.micros
}

impl Slope {
    /// By how much the bar is raised where `used` of `cap` is.
    fn raise_at(&self, used: u64, cap: u64) -> f32 {
        let percent = u128::from(used) * 100;
        let from = u128::from(self.from_percent.min(100)) * u128::from(cap);
        if percent <= from {
            return 0.0;
        }
        let over = (percent - from) as f32 / ((u128::from(cap) * 100 - from).max(1)) as f32;
        self.raise * over.min(1.0)
    }
}

#[cfg(test)]
mod tests;
