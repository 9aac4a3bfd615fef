//! What becomes of each key when the file is read again: whether its new value holds at once or from the next start on.
//!
//! Invariant: every key of every section is in the table, so that whoever adds one has to decide (a test asks), and a key whose
//! change needs a restart keeps the value that the daemon runs with until there is one, with those that say one thing together
//! with it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::{Config, Problems};

/// When the new value of a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// As soon as the file is read again: for the next request, connection or attempt.
    Live,
    /// From the next start on.
    Restart,
}

/// The keys of a section, by what a change of them needs.
struct Section {
    name: &'static str,
    live: &'static [&'static str],
    restart: &'static [&'static str],
}

/// Not live is what sockets are bound with, what memory was promised by, what threads, models and stores were started with, and
/// what names the gateway has for others: to change its topics or its session would leave behind what the broker keeps for it.
/// Nor is whose models are trusted: those in memory would be served on by another rule than the file says.
const SECTIONS: &[Section] = &[
    Section {
        name: "gateway",
        live: &["shutdown-grace-ms", "stall-ms"],
        restart: &["name", "idle-exit-s", "core-dumps"],
    },
    Section {
        name: "model",
        live: &["temperature", "top-k", "top-p", "min-p", "repeat-penalty"],
        restart: &[
            "path",
            "name",
            "pre-tokenizer",
            "chat-template",
            "context-tokens-max",
            "kv-tokens-max",
            "kv-type",
        ],
    },
    Section {
        name: "models",
        live: &[
            "admin-groups",
            "bytes-max",
            "free-bytes-min",
            "loaded-max",
            "idle-unload-s",
            "tokens-per-second-min",
            "probation-s",
        ],
        restart: &[
            "dir",
            "bundle-tasks",
            "signature",
            "trusted-keys",
            "preload",
        ],
    },
    Section {
        name: "cache",
        live: &[],
        restart: &[
            "dir",
            "pack",
            "bytes-max",
            "free-bytes-min",
            "kv-keep",
            "kv-bytes-max",
        ],
    },
    Section {
        name: "engine",
        live: &[],
        restart: &[
            "backend",
            "backend-fallback",
            "threads",
            "isa",
            "batch-tokens-max",
            "parallel-max",
            "prefix-cache",
        ],
    },
    Section {
        name: "speculation",
        live: &["lookup"],
        restart: &[
            "enabled",
            "corpus",
            "corpus-tokens-max",
            "corpora-max",
            "corpus-keep",
            "draft",
            "draft-bytes-max",
        ],
    },
    Section {
        name: "spool",
        live: &["keep-s", "age-max-s", "patience-ms"],
        restart: &["durable", "dir", "key-file", "requests-max", "bytes-max"],
    },
    Section {
        name: "access",
        live: &[
            "users",
            "groups",
            "clients",
            "loopback",
            "deny",
            "priority-max",
            "requests-per-minute",
            "alarms-per-minute",
            "tokens-per-minute",
            "models",
            "tasks",
            "egress",
            "policy",
        ],
        restart: &[],
    },
    Section {
        name: "upstream",
        live: &[
            "name",
            "url",
            "model",
            "api-key-file",
            "ca-file",
            "certificate-file",
            "key-file",
            "proxy",
            "proxy-login-file",
            "prompt-price",
            "answer-price",
            "priority",
            "weight",
            "requests-max",
            "tokens-field",
            "connect-timeout-ms",
            "first-token-timeout-ms",
            "token-timeout-ms",
            "total-timeout-ms",
            "retries-max",
            "failures-max",
            "open-ms",
            "open-max-ms",
        ],
        restart: &[],
    },
    Section {
        name: "audit",
        live: &[],
        restart: &[
            "enabled",
            "dir",
            "file-bytes-max",
            "files-max",
            "bytes-max",
            "days-max",
            "required",
        ],
    },
    Section {
        name: "http",
        live: &[
            "token-file",
            "connections-max",
            "header-timeout-ms",
            "body-timeout-ms",
            "write-timeout-ms",
        ],
        restart: &["enabled", "socket", "socket-mode", "socket-group", "listen"],
    },
    Section {
        name: "wire",
        live: &["connections-max", "requests-max", "frame-timeout-ms"],
        restart: &["enabled", "socket", "socket-mode", "socket-group"],
    },
    Section {
        name: "mqtt",
        live: &[
            "host",
            "port",
            "protocol",
            "username",
            "password-file",
            "tls",
            "ca-file",
            "certificate-file",
            "key-file",
            "keep-alive-s",
            "session-expiry-s",
            "connect-timeout-s",
            "reconnect-max-s",
            "response-topics",
            "requests-max",
            "unacknowledged-max",
            "packet-bytes-max",
            "queue-max",
            "status-interval-ms",
        ],
        restart: &["enabled", "client-id", "base", "fleet-group"],
    },
    Section {
        name: "task",
        live: &[
            "instructions",
            "system",
            "schema",
            "model",
            "priority",
            "deadline-ms",
            "egress",
            "policy",
            "wait",
            "tokens-max",
            "temperature",
            "input-bytes-max",
        ],
        restart: &[],
    },
    Section {
        name: "router",
        live: &[
            "policy",
            "shadow",
            "threshold",
            "target-share",
            "cascade",
            "cascade-threshold",
            "cascade-weights",
            "wait",
            "wait-max-s",
            "hedge-ms",
        ],
        restart: &[
            "requests-max",
            "waiting-max",
            "waiting-bytes-max",
            "weights",
            "weights-model",
        ],
    },
    Section {
        name: "redact",
        live: &["name", "pattern", "fields"],
        restart: &[],
    },
    Section {
        name: "budget",
        live: &[
            "name",
            "clients",
            "tasks",
            "each-client",
            "tokens-per-day",
            "tokens-per-month",
            "money-per-day",
            "money-per-month",
            "slope-percent",
            "slope-raise",
        ],
        restart: &[],
    },
    Section {
        name: "ledger",
        live: &[],
        restart: &["dir"],
    },
    Section {
        name: "upstream-cache",
        live: &[],
        restart: &[
            "enabled",
            "entries-max",
            "bytes-max",
            "expire-s",
            "per-client",
        ],
    },
    Section {
        name: "metrics",
        live: &["connections-max", "timeout-ms"],
        restart: &["listen"],
    },
    Section {
        name: "limits",
        live: &[
            "prompt-tokens-max",
            "messages-max",
            "stop-max",
            "client-requests-max",
            "client-requests-per-minute",
            "client-alarms-per-minute",
            "client-tokens-per-minute",
            "tokens-max-default",
            "tokens-max",
        ],
        restart: &["body-bytes-max", "queue-max"],
    },
    Section {
        name: "memory",
        live: &[],
        restart: &["budget-bytes", "reserve-bytes"],
    },
    Section {
        name: "hardware",
        live: &["sample-ms", "watts-max"],
        restart: &["sys-dir", "proc-dir"],
    },
    Section {
        name: "sandbox",
        live: &[],
        restart: &["landlock", "seccomp"],
    },
    Section {
        name: "log",
        live: &["level"],
        restart: &["text", "events-per-second-max"],
    },
];

