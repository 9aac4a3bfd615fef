//! What routing learns from: measured labels, and how sure an answer must be of itself.

use anyhow::Result;
use clap::{Args, Subcommand};

mod calibrate;
mod curve;
mod eval;
mod explain;
mod fit;
mod label;
mod plot;
mod records;
mod train;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a model over questions with known answers, and write which it gets right and how sure it was.
    Label(label::Arguments),
    /// Learn from such labels which questions the local model answers well enough, and write the estimator's weights.
    Train(train::Arguments),
    /// Measure how well the estimator tells them apart on questions that it has not learned from.
    Eval(eval::Arguments),
    /// Print what the estimator expects of the answer to a question, and why.
    Explain(explain::Arguments),
    /// Fit to such labels how sure an answer must be of itself not to go up.
    Calibrate(calibrate::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Label(arguments) => label::run(arguments),
        Command::Train(arguments) => train::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Calibrate(arguments) => calibrate::run(arguments),
    }
}
