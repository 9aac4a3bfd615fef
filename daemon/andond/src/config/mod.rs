//! The configuration: one TOML file, one section a file here.
//!
//! Reading never stops at the first mistake: [`Config::parse`] gathers unknown keys, wrong types and
//! broken bounds of the whole text as [`Problem`]s, each with the line, the key and a way out.
//! Sections are flat structs with `deny_unknown_fields` and a default for every key; a section's
//! `check` sees values only, never the file system ([`crate::check`] does that).

pub mod access;
pub mod audit;
pub mod budget;
pub mod cache;
pub mod change;
mod current;
pub mod engine;
pub mod gateway;
pub mod hardware;
pub mod http;
pub mod limits;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod models;
pub mod mqtt;
mod problem;
mod read;
pub mod redact;
pub mod router;
pub mod sandbox;
pub mod speculation;
pub mod spool;
pub mod task;
#[cfg(test)]
pub(crate) mod tests;
pub mod upstream;
pub mod upstream_cache;
pub mod wire;

use std::collections::BTreeMap;
use std::path::Path;

pub use current::Current;
pub use problem::{Problem, Problems};
use serde::{Deserialize, Serialize};

/// Where the configuration is looked for unless `--config` says otherwise.
pub const PATH_DEFAULT: &str = "/etc/andon/andond.toml";
/// Largest configuration file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most `[task.<name>]` sections.
pub const TASKS_MAX: usize = 256;

/// The whole configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `[gateway]`
    pub gateway: gateway::GatewayConfig,
    /// `[model]`
    pub model: model::ModelConfig,
    /// `[models]`
    pub models: models::ModelsConfig,
    /// `[cache]`
    pub cache: cache::CacheConfig,
    /// `[engine]`
    pub engine: engine::EngineConfig,
    /// `[speculation]`
    pub speculation: speculation::SpeculationConfig,
    /// `[spool]`
    pub spool: spool::SpoolConfig,
    /// `[[access]]`
    pub access: Vec<access::AccessConfig>,
    /// `[[upstream]]`
    pub upstream: Vec<upstream::UpstreamConfig>,
    /// `[audit]`
    pub audit: audit::AuditConfig,
    /// `[http]`
    pub http: http::HttpConfig,
    /// `[wire]`
    pub wire: wire::WireConfig,
    /// `[mqtt]`
    pub mqtt: mqtt::MqttConfig,
    /// `[task.<name>]`
    pub task: BTreeMap<String, task::TaskConfig>,
    /// `[router]`
    pub router: router::RouterConfig,
    /// `[[redact]]`
    pub redact: Vec<redact::RedactConfig>,
    /// `[[budget]]`
    pub budget: Vec<budget::BudgetConfig>,
    /// `[ledger]`
    pub ledger: budget::LedgerConfig,
    /// `[upstream-cache]`
    #[serde(rename = "upstream-cache")]
    pub upstream_cache: upstream_cache::UpstreamCacheConfig,
    /// `[metrics]`
    pub metrics: metrics::MetricsConfig,
    /// `[limits]`
    pub limits: limits::LimitsConfig,
    /// `[memory]`
    pub memory: memory::MemoryConfig,
    /// `[hardware]`
    pub hardware: hardware::HardwareConfig,
    /// `[sandbox]`
    pub sandbox: sandbox::SandboxConfig,
    /// `[log]`
    pub log: log::LogConfig,
}

impl Config {
    /// Whether what was computed for prompts is kept on the disk. As long as nobody says so it is not where requests are
    /// encrypted, since prompts can be recovered from it, and not where signatures are required: where nothing is computed
    /// from weights that nobody signed, it is not from what was computed with any, either. Never where nothing is remembered
    /// in memory.
    #[must_use]
    pub fn keeps_pages(&self) -> bool {
        let encrypted = self.spool.key_file.is_some();
        let signed = self.models.signature == models::SignaturePolicy::Require;
        self.engine.prefix_cache && self.cache.kv_keep.unwrap_or(!encrypted && !signed)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Every problem of the file, or one problem saying why it could not be read.
    pub fn read(path: &Path) -> Result<Config, Problems> {
        let text = read::text(path)?;
        Config::parse(&text)
    }

    /// Reads a file and checks it, and hands both out whatever was found: for a caller that looks further.
    /// Keys with mistakes have their defaults.
    ///
    /// # Errors
    /// One problem saying why the file could not be read at all.
    pub fn read_unchecked(path: &Path) -> Result<(Config, Problems), Problems> {
        let text = read::text(path)?;
        let (config, mut problems) = read::document(&text);
        config.check(&mut problems);
        Ok((config, problems))
    }

    /// Parses and checks a text.
    ///
    /// # Errors
    /// Every problem of the text, in the order of its lines.
    pub fn parse(text: &str) -> Result<Config, Problems> {
        let (config, mut problems) = read::document(text);
        config.check(&mut problems);
        problems.into_result(config)
    }

    /// A daemon that has ended can be reached by the sockets that the service manager listens on, and by nothing else.
    fn check_idle_exit(&self, problems: &mut Problems) {
        if self.gateway.idle_exit().is_none() {
            return;
        }
        let others = [
            (self.mqtt.enabled, "[mqtt] enabled"),
            (
                self.http.enabled && self.http.listen.is_some(),
                "[http] listen",
            ),
            (self.metrics.listen.is_some(), "[metrics] listen"),
        ];
        for (_, key) in others.into_iter().filter(|(is_set, _)| *is_set) {
            problems.add(
                "gateway.idle-exit-s",
                format!("cannot be together with {key}: nobody would take what comes that way"),
                "leave out one of the two",
            );
        }
    }

    /// Adds what is wrong with the values; a text that was parsed has been checked.
    pub fn check(&self, problems: &mut Problems) {
        self.gateway.check(problems);
        self.model.check(problems);
        self.models.check(problems);
        self.cache.check(problems);
        self.engine.check(problems);
        self.speculation.check(problems);
        self.spool.check(problems);
        if self.access.len() > access::RULES_MAX {
            problems.add(
                "access",
                format!("{} rules are configured", self.access.len()),
                format!("keep at most {}", access::RULES_MAX),
            );
        }
        for (number, rule) in (1..).zip(&self.access) {
            rule.check(number, problems);
        }
        upstream::check(&self.upstream, problems);
        self.audit.check(problems);
        self.http.check(problems);
        self.wire.check(problems);
        self.mqtt.check(problems);
        if self.task.len() > TASKS_MAX {
            problems.add(
                "task",
                format!("{} tasks are configured", self.task.len()),
                format!("keep at most {TASKS_MAX}"),
            );
        }
        for (name, task) in &self.task {
            task.check(name, problems);
        }
        self.router.check(problems);
        redact::RedactConfig::check_all(&self.redact, problems);
        budget::BudgetConfig::check_all(&self.budget, problems);
        self.ledger.check(problems);
        self.upstream_cache.check(problems);
        self.metrics.check(problems);
        self.limits.check(problems);
        self.memory.check(problems);
        self.hardware.check(problems);
        self.log.check(problems);
        self.check_idle_exit(problems);
        if self.http.socket == self.wire.socket {
            problems.add(
                "wire.socket",
                "is the HTTP socket's path",
                "give the two sockets different paths",
            );
        }
    }
}
