//! The commands that need no model: `status`, `models`, `cancel`.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use andon_wire::{
    Cancel, ClientFrame, HealthStatus, Models, MqttLink, SandboxLayer, ServerFrame, ServiceStatus,
    SpoolStatus, Status,
};
use serde::Serialize;

use crate::arguments::{CancelOptions, ModelsOptions, StatusOptions};
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::Output;

/// The command `status`.
pub(crate) fn status(
    path: &Path,
    options: &StatusOptions,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut connection = Connection::open(path)?;
    loop {
        let draft = draft(&mut connection)?;
        let health = health(&mut connection)?;
        let models = loaded(&mut connection)?;
        let service = Service::ask(&mut connection)?;
        connection.send(&ClientFrame::Status)?;
        match connection.receive()? {
            ServerFrame::Status(status) if options.json => {
                let shown = Shown {
                    status,
                    draft,
                    health,
                    models,
                    service,
                };
                json(output, &shown)?;
            }
            ServerFrame::Status(status) => {
                if options.watch.is_some() {
                    output.clear()?;
                }
                let shown = Shown {
                    status,
                    draft,
                    health,
                    models,
                    service,
                };
                output.text(&describe(&shown))?;
            }
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for the status")),
        }
        let Some(seconds) = options.watch else {
            return Ok(());
        };
        thread::sleep(Duration::from_secs(seconds));
    }
}

/// The status, the draft model, what else is loaded, and how the daemon runs as a service.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    status: Status<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft: Option<Draft>,
    #[serde(flatten)]
    health: HealthStatus,
    /// The names of the models that are loaded.
    models: Vec<String>,
    #[serde(flatten)]
    service: Service,
}

/// The sandbox and the spool.
#[derive(Serialize)]
struct Service {
    sandbox: Sandbox,
    spool: SpoolStatus,
}

/// What the daemon gave up when it started.
#[derive(Serialize)]
struct Sandbox {
    landlock: Layer,
    seccomp: Layer,
}

/// A part of it.
#[derive(Serialize)]
struct Layer {
    on: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

impl From<SandboxLayer<'_>> for Layer {
    fn from(layer: SandboxLayer<'_>) -> Layer {
        let (level, missing) = match layer {
            SandboxLayer::Off => (None, None),
            SandboxLayer::On { level } => (Some(level), None),
            SandboxLayer::Missing { why } => (None, Some(why.to_owned())),
        };
        Layer {
            on: level.is_some(),
            level,
            missing,
        }
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.level, &self.missing) {
            (Some(level), _) => write!(f, "on (version {level})"),
            (None, Some(why)) => write!(f, "missing: {why}"),
            (None, None) => f.write_str("off"),
        }
    }
}

impl Service {
    fn ask(connection: &mut Connection) -> Result<Service, Failure> {
        connection.send(&ClientFrame::Service)?;
        match connection.receive()? {
            ServerFrame::Service(ServiceStatus { sandbox, spool }) => Ok(Service {
                sandbox: Sandbox {
                    landlock: sandbox.landlock.into(),
                    seccomp: sandbox.seccomp.into(),
                },
                spool,
            }),
            ServerFrame::Error(fault) => Err(Failure::from(&fault)),
            _ => Err(unexpected("question for the sandbox")),
        }
    }
}

/// The names of the models that are loaded.
fn loaded(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    connection.send(&ClientFrame::Models)?;
    match connection.receive()? {
        ServerFrame::Models(models) => {
            let loaded = models.models.iter().filter(|model| model.loaded);
            Ok(loaded.map(|model| model.name.to_string()).collect())
        }
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question for the models")),
    }
}

/// The draft model that the daemon's configuration names.
#[derive(Serialize)]
struct Draft {
    name: String,
    used: bool,
    bytes: u64,
    translated: bool,
    reason: String,
}

/// The draft model, if the daemon's configuration names one.
fn draft(connection: &mut Connection) -> Result<Option<Draft>, Failure> {
    connection.send(&ClientFrame::Draft)?;
    match connection.receive()? {
        ServerFrame::Draft(draft) => Ok(draft.map(|draft| Draft {
            name: draft.name.to_owned(),
            used: draft.used,
            bytes: draft.bytes,
            translated: draft.translated,
            reason: draft.reason.to_owned(),
        })),
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question for the draft")),
    }
}

/// What is not as it should be.
fn health(connection: &mut Connection) -> Result<HealthStatus, Failure> {
    connection.send(&ClientFrame::Health)?;
    match connection.receive()? {
        ServerFrame::Health(health) => Ok(health),
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question for the health")),
    }
}

/// The command `models`.
pub(crate) fn models(
    path: &Path,
    options: &ModelsOptions,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut connection = Connection::open(path)?;
    connection.send(&ClientFrame::Models)?;
    match connection.receive()? {
        ServerFrame::Models(models) if options.json => json(output, &models),
        ServerFrame::Models(models) => output.text(&list(&models)),
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question for the models")),
    }
}

