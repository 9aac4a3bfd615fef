//! `[[access]]`: who may ask for what, a rule each; the first that fits the caller holds.
//!
//! What a rule says is looked at here; whom its names stand for is found out when the rules are made ([`crate::access`]).

use andon_policy::route::Policy;
use andon_wire::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::Problems;
use crate::request::{Egress, MODEL_NAME_BYTES_MAX, Priority};

/// Most rules.
pub const RULES_MAX: usize = 64;
/// Most names in one list of a rule.
const NAMES_MAX: usize = 64;
/// Longest name of a user or group, in bytes: what the system's tools take.
const ACCOUNT_BYTES_MAX: usize = 32;

/// What stands for everyone of a kind.
pub const EVERYONE: &str = "*";

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Account {
    /// By its number.
    Number(u32),
    /// By its name, or `*` for any.
    Name(String),
}

/// One `[[access]]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct AccessConfig {
    /// Users of this machine, by name or number, who connect to a Unix socket; `*` is every one.
    pub users: Vec<Account>,
    /// Groups of this machine, of which the process that connects is in one.
    pub groups: Vec<Account>,
    /// Clients of the broker, by their names in topics; one that ends in `*` is all that begin so.
    pub clients: Vec<String>,
    /// Whoever comes by the loopback listener.
    pub loopback: bool,
    /// They may ask nothing.
    pub deny: bool,
    /// The most urgent class that they may ask for; unset, any.
    pub priority_max: Option<Priority>,
    /// Most requests of each within a minute, alarms aside; unset, as `[limits]` says.
    pub requests_per_minute: Option<u32>,
    /// Most alarms of each within a minute; unset, as `[limits]` says.
    pub alarms_per_minute: Option<u32>,
    /// Most tokens computed for each within a minute; unset, as `[limits]` says.
    pub tokens_per_minute: Option<u32>,
    /// The models that they may ask, by the names that requests give them; unset, all.
    pub models: Option<Vec<String>>,
    /// The tasks that they may ask, and then nothing else; unset, anything.
    pub tasks: Option<Vec<String>>,
    /// How far their requests may travel at most; unset, as far as requests and tasks say.
    pub egress: Option<Egress>,
    /// Who answers what they ask, unless the request or its task says so; unset, as `[router]` says.
    pub policy: Option<Policy>,
}

impl AccessConfig {
    /// `number` counts from 1, in the order of the file.
    pub(super) fn check(&self, number: usize, problems: &mut Problems) {
        let key = |field: &str| format!("access[{number}].{field}");
        let nobody = self.users.is_empty() && self.groups.is_empty() && self.clients.is_empty();
        if nobody && !self.loopback {
            problems.add(
                format!("access[{number}]"),
                "is for nobody",
                "name users, groups or clients (\"*\" is every one), or set loopback = true",
            );
        }
        check_accounts(&key("users"), &self.users, true, problems);
        check_accounts(&key("groups"), &self.groups, false, problems);
        let how = "a client is one level of a topic; a * at its end stands for any rest";
        check_names((&key("clients"), how), &self.clients, is_client, problems);
        for (field, rate) in [
            ("requests-per-minute", self.requests_per_minute),
            ("alarms-per-minute", self.alarms_per_minute),
            ("tokens-per-minute", self.tokens_per_minute),
        ] {
            if let Some(rate) = rate {
                problems.within(&key(field), rate, 1..=1_000_000_000);
            }
        }
        let models = self.models.as_deref().unwrap_or_default();
        let is_model = |name: &str| is_text(name, MODEL_NAME_BYTES_MAX);
        let how = "give the names by which requests ask for models";
        check_names((&key("models"), how), models, is_model, problems);
        let tasks = self.tasks.as_deref().unwrap_or_default();
        let how = "give the names of [task.<name>] sections";
        check_names(
            (&key("tasks"), how),
            tasks,
            super::gateway::is_name,
            problems,
        );
        let grants = self.priority_max.is_some()
            || self.requests_per_minute.is_some()
            || self.alarms_per_minute.is_some()
            || self.tokens_per_minute.is_some()
            || self.models.is_some()
            || self.tasks.is_some()
            || self.egress.is_some()
            || self.policy.is_some();
        problems.require(
            !(self.deny && grants),
            &key("deny"),
            "is set beside what may be asked",
            "leave out one of the two",
        );
    }
}

