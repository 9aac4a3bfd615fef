//! The log: to the journal under systemd, else to standard error.
//!
//! No prompt or answer text is logged at any level.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::log::LogConfig;

/// Starts logging for the process. Later calls change nothing.
///
/// The journal is used if systemd connected standard error to it (`JOURNAL_STREAM`) and its socket
/// answers; standard error is the fallback.
pub fn start(config: &LogConfig) {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let result = match under_systemd.then(tracing_journald::layer) {
        Some(Ok(layer)) => registry.with(layer.with_field_prefix(None)).try_init(),
        _ => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())),
            )
            .try_init(),
    };
    // An error here means that a test or an embedding program logs already.
    drop(result);
}
