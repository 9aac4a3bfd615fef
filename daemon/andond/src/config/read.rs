//! From text to sections, gathering every mistake on the way.
//!
//! Each key of a section is deserialized on its own, so a wrong type hides no other mistake. The
//! known keys of a section are asked of serde itself ([`known_keys`]): no list to keep in step.

use std::io::Read as _;
use std::path::Path;

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::{Config, FILE_BYTES_MAX, Problems};

/// Reads a file of bounded size as UTF-8.
pub(super) fn text(path: &Path) -> Result<String, Problems> {
    let one = |what: String, fix: &str| {
        let mut problems = Problems::default();
        problems.add("", what, fix);
        problems
    };
    let unreadable = |error: std::io::Error| {
        one(
            format!("cannot read {}: {error}", path.display()),
            "name a readable file with --config",
        )
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(one(
            format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display()),
            "is it the right file?",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        one(
            format!(
                "{} is not UTF-8 (byte {})",
                path.display(),
                error.utf8_error().valid_up_to()
            ),
            "save it as UTF-8",
        )
    })
}

/// Parses a text into a configuration and the mistakes of its form.
pub(super) fn document(text: &str) -> (Config, Problems) {
    let mut problems = Problems::default();
    let mut config = Config::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map(|span| line_of(text, span.start));
        problems.add_at(
            line,
            String::new(),
            error.message().to_owned(),
            "mend the TOML".to_owned(),
        );
    }
    let mut reader = Reader {
        text,
        problems: &mut problems,
    };
    for (key, value) in document.into_inner() {
        let line = line_of(text, key.span().start);
        let name = key.get_ref().to_string();
        match name.as_str() {
            "access" => {
                config.access = reader.list(&name, line, value);
                continue;
            }
            "upstream" => {
                config.upstream = reader.list(&name, line, value);
                continue;
            }
            "redact" => {
                config.redact = reader.list(&name, line, value);
                continue;
            }
            "budget" => {
                config.budget = reader.list(&name, line, value);
                continue;
            }
            _ => {}
        }
        let Some(table) = reader.table(&name, line, value) else {
            continue;
        };
        match name.as_str() {
            "gateway" => config.gateway = reader.section(&name, table),
            "model" => config.model = reader.section(&name, table),
            "models" => config.models = reader.section(&name, table),
            "cache" => config.cache = reader.section(&name, table),
            "engine" => config.engine = reader.section(&name, table),
            "speculation" => config.speculation = reader.section(&name, table),
            "spool" => config.spool = reader.section(&name, table),
            "audit" => config.audit = reader.section(&name, table),
            "http" => config.http = reader.section(&name, table),
            "wire" => config.wire = reader.section(&name, table),
            "mqtt" => config.mqtt = reader.section(&name, table),
            "router" => config.router = reader.section(&name, table),
            "ledger" => config.ledger = reader.section(&name, table),
            "upstream-cache" => config.upstream_cache = reader.section(&name, table),
            "metrics" => config.metrics = reader.section(&name, table),
            "limits" => config.limits = reader.section(&name, table),
            "memory" => config.memory = reader.section(&name, table),
            "hardware" => config.hardware = reader.section(&name, table),
            "sandbox" => config.sandbox = reader.section(&name, table),
            "log" => config.log = reader.section(&name, table),
            "task" => {
                for (key, value) in table {
                    let line = line_of(text, key.span().start);
                    let name = key.get_ref().to_string();
                    let path = format!("task.{name}");
                    if let Some(table) = reader.table(&path, line, value) {
                        let task = reader.section(&path, table);
                        config.task.insert(name, task);
                    }
                }
            }
            _ => reader.unknown(line, &name, "unknown section", &name, &SECTIONS),
        }
    }
    (config, problems)
}

const SECTIONS: [&str; 25] = [
    "gateway",
    "model",
    "models",
    "cache",
    "engine",
    "speculation",
    "spool",
    "access",
    "upstream",
    "audit",
    "http",
    "wire",
    "mqtt",
    "task",
    "router",
    "redact",
    "budget",
    "ledger",
    "upstream-cache",
    "metrics",
    "limits",
    "memory",
    "hardware",
    "sandbox",
    "log",
];

