//! The command `corpus`: the earlier answers to tasks that the daemon guesses from.

use std::fmt;
use std::path::Path;

use andon_wire::{ClientFrame, CorpusAction, CorpusErased, CorpusTask, ServerFrame};
use serde::Serialize;

use crate::arguments::{CorpusCommand, CorpusErase};
use crate::ask::fresh_id;
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::Output;
use crate::report::json;

/// The command `corpus`.
pub(crate) fn run(
    socket: &Path,
    command: &CorpusCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        CorpusCommand::Ls(options) => {
            let mut lines = Vec::new();
            operate(socket, CorpusAction::List, |line| lines.push(line))?;
            for line in &lines {
                if options.json {
                    json(output, line)?;
                } else {
                    output.text(&line.to_string())?;
                }
            }
            Ok(())
        }
        CorpusCommand::Erase(options) => erase(socket, options, output),
    }
}

fn erase(socket: &Path, options: &CorpusErase, output: &mut Output) -> Result<(), Failure> {
    let action = CorpusAction::Erase {
        task: options.task.clone(),
        client: options.client.as_deref(),
    };
    let erased = operate(socket, action, |_| ())?
        .ok_or_else(|| unexpected("wish to erase earlier answers"))?;
    output.text(&format!("{} erased\n", erased.count))?;
    match erased.shared {
        0 => Ok(()),
        shared => Err(Failure::Shared(shared)),
    }
}

/// Has the daemon do something; returns what it erased, if it did.
fn operate(
    socket: &Path,
    action: CorpusAction<'_>,
    mut found: impl FnMut(Line),
) -> Result<Option<CorpusErased>, Failure> {
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    connection.send(&ClientFrame::CorpusTask(CorpusTask {
        id: id.clone(),
        action,
    }))?;
    loop {
        match connection.receive()? {
            ServerFrame::StoredCorpus(corpus) if corpus.id == id => found(Line {
                task: corpus.task.to_owned(),
                client: (!corpus.client.is_empty()).then(|| corpus.client.to_owned()),
                local: corpus.local,
                tokens: corpus.tokens,
            }),
            ServerFrame::ModelDone(done) if done.id == id => return Ok(None),
            ServerFrame::CorpusErased(erased) if erased.id == id => return Ok(Some(erased)),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for earlier answers")),
        }
    }
}

/// One of the corpora.
#[derive(Debug, Serialize)]
struct Line {
    task: String,
    client: Option<String>,
    local: bool,
    tokens: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client = match (&self.client, self.local) {
            (Some(client), true) => format!("{client} (local)"),
            (Some(client), false) => client.clone(),
            (None, _) => "all clients".to_owned(),
        };
        writeln!(
            f,
            "{:<24}  {client:<24}  {:>8} tokens",
            self.task, self.tokens
        )
    }
}
