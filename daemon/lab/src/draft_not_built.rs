//! `draft` in a build without it: a subcommand that says so.

use anyhow::{Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What the subcommand would be given.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    given: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let given = arguments.given.join(" ");
    bail!("`draft {given}`: this build cannot train; build it with `--features draft`")
}
