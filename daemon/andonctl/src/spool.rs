//! The command `spool`: the requests that the daemon keeps until their answers are delivered.

use std::fmt;
use std::path::Path;

use andon_wire::{ClientFrame, KeptRequest, ServerFrame, SpoolAction, SpoolTask};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::SpoolCommand;
use crate::ask::fresh_id;
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::Output;
use crate::report::json;

/// The command `spool`.
pub(crate) fn run(
    socket: &Path,
    command: &SpoolCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        SpoolCommand::Ls(options) => {
            let action = SpoolAction::List {
                task: options.task.clone(),
                client: options.client.as_deref(),
            };
            let found = operate(socket, action)?;
            for line in &found.lines {
                if options.json {
                    json(output, line)?;
                } else {
                    output.text(&line.to_string())?;
                }
            }
            Ok(())
        }
        SpoolCommand::Show(options) => {
            let found = operate(socket, SpoolAction::Show(options.number))?;
            let contents: Value = serde_json::from_str(&found.text).unwrap_or(Value::Null);
            for line in found.lines {
                if options.json {
                    json(
                        output,
                        &Shown {
                            line,
                            contents: &contents,
                        },
                    )?;
                } else {
                    let pretty = serde_json::to_string_pretty(&contents).unwrap_or_default();
                    output.text(&format!("{line}{pretty}\n"))?;
                }
            }
            Ok(())
        }
        SpoolCommand::Retry(options) => {
            operate(socket, SpoolAction::Retry(options.number)).map(drop)
        }
        SpoolCommand::Drop(options) => operate(socket, SpoolAction::Drop(options.number)).map(drop),
        SpoolCommand::Erase(options) => {
            let action = SpoolAction::Erase {
                task: options.task.clone(),
                client: options.client.as_deref(),
            };
            let found = operate(socket, action)?;
            output.text(&format!("{} erased\n", found.count))
        }
    }
}

#[derive(Default)]
struct Found {
    lines: Vec<Line>,
    text: String,
    count: u32,
}

fn operate(socket: &Path, action: SpoolAction<'_>) -> Result<Found, Failure> {
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    connection.send(&ClientFrame::SpoolTask(SpoolTask {
        id: id.clone(),
        action,
    }))?;
    let mut found = Found::default();
    loop {
        match connection.receive()? {
            ServerFrame::KeptRequest(kept) if kept.id == id => found.lines.push(Line::new(&kept)),
            ServerFrame::ModelText(text) if text.id == id => found.text.push_str(text.text),
            ServerFrame::ModelDone(done) if done.id == id => {
                found.count = done.count;
                return Ok(found);
            }
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for kept requests")),
        }
    }
}

/// One of them with what was asked and answered.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    line: Line,
    #[serde(flatten)]
    contents: &'a Value,
}

/// One of the requests.
#[derive(Debug, Serialize)]
struct Line {
    number: u64,
    origin: String,
    client: String,
    id: String,
    task: Option<String>,
    state: String,
    attempt: u16,
    age_ms: u64,
    left_ms: Option<u64>,
    request_bytes: u64,
    answer_bytes: u64,
    error: Option<String>,
}

impl Line {
    fn new(kept: &KeptRequest<'_>) -> Line {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Line {
            number: kept.number,
            origin: kept.origin.to_owned(),
            client: kept.client.to_owned(),
            id: kept.request.to_owned(),
            task: said(kept.task),
            state: kept.state.to_owned(),
            attempt: kept.attempt,
            age_ms: kept.age_ms,
            left_ms: kept.left_ms,
            request_bytes: kept.request_bytes,
            answer_bytes: kept.answer_bytes,
            error: said(kept.fault),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{}/{}/{}", self.origin, self.client, self.id);
        let state = match &self.error {
            Some(error) => format!("{} ({error})", self.state),
            None => self.state.clone(),
        };
        writeln!(
            f,
            "{:>8}  {name:<40}  {state:<28}  attempt {}  {} s old{}",
            self.number,
            self.attempt,
            self.age_ms / 1000,
            self.task
                .as_ref()
                .map_or_else(String::new, |task| format!("  task {task}")),
        )
    }
}
