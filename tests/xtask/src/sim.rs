//! `cargo xtask sim`: many events of `tests/sim`, optimized.

use std::process::ExitCode;

use anyhow::Result;

use crate::shell;

/// Runs worlds from `seed` on until there have been so many events, and so many days of a link that flaps.
///
/// # Errors
/// When something did not hold, which is printed with the seed of its world.
pub(crate) fn run(seed: u64, events: u64, days: u64) -> Result<ExitCode> {
    let mut cargo = shell::cargo(&[
        "run",
        "--quiet",
        "--release",
        "--package",
        "andon-sim",
        "--",
    ]);
    for (flag, value) in [("--seed", seed), ("--events", events), ("--days", days)] {
        cargo.arg(flag).arg(value.to_string());
    }
    shell::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
