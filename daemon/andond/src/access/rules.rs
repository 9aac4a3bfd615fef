//! The rules of the configuration, with their names looked up.

use std::sync::Arc;

use andon_policy::client::Rates;
use andon_policy::rate::Rate;
use nix::unistd::{Group, User};

use super::{Caller, Rights, Token};
use crate::config::access::{AccessConfig, Account, EVERYONE};
use crate::config::{Config, Problems};
use crate::request::{Egress, Priority};

/// Who may ask for what.
#[derive(Debug)]
pub struct Rules {
    /// `None` if nothing is said, and so everyone may everything.
    rules: Option<Vec<Rule>>,
    token: Option<Token>,
}

#[derive(Debug)]
struct Rule {
    every_user: bool,
    users: Vec<u32>,
    groups: Vec<u32>,
    clients: Vec<Pattern>,
    loopback: bool,
    /// `None` is no right at all.
    rights: Option<Arc<Rights>>,
}

/// Names of clients.
#[derive(Debug)]
enum Pattern {
    Whole(String),
    Beginning(String),
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        match text.strip_suffix('*') {
            Some(beginning) => Pattern::Beginning(beginning.to_owned()),
            None => Pattern::Whole(text.to_owned()),
        }
    }

    fn fits(&self, name: &str) -> bool {
        match self {
            Pattern::Whole(whole) => whole == name,
            Pattern::Beginning(beginning) => name.starts_with(beginning),
        }
    }
}

impl Rules {
    /// Looks the names of a configuration up, and reads the token of its loopback listener. Asks the system's databases of
    /// users and groups, and the disk: it may block.
    ///
    /// # Errors
    /// Every name that the system does not know, and why the token cannot be read.
    pub fn resolve(config: &Config) -> Result<Rules, Problems> {
        let mut problems = Problems::default();
        let rules: Vec<Rule> = (1..)
            .zip(&config.access)
            .map(|(number, rule)| Rule::resolve(number, rule, config, &mut problems))
            .collect();
        let http = Some(&config.http).filter(|http| http.enabled);
        let token = http.and_then(|http| http.token_file.as_ref());
        let token = token.and_then(|path| {
            let failed = |why| {
                let what = format!("{} {why}", path.display());
                problems.add(
                    "http.token-file",
                    what,
                    "make one: `head -c 32 /dev/urandom | base64 > FILE`, readable to the daemon's user only",
                );
            };
            Token::read(path).map_err(failed).ok()
        });
        problems.into_result(Rules {
            rules: (!rules.is_empty()).then_some(rules),
            token,
        })
    }

    /// These, with the token of others.
    #[must_use]
    pub fn with_token_of(self, others: &Rules) -> Rules {
        let token = others.token.clone();
        Rules { token, ..self }
    }

    /// What the first rule says that fits the caller; `None` if that is nothing.
    pub(super) fn rights(&self, caller: &Caller) -> Option<Arc<Rights>> {
        match &self.rules {
            None => Some(Arc::default()),
            Some(rules) => rules.iter().find(|rule| rule.fits(caller))?.rights.clone(),
        }
    }

    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }
}

impl Rule {
    fn resolve(
        number: usize,
        config: &AccessConfig,
        whole: &Config,
        problems: &mut Problems,
    ) -> Rule {
        let key = |field: &str| format!("access[{number}].{field}");
        let is_everyone = |account: &&Account| **account == Account::Name(EVERYONE.to_owned());
        let users = config.users.iter().filter(|account| !is_everyone(account));
        let user =
            |name: &str| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
        let group =
            |name: &str| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()));
        let mut find = |key: String,
                        what,
                        accounts: &mut dyn Iterator<Item = &Account>,
                        of: &dyn Fn(&str) -> nix::Result<Option<u32>>| {
            let mut found = Vec::new();
            for account in accounts {
                match account {
                    Account::Number(number) => found.push(*number),
                    Account::Name(name) => match of(name) {
                        Ok(Some(number)) => found.push(number),
                        Ok(None) => problems.add(
                            key.clone(),
                            format!("there is no {what} {name}"),
                            "create it, or leave it out",
                        ),
                        Err(error) => problems.add(
                            key.clone(),
                            format!("cannot look the {what} {name} up: {error}"),
                            "give its number",
                        ),
                    },
                }
            }
            found
        };
        let users = find(key("users"), "user", &mut users.into_iter(), &user);
        let groups = find(key("groups"), "group", &mut config.groups.iter(), &group);
        // Those that come with a model are known once it is loaded.
        if !whole.models.bundle_tasks {
            let tasks = config.tasks.iter().flatten();
            for task in tasks.filter(|task| !whole.task.contains_key(*task)) {
                problems.add(
                    key("tasks"),
                    format!("there is no task {task}"),
                    format!("write [task.{task}], or leave it out"),
                );
            }
        }
        Rule {
            every_user: config.users.iter().any(|account| is_everyone(&account)),
            users,
            groups,
            clients: config
                .clients
                .iter()
                .map(|text| Pattern::new(text))
                .collect(),
            loopback: config.loopback,
            rights: (!config.deny).then(|| Arc::new(rights(config))),
        }
    }

    fn fits(&self, caller: &Caller) -> bool {
        match caller {
            Caller::User(peer) => {
                self.every_user
                    || self.users.contains(&peer.uid)
                    || peer.groups.iter().any(|group| self.groups.contains(group))
            }
            Caller::Loopback => self.loopback,
            Caller::Client(name) => self.clients.iter().any(|pattern| pattern.fits(name)),
        }
    }
}