struct Reader<'a> {
    text: &'a str,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    /// The sections of a list of them, `[[name]]` each. They are counted from 1.
    fn list<T: DeserializeOwned + Default>(
        &mut self,
        name: &str,
        line: usize,
        value: Spanned<DeValue<'_>>,
    ) -> Vec<T> {
        self.problems.place(name.to_owned(), line);
        let DeValue::Array(items) = value.into_inner() else {
            let fix = format!("write each as a section of its own: [[{name}]]");
            let what = "is not a list of sections".to_owned();
            self.problems.add_at(Some(line), name.to_owned(), what, fix);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (number, item) in (1..).zip(items) {
            let line = line_of(self.text, item.span().start);
            let path = format!("{name}[{number}]");
            self.problems.place(path.clone(), line);
            match item.into_inner() {
                DeValue::Table(table) => sections.push(self.section(&path, table)),
                _ => {
                    let fix = format!("write it as a section: [[{name}]]");
                    let what = "is not a section".to_owned();
                    self.problems.add_at(Some(line), path, what, fix);
                }
            }
        }
        sections
    }

    fn table<'i>(
        &mut self,
        path: &str,
        line: usize,
        value: Spanned<DeValue<'i>>,
    ) -> Option<DeTable<'i>> {
        self.problems.place(path.to_owned(), line);
        match value.into_inner() {
            DeValue::Table(table) => Some(table),
            _ => {
                let fix = format!("write it as a section: [{path}]");
                self.problems.add_at(
                    Some(line),
                    path.to_owned(),
                    "is not a section".to_owned(),
                    fix,
                );
                None
            }
        }
    }

    fn section<T: DeserializeOwned + Default>(&mut self, path: &str, table: DeTable<'_>) -> T {
        let known = known_keys::<T>();
        let mut good = DeTable::new();
        for (key, value) in table {
            let line = line_of(self.text, key.span().start);
            let name = key.get_ref().to_string();
            let key_path = format!("{path}.{name}");
            if !known.contains(&name.as_str()) {
                self.unknown(line, &key_path, "unknown key", &name, known);
                continue;
            }
            self.problems.place(key_path.clone(), line);
            match deserialize::<T>(single(&key, &value)) {
                Ok(_) => {
                    good.insert(key, value);
                }
                Err(error) => {
                    let line = error
                        .span()
                        .map_or(line, |span| line_of(self.text, span.start));
                    let what = error.message().trim().replace('\n', ", ");
                    self.problems
                        .add_at(Some(line), key_path, what, String::new());
                }
            }
        }
        // Every key passed alone, so all of them pass together; a default is the harmless answer if not.
        deserialize(good).unwrap_or_default()
    }

    fn unknown(&mut self, line: usize, path: &str, what: &str, name: &str, known: &[&str]) {
        let near = known
            .iter()
            .map(|candidate| (distance(name, candidate), candidate))
            .min()
            .filter(|(distance, _)| *distance <= name.len().div_ceil(3));
        let fix = match near {
            Some((_, candidate)) => format!("did you mean {candidate}?"),
            None => format!("known here: {}", known.join(", ")),
        };
        self.problems
            .add_at(Some(line), path.to_owned(), what.to_owned(), fix);
    }
}

fn single<'i>(key: &Spanned<DeString<'i>>, value: &Spanned<DeValue<'i>>) -> DeTable<'i> {
    let mut table = DeTable::new();
    table.insert(key.clone(), value.clone());
    table
}

fn deserialize<T: DeserializeOwned>(table: DeTable<'_>) -> Result<T, toml::de::Error> {
    T::deserialize(toml::de::Deserializer::from(Spanned::new(0..0, table)))
}

fn line_of(text: &str, offset: usize) -> usize {
    let head = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    head.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The number of single-character edits between two keys; both are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The known keys of every section, for the test that holds the shipped file against them.
#[cfg(test)]
pub(super) fn all_known_keys() -> [(&'static str, &'static [&'static str]); SECTIONS.len()] {
    use super::{
        access, audit, budget, cache, engine, gateway, hardware, http, limits, log, memory,
        metrics, model, models, mqtt, redact, router, sandbox, speculation, spool, task, upstream,
        upstream_cache, wire,
    };
    [
        ("gateway", known_keys::<gateway::GatewayConfig>()),
        ("model", known_keys::<model::ModelConfig>()),
        ("models", known_keys::<models::ModelsConfig>()),
        ("cache", known_keys::<cache::CacheConfig>()),
        ("engine", known_keys::<engine::EngineConfig>()),
        (
            "speculation",
            known_keys::<speculation::SpeculationConfig>(),
        ),
        ("spool", known_keys::<spool::SpoolConfig>()),
        ("access", known_keys::<access::AccessConfig>()),
        ("upstream", known_keys::<upstream::UpstreamConfig>()),
        ("audit", known_keys::<audit::AuditConfig>()),
        ("http", known_keys::<http::HttpConfig>()),
        ("wire", known_keys::<wire::WireConfig>()),
        ("mqtt", known_keys::<mqtt::MqttConfig>()),
        ("task", known_keys::<task::TaskConfig>()),
        ("router", known_keys::<router::RouterConfig>()),
        ("redact", known_keys::<redact::RedactConfig>()),
        ("budget", known_keys::<budget::BudgetConfig>()),
        ("ledger", known_keys::<budget::LedgerConfig>()),
        (
            "upstream-cache",
            known_keys::<upstream_cache::UpstreamCacheConfig>(),
        ),
        ("metrics", known_keys::<metrics::MetricsConfig>()),
        ("limits", known_keys::<limits::LimitsConfig>()),
        ("memory", known_keys::<memory::MemoryConfig>()),
        ("hardware", known_keys::<hardware::HardwareConfig>()),
        ("sandbox", known_keys::<sandbox::SandboxConfig>()),
        ("log", known_keys::<log::LogConfig>()),
    ]
}

/// The keys serde knows of a struct.
fn known_keys<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Probe<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("only asked for its keys"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
            unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut keys: &'static [&'static str] = &[];
    // The probe always answers with an error; the keys are its by-product.
    let _ = T::deserialize(Probe(&mut keys));
    keys
}
