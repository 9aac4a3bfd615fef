//! The command `embed`: texts to vectors, one request after the other on one connection.

use std::path::Path;
use std::time::Duration;

use andon_wire::{ClientFrame, Done, Embed, Fault, RequestId, ServerFrame};
use serde::Serialize;

use crate::arguments::EmbedOptions;
use crate::ask::{DEADLINE_GRACE, fresh_id, standard_input};
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;

/// What `--json` prints for each text.
#[derive(Serialize)]
struct Report<'a> {
    embedding: &'a [f32],
    #[serde(flatten)]
    done: &'a Done,
}

/// The command `embed`.
pub(crate) fn run(path: &Path, options: &EmbedOptions, output: &mut Output) -> Result<(), Failure> {
    let interrupts = Interrupts::listen()?;
    let mut connection = Connection::open(path)?;
    for (turn, text) in (0..).zip(&options.text) {
        let input;
        let text = if text == "-" {
            input = standard_input()?;
            input.as_str()
        } else {
            text
        };
        let mut embed = Embed::new(fresh_id(turn)?, text);
        embed.model.clone_from(&options.model);
        embed.dimensions = options.dimensions;
        embed.priority = options.priority.map(Into::into);
        embed.deadline_ms = options.deadline_ms;
        embed.check()?;
        let (vector, done) = exchange(&mut connection, embed, &interrupts)?;
        let line = if options.json {
            let report = Report {
                embedding: &vector,
                done: &done,
            };
            serde_json::to_string(&report)
        } else {
            serde_json::to_string(&vector)
        };
        let line = line.map_err(|error| Failure::Output(error.into()))?;
        output.bytes(line.as_bytes())?;
        output.bytes(b"\n")?;
    }
    Ok(())
}

fn exchange(
    connection: &mut Connection,
    embed: Embed<'_>,
    interrupts: &Interrupts,
) -> Result<(Vec<f32>, Done), Failure> {
    // A queue may take its time, so without a deadline there is no time at which to give up.
    let deadline = embed
        .deadline_ms
        .map(|ms| Duration::from_millis(ms.into()) + DEADLINE_GRACE);
    connection.wait_at_most(deadline)?;
    let id = embed.id.clone();
    connection.send(&ClientFrame::Embed(embed))?;
    let _guard = interrupts.cancels(connection.stream()?, id.clone());

    let mut vector = Vec::new();
    let (mut count, mut dimensions) = (0, 0);
    loop {
        match connection.receive()? {
            ServerFrame::Accepted(accepted) if accepted.id == id => {}
            // Whether it found anything, the request's own end tells.
            ServerFrame::Cancelled(_) => {}
            ServerFrame::Vector(piece) if piece.id == id => {
                if piece.sequence != count || count == u32::MAX {
                    return Err(Failure::Lost(format!(
                        "piece {} of the vector came where piece {count} was due",
                        piece.sequence
                    )));
                }
                count += 1;
                dimensions = piece.dimensions;
                vector.extend(piece.elements());
            }
            ServerFrame::Done(done) if done.id == id => {
                if done.chunks != count || u32::try_from(vector.len()) != Ok(dimensions) {
                    return Err(Failure::Lost(format!(
                        "the vector has {dimensions} elements and {} arrived",
                        vector.len()
                    )));
                }
                return Ok((vector, done));
            }
            ServerFrame::Error(fault) if concerns(&fault, &id) => {
                return Err(Failure::from(&fault));
            }
            _ => return Err(unexpected("request")),
        }
    }
}

fn concerns(fault: &Fault<'_>, id: &RequestId) -> bool {
    fault.id.as_ref().is_none_or(|concerned| concerned == id)
}