fn check_accounts(key: &str, accounts: &[Account], any: bool, problems: &mut Problems) {
    let good = |account: &Account| match account {
        Account::Number(_) => true,
        Account::Name(name) if name == EVERYONE => any,
        Account::Name(name) => is_text(name, ACCOUNT_BYTES_MAX) && !name.contains([':', '*']),
    };
    problems.require(
        accounts.len() <= NAMES_MAX && accounts.iter().all(good),
        key,
        "is not a list of accounts",
        "name at most 64, each by its name or its number",
    );
}

fn check_names(
    (key, how): (&str, &str),
    names: &[String],
    good: impl Fn(&str) -> bool,
    problems: &mut Problems,
) {
    if names.len() > NAMES_MAX {
        problems.add(
            key,
            format!("{} names are listed", names.len()),
            format!("list at most {NAMES_MAX}"),
        );
    }
    if let Some(name) = names.iter().find(|name| !good(name)) {
        let shown: String = name.chars().take(64).collect();
        problems.add(key, format!("{shown:?} is not a name"), how);
    }
}

fn is_text(name: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&name.len()) && !name.contains(char::is_control)
}

/// Whether a pattern fits some client: a level of a topic, with a `*` at its end or without.
pub(super) fn is_client(pattern: &str) -> bool {
    is_text(pattern, NAME_BYTES_MAX)
        && !pattern
            .strip_suffix('*')
            .unwrap_or(pattern)
            .contains(['*', '/', '+', '#'])
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn keys(rules: &str) -> Vec<(Option<usize>, String)> {
        let text = format!("[model]\npath = \"/m.gguf\"\n{rules}");
        match Config::parse(&text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems
                .iter()
                .map(|problem| (problem.line, problem.key.clone()))
                .collect(),
        }
    }

    #[test]
    fn a_rule_names_somebody_and_what_they_may() {
        let rules = "[[access]]\nusers = [\"hmi\", 1000, \"*\"]\ngroups = [\"plant\", 7]\n\
                     clients = [\"plc-*\", \"press-3\"]\nloopback = true\npriority-max = \"interactive\"\n\
                     requests-per-minute = 6\nmodels = []\ntasks = [\"explain\"]\negress = \"local\"\n\
                     [[access]]\nusers = [\"*\"]\ndeny = true\n";
        assert_eq!(keys(rules), []);
    }

    #[test]
    fn every_mistake_is_named_with_its_rule_and_line() {
        let found = keys(
            "[[access]]\nusers = [\"a:b\"]\nclients = [\"a*b\"]\n\
             [[access]]\ndeny = true\nmodels = [\"\"]\n\
             [[access]]\ngroups = [\"*\"]\ntokens-per-minute = 0\ntask = []\n",
        );
        let key = |line, key: &str| (Some(line), key.to_owned());
        assert_eq!(
            found,
            [
                key(4, "access[1].users"),
                key(5, "access[1].clients"),
                key(6, "access[2]"),
                key(7, "access[2].deny"),
                key(8, "access[2].models"),
                key(10, "access[3].groups"),
                key(11, "access[3].tokens-per-minute"),
                key(12, "access[3].task"),
            ]
        );
    }

    #[test]
    fn rules_are_a_list() {
        for (text, line) in [
            ("access = 1\n", 1),
            ("access = [1]\n", 1),
            ("[access]\n", 1),
        ] {
            let problems = Config::parse(&format!("{text}[model]\npath = \"/m\"\n"));
            let problems = problems.expect_err("no list of rules");
            let first = problems.iter().next().expect("one at least");
            assert_eq!(first.line, Some(line), "{text}: {problems}");
            assert!(first.to_string().contains("[[access]]"), "{problems}");
        }
    }
}