/// What a change of a key needs; `None` if there is no such key. The keys of tasks are known as those of the section `task`.
#[must_use]
pub fn effect(section: &str, key: &str) -> Option<Effect> {
    let found = SECTIONS.iter().find(|found| found.name == section)?;
    if found.live.contains(&key) {
        Some(Effect::Live)
    } else {
        found.restart.contains(&key).then_some(Effect::Restart)
    }
}

/// What differs between the configuration in force and another.
#[derive(Debug)]
pub struct Change {
    /// The one in force with the values of the other whose keys are live. In order if both are.
    pub config: Config,
    /// The keys, as `section.key`, `task.name`, or the name of a list as `access`, whose new values are in it.
    pub live: Vec<String>,
    /// Those whose new values need a restart.
    pub restart: Vec<String>,
}

/// A key of a section.
type Key = (&'static str, &'static str);

/// What a caller by the loopback listener has to show, and whether there is one.
const TOKEN: &[Key] = &[
    ("http", "enabled"),
    ("http", "listen"),
    ("http", "token-file"),
];

/// To whom the link to the broker is made, and as whom. To another broker it may not come with the login, the certificate, the
/// session or the topics that were meant for the former.
const LINK: &[Key] = &[
    ("gateway", "name"),
    ("mqtt", "enabled"),
    ("mqtt", "client-id"),
    ("mqtt", "base"),
    ("mqtt", "fleet-group"),
    ("mqtt", "host"),
    ("mqtt", "port"),
    ("mqtt", "protocol"),
    ("mqtt", "tls"),
    ("mqtt", "username"),
    ("mqtt", "password-file"),
    ("mqtt", "ca-file"),
    ("mqtt", "certificate-file"),
    ("mqtt", "key-file"),
];

/// How many models are kept beside each other.
const LOADED: &[Key] = &[("models", "preload"), ("models", "loaded-max")];

/// Keys that say one thing together: where the new value of one has to wait for a restart, those of the others wait, too.
const TOGETHER: &[&[Key]] = &[TOKEN, LINK, LOADED];

