//! `cargo xtask sim`: many events of `tests/sim`, optimized.

use std::process::ExitCode;

use anyhow::Result;

use crate::shell;

/// Runs worlds from `seed` on until there have been so many events.
///
/// # Errors
/// When something did not hold, which is printed with the seed of its world.
pub(crate) fn run(seed: u64, events: u64) -> Result<ExitCode> {
    let mut cargo = shell::cargo(&["run", "--quiet", "--release", "--package", "andon-sim"]);
    let (seed, events) = (seed.to_string(), events.to_string());
    cargo.args(["--", "--seed", &seed, "--events", &events]);
    shell::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