fn rights(config: &AccessConfig) -> Rights {
    let rate = |count: Option<u32>| count.map(Rate::per_minute);
    Rights {
        priority_max: config.priority_max.unwrap_or(Priority::Alarm),
        rates: Rates {
            requests: rate(config.requests_per_minute),
            alarms: rate(config.alarms_per_minute),
            tokens: rate(config.tokens_per_minute),
        },
        egress: config.egress.unwrap_or(Egress::Any),
        policy: config.policy,
        models: config.models.clone(),
        tasks: config.tasks.clone(),
    }
}

#[cfg(test)]
mod tests {
    use andon_os::Peer;

    use super::*;
    use crate::access::Access;

    fn config(rules: &str) -> Config {
        let text = format!("[model]\npath = \"/m.gguf\"\n{rules}");
        Config::parse(&text).expect("in order")
    }

    fn rules(text: &str) -> Rules {
        Rules::resolve(&config(text)).expect("known names")
    }

    fn user(uid: u32, groups: &[u32]) -> Caller {
        Caller::User(Arc::new(Peer {
            pid: 1,
            uid,
            groups: groups.to_vec(),
        }))
    }

    fn client(name: &str) -> Caller {
        Caller::Client(name.into())
    }

    #[test]
    fn without_rules_everyone_may_everything() {
        let rules = rules("");
        for caller in [user(1, &[]), Caller::Loopback, client("x")] {
            let rights = rules.rights(&caller);
            assert_eq!(rights.as_deref(), Some(&Rights::default()));
        }
    }

    #[test]
    fn the_first_rule_that_fits_holds_and_without_one_nothing_may_be_asked() {
        let rules = rules(
            "[[access]]\nusers = [7]\ndeny = true\n\
             [[access]]\nusers = [7, 8]\ngroups = [70]\npriority-max = \"batch\"\n\
             [[access]]\nclients = [\"plc-*\", \"hmi\"]\nmodels = [\"m\"]\n\
             [[access]]\nloopback = true\n\
             [[access]]\nusers = [\"root\"]\nrequests-per-minute = 5\n",
        );
        let most = |caller| rules.rights(&caller).map(|rights| rights.priority_max);
        assert_eq!(most(user(7, &[70])), None);
        assert_eq!(most(user(8, &[])), Some(Priority::Batch));
        assert_eq!(most(user(9, &[1, 70])), Some(Priority::Batch));
        assert_eq!(most(user(9, &[1])), None);
        assert_eq!(most(user(0, &[0])), Some(Priority::Alarm));
        for (name, may) in [
            ("plc-1", true),
            ("plc-", true),
            ("plc", false),
            ("hmi", true),
            ("hmi2", false),
        ] {
            assert_eq!(most(client(name)).is_some(), may, "{name}");
        }
        assert_eq!(most(Caller::Loopback), Some(Priority::Alarm));
        let root = rules.rights(&user(0, &[])).expect("it may");
        assert_eq!(root.rates.requests, Some(Rate::per_minute(5)));
    }

    #[test]
    fn every_user_is_no_client_of_the_broker() {
        let rules = rules("[[access]]\nusers = [\"*\"]\n");
        assert!(rules.rights(&user(4_000_000_001, &[])).is_some());
        assert!(rules.rights(&client("x")).is_none());
        assert!(rules.rights(&Caller::Loopback).is_none());
    }

    #[test]
    fn unknown_names_are_problems_of_their_keys() {
        let config = config(
            "[[access]]\nusers = [\"root\", \"no-such-user\"]\ntasks = [\"none\"]\n\
             [[access]]\ngroups = [\"no-such-group\"]\n\
             [http]\nlisten = \"127.0.0.1:1\"\ntoken-file = \"/nowhere/token\"\n",
        );
        let problems = Rules::resolve(&config).expect_err("unknown names");
        let keys: Vec<&str> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "access[1].users",
                "access[1].tasks",
                "access[2].groups",
                "http.token-file"
            ]
        );
    }

    #[test]
    fn rules_may_be_replaced() {
        let access = Access::new(rules(""));
        let caller = user(5, &[]);
        assert!(access.rights(&caller).is_ok());
        access.replace(rules("[[access]]\nusers = [6]\n"));
        let denied = access.rights(&caller).expect_err("no rule fits");
        assert!(denied.to_string().contains("uid-5"), "{denied}");
    }
}