/// What has to wait for a restart although its keys are live.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    /// The token of the loopback listener.
    pub token: bool,
    /// The link to the broker.
    pub link: bool,
    /// Whole sections.
    sections: BTreeSet<String>,
    everything: bool,
}

impl Waiting {
    /// These.
    #[must_use]
    pub fn of(token: bool, link: bool) -> Waiting {
        Waiting {
            token,
            link,
            ..Waiting::default()
        }
    }

    /// These, and a whole section if `is_so`.
    #[must_use]
    pub fn and_section(mut self, section: &str, is_so: bool) -> Waiting {
        if is_so {
            self.sections.insert(section.to_owned());
        }
        self
    }

    fn holds(&self, section: &str, key: &str) -> bool {
        self.everything
            || self.sections.contains(section)
            || (self.token && TOKEN.contains(&(section, key)))
            || (self.link && LINK.contains(&(section, key)))
    }

    /// Has the sections wait in which there is a problem, and everything where that is known already.
    fn add(&mut self, problems: &Problems) {
        let before = self.sections.len();
        let names = problems.iter().filter_map(|problem| {
            let name = problem.key.split(['.', '[']).next()?;
            (!name.is_empty()).then(|| name.to_owned())
        });
        self.sections.extend(names);
        self.everything = self.sections.len() == before;
    }
}

/// Compares the configuration in force with another, key by key: it is values that count, not whether the file says what is the
/// default. What does not go with the values that stay, waits for a restart with them.
///
/// # Errors
/// What does not let itself be written as TOML: no configuration that was read from it.
pub fn change(old: &Config, new: &Config, mut waiting: Waiting) -> Result<Change, String> {
    loop {
        let change = compare(old, new, &waiting)?;
        let mut problems = Problems::default();
        change.config.check(&mut problems);
        if problems.is_empty() || waiting.everything {
            return Ok(change);
        }
        waiting.add(&problems);
    }
}

fn compare(old: &Config, new: &Config, waiting: &Waiting) -> Result<Change, String> {
    let table = |config| Table::try_from(config).map_err(|error| error.to_string());
    let (mut merged, new) = (table(old)?, table(new)?);
    let (before, after) = (flat(&merged), flat(&new));
    let mut paths: Vec<&(String, String)> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    paths.retain(|path| before.get(*path) != after.get(*path));
    let waits_itself = |section: &str, key: &str| {
        let is_whole = matches!(
            section,
            "task" | "access" | "upstream" | "redact" | "budget"
        );
        // The first budget wants the ledger, whose folder is granted at the start only.
        let is_first = section == "budget" && old.budget.is_empty();
        let is_live = !is_first && (is_whole || effect(section, key) == Some(Effect::Live));
        !is_live || waiting.holds(section, key)
    };
    let waits = |section: &str, key: &str| {
        let of_others = TOGETHER
            .iter()
            .filter(|keys| keys.contains(&(section, key)));
        let mut others = of_others.copied().flatten();
        waits_itself(section, key)
            || others.any(|&(section, key)| {
                waits_itself(section, key)
                    && (paths.iter())
                        .any(|(of, changed)| (of.as_str(), changed.as_str()) == (section, key))
            })
    };
    let (mut live, mut restart) = (Vec::new(), Vec::new());
    for path in &paths {
        let (section, key) = path;
        let is_live = !waits(section, key);
        let changed = if is_live { &mut live } else { &mut restart };
        if key.is_empty() {
            changed.push(section.clone());
        } else {
            changed.push(format!("{section}.{key}"));
        }
        let of = match merged.get_mut(section) {
            Some(Value::Table(keys)) if !key.is_empty() => Some((keys, key)),
            _ if key.is_empty() => Some((&mut merged, section)),
            _ => None,
        };
        match (of.filter(|_| is_live), after.get(*path)) {
            (Some((keys, key)), Some(value)) => drop(keys.insert(key.clone(), value.clone())),
            (Some((keys, key)), None) => drop(keys.remove(key)),
            (None, _) => {}
        }
    }
    Ok(Change {
        config: Config::deserialize(merged).map_err(|error| error.message().to_owned())?,
        live,
        restart,
    })
}

