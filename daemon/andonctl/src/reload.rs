//! The command `reload`: has the daemon read its configuration again.

use std::path::Path;
use std::time::Duration;

use andon_wire::{ClientFrame, Reload, ReloadOutcome, ServerFrame};
use serde::Serialize;

use crate::arguments::ReloadOptions;
use crate::ask::fresh_id;
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::{Output, printable};
use crate::report::json;

/// The daemon looks at every file that the configuration names, on whatever disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of the keys.
#[derive(Debug, Default, Serialize)]
struct Said {
    live: Vec<String>,
    restart: Vec<String>,
    problems: Vec<String>,
}

/// The command `reload`.
pub(crate) fn run(
    socket: &Path,
    options: &ReloadOptions,
    output: &mut Output,
) -> Result<(), Failure> {
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    connection.wait_at_most(Some(PATIENCE))?;
    connection.send(&ClientFrame::Reload(Reload { id: id.clone() }))?;
    let mut said = Said::default();
    let failure = loop {
        match connection.receive()? {
            ServerFrame::Reloaded(word) if word.id == id => {
                let list = match word.outcome {
                    ReloadOutcome::Live => &mut said.live,
                    ReloadOutcome::Restart => &mut said.restart,
                    ReloadOutcome::Problem => &mut said.problems,
                };
                list.push(word.text.to_owned());
            }
            ServerFrame::ModelDone(done) if done.id == id => break None,
            ServerFrame::Error(fault) => break Some(Failure::from(&fault)),
            _ => return Err(unexpected("wish to reload")),
        }
    };
    if options.json {
        json(output, &said)?;
    } else if failure.is_none() {
        output.text(&table(&said))?;
    } else {
        for problem in &said.problems {
            eprintln!("{}", printable(problem));
        }
    }
    failure.map_or(Ok(()), Err)
}

fn table(said: &Said) -> String {
    let mut text = String::new();
    for (keys, what) in [(&said.live, "live"), (&said.restart, "needs a restart")] {
        for key in keys {
            text.push_str(&format!("{}  {what}\n", printable(key)));
        }
    }
    if text.is_empty() {
        text.push_str("nothing differs\n");
    }
    text
}
