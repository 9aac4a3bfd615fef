//! `[[budget]]`: what may be spent at upstream servers, and by whom; and `[ledger]`: where that is written down.

use std::path::PathBuf;

use andon_policy::budget::{self, Cap, Rule, Slope};
use serde::{Deserialize, Serialize};

use super::Problems;
use super::access::is_client;
use super::gateway::is_name;

/// Most budgets.
pub const BUDGETS_MAX: usize = 64;
/// Most names in one list of a budget.
const NAMES_MAX: usize = 64;

/// One `[[budget]]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct BudgetConfig {
    /// Its name, by which what was spent of it is known again.
    pub name: String,
    /// Clients that it is for; one that ends in `*` is all that begin so. None named is all.
    pub clients: Vec<String>,
    /// Tasks that it is for. None named is all, and what names no task.
    pub tasks: Vec<String>,
    /// Whether each client has one of its own.
    pub each_client: bool,
    /// Most tokens in a day (UTC).
    pub tokens_per_day: Option<u64>,
    /// Most tokens in a month.
    pub tokens_per_month: Option<u64>,
    /// Most money in a day, as digits with six after the point at most, in the unit that upstreams' prices are in.
    pub money_per_day: Option<String>,
    /// Most money in a month.
    pub money_per_month: Option<String>,
    /// From this share of a day's or month's on, in per cent, fewer requests go up; 100 is never.
    pub slope_percent: u8,
    /// By so much the probability has to be higher that the local answer will not do, where all is used up.
    pub slope_raise: f32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        BudgetConfig {
            name: String::new(),
            clients: Vec::new(),
            tasks: Vec::new(),
            each_client: false,
            tokens_per_day: None,
            tokens_per_month: None,
            money_per_day: None,
            money_per_month: None,
            slope_percent: 80,
            slope_raise: 0.3,
        }
    }
}

impl BudgetConfig {
    /// The same as policy has it; the values have been checked.
    #[must_use]
    pub fn rule(&self) -> Rule {
        // What is no amount was reported as such, and until it is mended allows nothing.
        let micros = |text: &Option<String>| {
            (text.as_deref()).map(|text| budget::micros(text).unwrap_or_default())
        };
        Rule {
            name: self.name.clone(),
            clients: self.clients.clone(),
            tasks: self.tasks.clone(),
            each_client: self.each_client,
            day: Cap {
                tokens: self.tokens_per_day,
                micros: micros(&self.money_per_day),
            },
            month: Cap {
                tokens: self.tokens_per_month,
                micros: micros(&self.money_per_month),
            },
            slope: Slope {
                from_percent: self.slope_percent,
                raise: self.slope_raise,
            },
        }
    }

    fn check(&self, number: usize, problems: &mut Problems) {
        let key = |field: &str| format!("budget[{number}].{field}");
        problems.require(
            is_name(&self.name),
            &key("name"),
            "is not a name",
            "use 1 to 64 letters, digits, '.', '-' or '_'",
        );
        problems.require(
            self.clients.len() <= NAMES_MAX && self.clients.iter().all(|name| is_client(name)),
            &key("clients"),
            "is not a list of clients",
            "name at most 64, each one level of a topic; a * at its end stands for any rest",
        );
        problems.require(
            self.tasks.len() <= NAMES_MAX && self.tasks.iter().all(|name| is_name(name)),
            &key("tasks"),
            "is not a list of tasks",
            "give the names of at most 64 [task.<name>] sections",
        );
        problems.amount(&key("money-per-day"), self.money_per_day.as_deref());
        problems.amount(&key("money-per-month"), self.money_per_month.as_deref());
        problems.require(
            self.tokens_per_day.is_some()
                || self.tokens_per_month.is_some()
                || self.money_per_day.is_some()
                || self.money_per_month.is_some(),
            &format!("budget[{number}]"),
            "limits nothing",
            "say tokens-per-day, tokens-per-month, money-per-day or money-per-month",
        );
        problems.within(&key("slope-percent"), self.slope_percent, 0..=100);
        problems.within(&key("slope-raise"), self.slope_raise, 0.0..=1.0);
    }

    /// Adds what is wrong with all of them together.
    pub(super) fn check_all(budgets: &[BudgetConfig], problems: &mut Problems) {
        problems.sections("budget", budgets.len(), BUDGETS_MAX);
        for (number, budget) in (1..).zip(budgets) {
            budget.check(number, problems);
            let mut before = budgets.iter().take(number - 1);
            let is_taken = before.any(|other| other.name == budget.name);
            problems.own_name("budget", number, is_taken);
        }
    }
}

/// `[ledger]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct LedgerConfig {
    /// Where what was spent is written down.
    pub dir: PathBuf,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        LedgerConfig {
            dir: PathBuf::from("/var/lib/andon/ledger"),
        }
    }
}

impl LedgerConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.dir.is_absolute(),
            "ledger.dir",
            "is not an absolute path",
            "begin it with /",
        );
    }
}