/// The values of a configuration by section and key; a task is one value, and so is a section that is a list, without a key.
fn flat(table: &Table) -> BTreeMap<(String, String), Value> {
    let mut values = BTreeMap::new();
    for (section, keys) in table {
        let Some(keys) = keys.as_table() else {
            values.insert((section.clone(), String::new()), keys.clone());
            continue;
        };
        for (key, value) in keys {
            values.insert((section.clone(), key.clone()), value.clone());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    /// The annotated file, as it is installed.
    const SHIPPED: &str = include_str!("../../../../systemd/andond.toml");
    /// What stands behind a key there that is live.
    const MARK: &str = "# live";

    fn parse(text: &str) -> Config {
        Config::parse(&format!("[model]\npath = \"/m.gguf\"\n{text}")).expect("in order")
    }

    #[test]
    fn each_key_is_decided_once_and_there_are_no_others() {
        for (section, known) in read::all_known_keys() {
            for key in known {
                assert!(
                    effect(section, key).is_some(),
                    "whether {section}.{key} is live is not decided: put it into SECTIONS"
                );
            }
        }
        let known = read::all_known_keys();
        for section in SECTIONS {
            let keys = known.iter().find(|(name, _)| *name == section.name);
            let (_, keys) = keys.unwrap_or_else(|| panic!("there is no section {}", section.name));
            for key in section.live.iter().chain(section.restart) {
                assert!(keys.contains(key), "there is no {}.{key}", section.name);
            }
            let twice = |key| section.restart.contains(key);
            assert!(!section.live.iter().any(twice), "{}", section.name);
        }
        assert_eq!(known.len(), SECTIONS.len());
    }

    #[test]
    fn the_shipped_file_says_of_each_key_whether_it_is_live() {
        let mut section = String::new();
        let mut seen = 0;
        for line in SHIPPED.lines() {
            let code = line.strip_prefix('#').unwrap_or(line);
            if code.starts_with(' ') || code.is_empty() {
                continue;
            }
            if let Some(name) = code.strip_prefix('[') {
                let name = name.trim_matches(['[', ']']);
                // The shipped file shows one task; its keys are those of every other.
                section = name.split('.').next().unwrap_or_default().to_owned();
                continue;
            }
            let Some((key, _)) = code.split_once(" = ") else {
                continue;
            };
            let effect = effect(&section, key).unwrap_or_else(|| panic!("{section}.{key}"));
            let marked = line.trim_end().ends_with(MARK);
            assert_eq!(effect == Effect::Live, marked, "[{section}] {line}");
            seen += 1;
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn values_are_compared_and_live_ones_taken() {
        let old = parse(
            "[engine]\nthreads = 1\n[limits]\ntokens-max = 9\n[task.a]\ninstructions = \"A\"\n",
        );
        let new = parse(
            "temperature = 0.7\n[engine]\nthreads = 2\nparallel-max = 8\n[log]\nlevel = \"debug\"\n\
             [mqtt]\nbase = \"plant/a\"\n[task.b]\ninstructions = \"B\"\n",
        );
        let change = change(&old, &new, Waiting::default()).expect("TOML");
        // What is said as it is by default is no change.
        assert_eq!(change.restart, ["engine.threads", "mqtt.base"]);
        assert_eq!(
            change.live,
            [
                "limits.tokens-max",
                "log.level",
                "model.temperature",
                "task.a",
                "task.b"
            ]
        );
        let config = change.config;
        assert_eq!((config.engine.threads, config.mqtt.base), (Some(1), None));
        assert_eq!(
            (config.limits.tokens_max, config.log.level.as_str()),
            (None, "debug")
        );
        assert_eq!(config.model.temperature, 0.7);
        assert_eq!(config.task.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_cannot_be_reached_needs_a_restart() {
        let old = parse("");
        let new = parse("[[access]]\nusers = [\"*\"]\n[mqtt]\nport = 1884\nkeep-alive-s = 60\n");
        let waiting = Waiting::of(false, true);
        let change = change(&old, &new, waiting).expect("TOML");
        assert_eq!(change.restart, ["mqtt.port"]);
        assert_eq!(change.live, ["access", "mqtt.keep-alive-s"]);
        assert_eq!(change.config.access.len(), 1);
        let mqtt = change.config.mqtt;
        assert_eq!((mqtt.port, mqtt.keep_alive_s), (None, 60));
    }

    #[test]
    fn the_link_is_made_as_one_configuration_says_and_as_the_other_does_not() {
        let link = "[mqtt]\nenabled = true\n";
        let moved =
            "host = \"b\"\nprotocol = \"3.1.1\"\nusername = \"u\"\npassword-file = \"/p/b\"\n";
        let old = parse(link);
        let all = [
            "mqtt.host",
            "mqtt.password-file",
            "mqtt.protocol",
            "mqtt.username",
        ];
        let new = parse(&format!("{link}{moved}"));
        let live = change(&old, &new, Waiting::default()).expect("TOML");
        assert_eq!(live.live, all);
        let waiting = Waiting::of(false, true);
        let beyond = change(&old, &new, waiting).expect("TOML");
        assert_eq!(beyond.restart, all);
        assert!(beyond.live.is_empty());
        for own in [
            "[mqtt]\nenabled = true\nclient-id = \"c\"\n",
            "[mqtt]\nenabled = true\nbase = \"c\"\n",
            "[mqtt]\nenabled = true\nfleet-group = \"c\"\n",
            "[gateway]\nname = \"c\"\n[mqtt]\nenabled = true\n",
        ] {
            let new = parse(&format!("{own}{moved}requests-max = 7\n"));
            let change = change(&old, &new, Waiting::default()).expect("TOML");
            assert_eq!(change.live, ["mqtt.requests-max"], "{own}");
            assert_eq!(change.restart.len(), all.len() + 1, "{own}");
            assert_eq!(
                (
                    change.config.mqtt.host.as_str(),
                    change.config.mqtt.username
                ),
                ("localhost", None)
            );
        }
    }

    #[test]
    fn what_goes_with_a_restart_waits_for_it_and_nothing_else_does() {
        let rules = "[[access]]\nusers = [\"*\"]\ndeny = true\n";
        let listen = "[http]\nlisten = \"127.0.0.1:1\"\ntoken-file = \"/t\"\n";
        let two = "[models]\npreload = [\"a\", \"b\"]\nloaded-max = 3\n";
        for (one, other, restart) in [
            (listen, "", ["http.listen", "http.token-file"]),
            (
                two,
                "[models]\nloaded-max = 1\n",
                ["models.loaded-max", "models.preload"],
            ),
        ] {
            for (old, new) in [(one, other), (other, one)] {
                let new = parse(&format!("{new}{rules}"));
                let change = change(&parse(old), &new, Waiting::default()).expect("TOML");
                assert_eq!(
                    (&change.restart[..], &change.live[..]),
                    (&restart.map(str::to_owned)[..], &["access".to_owned()][..])
                );
                let mut problems = Problems::default();
                change.config.check(&mut problems);
                assert!(problems.is_empty(), "{problems}");
            }
        }
        // Alone, each of the live ones holds at once.
        let token = listen.replace("/t", "/u");
        let change = |old: &str, new: &str| {
            let change = change(&parse(old), &parse(new), Waiting::default()).expect("TOML");
            (change.live, change.restart)
        };
        assert_eq!(
            change(listen, &token),
            (vec!["http.token-file".to_owned()], vec![])
        );
    }

    #[test]
    fn a_section_waits_whose_new_values_do_not_go_with_those_that_stay() {
        let mut old = parse("");
        // As no table says: a value that stays and goes with no other of its section.
        old.http.listen = Some(([127, 0, 0, 1], 1).into());
        old.http.token_file = None;
        let new = parse(
            "[http]\nlisten = \"127.0.0.1:1\"\ntoken-file = \"/t\"\nconnections-max = 7\n[limits]\ntokens-max = 9\n",
        );
        let mut waiting = Waiting::of(true, false);
        let mut problems = Problems::default();
        problems.add("http.listen", "", "");
        problems.add("access[1].users", "", "");
        waiting.add(&problems);
        assert!(waiting.holds("access", "") && waiting.holds("http", "connections-max"));
        assert!(!waiting.everything && !waiting.holds("limits", "tokens-max"));
        waiting.add(&problems);
        assert!(waiting.holds("limits", "tokens-max"));
        // It comes to an end where nothing helps.
        let waiting = Waiting::of(true, false);
        let change = change(&old, &new, waiting).expect("TOML");
        assert!(change.live.is_empty());
        assert_eq!(
            change.restart,
            [
                "http.connections-max",
                "http.token-file",
                "limits.tokens-max"
            ]
        );
    }

    #[test]
    fn nothing_is_lost_on_the_way_through_toml() {
        let text = crate::config::tests::shown();
        // These examples go with the others only as the file's comments say.
        let text = text.replace("tls = false", "tls = true");
        let full = Config::parse(&text).expect("every example at once");
        let same = change(&full, &full, Waiting::default()).expect("TOML");
        assert_eq!((same.live.len(), same.restart.len()), (0, 0));
        assert_eq!(format!("{:?}", same.config), format!("{full:?}"));
        let bare = parse("");
        let all = change(&bare, &full, Waiting::default()).expect("TOML");
        let back = change(&all.config, &bare, Waiting::default()).expect("TOML");
        assert_eq!(all.live, back.live);
        assert_eq!(format!("{:?}", back.config), format!("{bare:?}"));
    }
}
