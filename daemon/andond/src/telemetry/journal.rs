//! The log: to the journal under systemd, else to standard error.
//!
//! Fields keep their names, in capitals in the journal. Text of prompts and answers is logged at no level unless the
//! configuration asks for it (`[log] text`).

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::limit::Limit;
use super::plain::Plain;
use crate::config::log::LogConfig;

/// How often it is said what was left out.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What leaves out what is too much, once the log is started.
static LIMIT: OnceLock<Limit> = OnceLock::new();
/// The filter in use, if this process logs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the process. Later calls change nothing.
///
/// The journal is used if systemd connected standard error to it (`JOURNAL_STREAM`) and its socket
/// answers; standard error is the fallback.
pub fn start(config: &LogConfig) {
    let (filter, handle) = reload::Layer::new(filter(config));
    let limit = LIMIT.get_or_init(|| Limit::new(config.events_per_second_max));
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(limit.clone());
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let result = match under_systemd.then(tracing_journald::layer) {
        Some(Ok(layer)) => registry
            .with(
                layer
                    .with_field_prefix(None)
                    // What goes as it should is information; a notice is for what is out of the ordinary.
                    .with_priority_mappings(PriorityMappings {
                        info: Priority::Informational,
                        debug: Priority::Debug,
                        ..PriorityMappings::new()
                    }),
            )
            .try_init(),
        _ => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .fmt_fields(Plain)
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::stderr().is_terminal()),
            )
            .try_init(),
    };
    // An error here means that a test or an embedding program logs already.
    if result.is_ok() {
        FILTER.get_or_init(|| handle);
    }
}

/// Logs by another level from now on.
pub fn set_level(config: &LogConfig) {
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(filter(config))
    {
        crate::event!(Internal, %error, "the level of the log stays as it is");
    }
}

fn filter(config: &LogConfig) -> EnvFilter {
    EnvFilter::builder()
        .parse(&config.level)
        .unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Says now and then what was not logged, until the daemon stops.
pub async fn report(stopping: CancellationToken) {
    let Some(limit) = LIMIT.get() else {
        return;
    };
    while !stopping.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(REPORT_EVERY) => {}
            () = stopping.cancelled() => {}
        }
        limit.report();
    }
}
