//! The command `kv`: what the daemon keeps on the disk of prompts.

use std::path::Path;

use andon_wire::{ClientFrame, PageAction, PageTask, ServerFrame};
use serde::Serialize;

use crate::arguments::KvCommand;
use crate::ask::fresh_id;
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::Output;
use crate::report::json;

/// The command `kv`.
pub(crate) fn run(socket: &Path, command: &KvCommand, output: &mut Output) -> Result<(), Failure> {
    match command {
        KvCommand::Show(options) => {
            let (kept, _) = operate(socket, PageAction::Show)?;
            if options.json {
                json(output, &kept)
            } else {
                output.text(&format!("{} pages, {} bytes\n", kept.pages, kept.bytes))
            }
        }
        KvCommand::Erase => {
            let (_, erased) = operate(socket, PageAction::Erase)?;
            output.text(&format!("{erased} erased\n"))
        }
    }
}

/// What there is on the disk.
#[derive(Debug, Default, Serialize)]
struct Kept {
    pages: u32,
    bytes: u64,
}

/// Has the daemon do something; returns what there is, if that was asked, and how many pages it concerned.
fn operate(socket: &Path, action: PageAction) -> Result<(Kept, u32), Failure> {
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    connection.send(&ClientFrame::PageTask(PageTask {
        id: id.clone(),
        action,
    }))?;
    let mut kept = Kept::default();
    loop {
        match connection.receive()? {
            ServerFrame::StoredPages(stored) if stored.id == id => {
                kept = Kept {
                    pages: stored.pages,
                    bytes: stored.bytes,
                };
            }
            ServerFrame::ModelDone(done) if done.id == id => return Ok((kept, done.count)),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for what is kept of prompts")),
        }
    }
}
