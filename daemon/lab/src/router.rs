//! What routing learns from: measured labels, and how sure an answer must be of itself.

use anyhow::Result;
use clap::{Args, Subcommand};

mod calibrate;
mod label;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a model over questions with known answers, and write which it gets right and how sure it was.
    Label(label::Arguments),
    /// Fit to such labels how sure an answer must be of itself not to go up.
    Calibrate(calibrate::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Label(arguments) => label::run(arguments),
        Command::Calibrate(arguments) => calibrate::run(arguments),
    }
}
