//! `andonctl`: asks a running `andond` over its compact socket and shows the answer; and gets, packs and
//! hands over models.
//!
//! One request, one connection, no runtime: a command connects, says hello, sends a frame and
//! reads what comes back. What the program knows of the daemon is what `andon-wire` says. `pull` and
//! `bundle` need no daemon.
//!
//! Invariant: the answer, and nothing else, goes to standard output; everything said about it goes
//! to standard error; how it went is in the exit status ([`failure`]).
#![forbid(unsafe_code)]

mod arguments;
mod ask;
mod backends;
mod bundle;
mod chat;
mod connection;
mod corpus;
mod digest;
mod embed;
mod failure;
mod gguf;
mod interrupt;
mod key;
mod kv;
mod model;
mod output;
mod parcel;
mod progress;
mod pull;
mod reload;
mod report;
mod route;
mod spool;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::arguments::{Arguments, Command};
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut output = Output::new();
    match run(arguments, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: Arguments, output: &mut Output) -> Result<(), Failure> {
    let socket = arguments.socket.as_path();
    match arguments.command {
        Command::Ask(options) => ask::run(socket, &options, output),
        Command::Chat(options) => chat::run(socket, &options, output),
        Command::Embed(options) => embed::run(socket, &options, output),
        Command::Status(options) => report::status(socket, &options, output),
        Command::Models(options) => report::models(socket, &options, output),
        Command::Model(command) => model::run(socket, &command, output),
        Command::Pull(options) => pull::run(&options, output),
        Command::Bundle(command) => bundle::run(command, output),
        Command::Key(command) => key::run(&command, output),
        Command::Corpus(command) => corpus::run(socket, &command, output),
        Command::Spool(command) => spool::run(socket, &command, output),
        Command::Kv(command) => kv::run(socket, &command, output),
        Command::Reload(options) => reload::run(socket, &options, output),
        Command::Backends(options) => backends::run(socket, &options, output),
        Command::Route(command) => route::run(socket, &command, output),
        Command::Cancel(options) => report::cancel(socket, &options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "andonctl", &mut script);
            output.bytes(&script)
        }
        Command::Man { directory } => manual(directory.as_deref(), output),
    }
}

/// Writes the manual: one page of the whole program to standard output, or, into a directory, that
/// page and one for each command.
fn manual(directory: Option<&std::path::Path>, output: &mut Output) -> Result<(), Failure> {
    match directory {
        Some(directory) => {
            clap_mangen::generate_to(Arguments::command(), directory).map_err(Failure::Output)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command())
                .render(&mut page)
                .and_then(|()| page.flush())
                .map_err(Failure::Output)?;
            output.bytes(&page)
        }
    }
}
