//! `andon-booted`: the checks of `cargo xtask test --system`, made inside a root that systemd has booted.
//!
//! It runs there as a unit of its own, as root, and leaves one line of JSON for each check in a folder that the host
//! sees. Which checks are made follows from the phase that the host wrote into that folder. A check that fails does not
//! keep the later ones from being made.
//!
//! Invariant: the names of all checks of a phase are written before the first is made, so that one which was never
//! reached is not taken for one that passed.

#![forbid(unsafe_code)]

mod checks;
mod gateway;
mod record;
mod units;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::gateway::Gateway;
use crate::record::Record;

/// Makes the checks of one phase and leaves what they found in a folder.
#[derive(Parser)]
struct Arguments {
    /// The folder that the host sees: it has the phase, and takes the results.
    #[arg(long, default_value = "/results")]
    results: PathBuf,
}

/// A named check; what it returns is a note of the figures seen.
pub(crate) struct Check {
    /// Its name in the results.
    pub(crate) name: &'static str,
    /// What is done.
    pub(crate) run: fn(&mut Gateway) -> Result<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("andon-booted: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let phase = fs::read_to_string(arguments.results.join("phase"))
        .with_context(|| format!("no phase in {}", arguments.results.display()))?;
    let phase = phase.trim();
    let Some(checks) = checks::of(phase) else {
        bail!("no checks are made in a phase {phase:?}");
    };
    let mut record = Record::open(&arguments.results, phase)?;
    record.plan(checks.iter().map(|check| check.name))?;
    let mut gateway = Gateway::new(&arguments.results);
    for check in checks {
        let began = Instant::now();
        let outcome = (check.run)(&mut gateway);
        let took = began.elapsed();
        if outcome.is_err() {
            gateway.keep_journal(check.name)?;
        }
        record.outcome(check.name, took, &outcome)?;
    }
    Ok(())
}
