//! A conversation on the terminal, or piped in line by line.
//!
//! Invariant: the history holds whole turns only. A question whose answer failed is forgotten; a
//! question whose answer was cancelled stays with what was answered until then.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use andon_wire::{Finish, Role, limits};

use crate::arguments::ChatOptions;
use crate::ask::{Answer, exchange, finished, fresh_id, messages, request, stats};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;

/// The command `chat`.
pub(crate) fn run(path: &Path, options: &ChatOptions, output: &mut Output) -> Result<(), Failure> {
    let interrupts = Interrupts::listen()?;
    let person = io::stdin().is_terminal();
    let chatter = person && io::stderr().is_terminal();
    // Tells at once, not after the first question, that no daemon is there.
    drop(Connection::open(path)?);
    if chatter {
        eprintln!("/reset begins anew, /quit or Ctrl-D ends, Ctrl-C ends an answer");
    }

    let mut history: Vec<(Role, String)> = Vec::new();
    for turn in 0.. {
        if chatter {
            eprint!("> ");
            io::stderr().flush().map_err(Failure::Output)?;
        }
        let Some(line) = line()? else {
            break;
        };
        match line.trim() {
            "" => continue,
            "/quit" => break,
            "/reset" => {
                history.clear();
                continue;
            }
            command if command.starts_with('/') && !command.contains(' ') && person => {
                eprintln!("andonctl: there is no {command}; there are /reset and /quit");
                continue;
            }
            _ => {}
        }
        history.push((Role::User, line));
        let outcome = answer(path, options, &history, turn, &interrupts, output);
        output.end_line()?;
        match outcome {
            Ok(Answer { text, done }) => {
                history.push((Role::Assistant, text));
                if options.answer.stats || (chatter && output.is_terminal()) {
                    eprintln!("{}", stats(&done));
                }
                if !person {
                    finished(&done)?;
                } else if done.finish == Finish::Cancelled {
                    eprintln!("andonctl: cancelled");
                }
            }
            Err(failure) => {
                history.pop();
                // A script cannot see that a turn failed, a person can and goes on.
                if !person || matches!(failure, Failure::OutputClosed | Failure::Output(_)) {
                    return Err(failure);
                }
                failure.say();
            }
        }
    }
    Ok(())
}

fn answer(
    path: &Path,
    options: &ChatOptions,
    history: &[(Role, String)],
    turn: u32,
    interrupts: &Interrupts,
    output: &mut Output,
) -> Result<Answer, Failure> {
    let system = options
        .answer
        .system
        .as_deref()
        .map(|content| (Role::System, content));
    let said = history
        .iter()
        .map(|(role, content)| (*role, content.as_str()));
    let input = messages(system.into_iter().chain(said))?;
    let ask = request(fresh_id(turn)?, input, &options.answer)?;
    // The daemon keeps nothing of a conversation, so each turn may have a connection of its own,
    // and a daemon that was restarted in between goes unnoticed.
    let mut connection = Connection::open(path)?;
    exchange(&mut connection, ask, &options.answer, interrupts, |text| {
        output.text(text)
    })
}

/// The next line without its end, or `None` at the end of input.
fn line() -> Result<Option<String>, Failure> {
    let mut line = String::new();
    let bytes_max = limits::INPUT_BYTES_MAX as u64;
    let bytes = io::stdin()
        .lock()
        .take(bytes_max + 1)
        .read_line(&mut line)
        .map_err(Failure::Input)?;
    andon_wire::check_input_bytes(bytes)?;
    while line.ends_with(['\n', '\r']) {
        line.pop();
    }
    Ok((bytes > 0).then_some(line))
}