/// The command `cancel`.
pub(crate) fn cancel(path: &Path, options: &CancelOptions) -> Result<(), Failure> {
    let mut connection = Connection::open(path)?;
    connection.send(&ClientFrame::Cancel(Cancel {
        id: options.id.clone(),
    }))?;
    match connection.receive()? {
        ServerFrame::Cancelled(cancelled) if cancelled.found => Ok(()),
        ServerFrame::Cancelled(cancelled) => Err(Failure::NotFound(cancelled.id)),
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("cancel")),
    }
}

pub(crate) fn json(output: &mut Output, value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(value).map_err(|error| Failure::Output(error.into()))?;
    line.push(b'\n');
    output.bytes(&line)
}

fn describe(shown: &Shown<'_>) -> String {
    let Shown {
        status,
        draft,
        health,
        models,
        service,
    } = shown;
    let Status {
        requests,
        tokens,
        queue,
        speed,
        mqtt,
        ..
    } = status;
    let mut text = format!(
        "{} on {}: {}, up {}\n",
        status.software,
        status.gateway,
        status.readiness.as_str(),
        duration(status.uptime_s)
    );
    let model = match &status.model {
        Some(model) => format!(
            "{} ({}), {}, context {} tokens, {}, {} threads",
            model.name,
            model.architecture,
            size(model.file_bytes),
            model.context_tokens_max,
            model.isa,
            model.threads
        ),
        None => "none loaded".to_owned(),
    };
    let link = match (mqtt.link, mqtt.broker) {
        (MqttLink::Off, _) => "off".to_owned(),
        (link, broker) => {
            format!(
                "{}, broker {broker}, {} reconnects",
                link.as_str(),
                mqtt.reconnects
            )
        }
    };
    let lines = [
        ("model", model),
        (
            "requests",
            format!(
                "{} accepted, {} answered, {} refused, {} failed, {} cancelled",
                requests.accepted,
                requests.answered,
                requests.refused,
                requests.failed,
                requests.cancelled
            ),
        ),
        (
            "queue",
            format!(
                "{} of {} waiting, {} of {} active",
                queue.waiting, queue.waiting_max, queue.active, queue.active_max
            ),
        ),
        (
            "tokens",
            format!(
                "{} of prompts, {} of answers",
                tokens.prompt, tokens.completion
            ),
        ),
        (
            "speed",
            format!(
                "prefill {:.1} tok/s, decode {:.1} tok/s of late",
                speed.prefill_tokens_per_s, speed.decode_tokens_per_s
            ),
        ),
        ("mqtt", link),
    ];
    for (name, value) in lines {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {name:<9} {value}");
    }
    if let Some(draft) = draft {
        let value = if draft.used {
            let how = if draft.translated {
                ", by text, since its vocabulary is another"
            } else {
                ""
            };
            format!("{} guesses, {}{how}", draft.name, size(draft.bytes))
        } else {
            format!("{} is not used: {}", draft.name, draft.reason)
        };
        let _ = writeln!(text, "  {:<9} {value}", "draft");
    }
    let memory = &health.memory;
    let mut value = format!("{} promised", size(memory.promised_bytes));
    if let Some(budget) = memory.budget_bytes {
        let _ = write!(value, " of {}", size(budget));
    }
    if let Some(left) = memory.left_bytes {
        let _ = write!(value, ", {} to be had", size(left));
    }
    let _ = writeln!(text, "  {:<9} {value}", "memory");
    if models.len() > 1 {
        let _ = writeln!(text, "  {:<9} {}", "loaded", models.join(", "));
    }
    let spool = &service.spool;
    let _ = writeln!(
        text,
        "  {:<9} {} waiting, {} running, {} to deliver, {} delivered, {}{}",
        "spool",
        spool.accepted,
        spool.running,
        spool.answered,
        spool.delivered,
        size(spool.bytes),
        if spool.durable {
            ""
        } else {
            ", in memory only"
        }
    );
    let Sandbox { landlock, seccomp } = &service.sandbox;
    let _ = writeln!(
        text,
        "  {:<9} Landlock {landlock}, seccomp {seccomp}",
        "sandbox"
    );
    if !health.degraded.is_empty() {
        let words: Vec<&str> = health.degraded.iter().map(|mode| mode.as_str()).collect();
        let _ = writeln!(text, "  {:<9} {}", "degraded", words.join(", "));
    }
    text
}

fn list(models: &Models<'_>) -> String {
    if models.models.is_empty() {
        return "no models are served\n".to_owned();
    }
    let name_columns = models
        .models
        .iter()
        .map(|model| model.name.as_str().chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for model in &models.models {
        let state = match (model.loaded, model.default) {
            (true, true) => "loaded, default",
            (true, false) => "loaded",
            (false, true) => "default",
            (false, false) => "on demand",
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<name_columns$}  {:<8}  {:>10}  context {:>6}  {state}",
            model.name.as_str(),
            model.architecture,
            size(model.file_bytes),
            model.context_tokens_max
        );
    }
    text
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// Seconds as people read them: the two largest units that matter.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::{duration, size};

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(98_304_000), "93.8 MiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(7_320), "2 h 2 min");
        assert_eq!(duration(90_000), "1 d 1 h");
    }
}
