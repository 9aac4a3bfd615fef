//! Long runs against an optimized daemon: hostile requests, and hours of mixed load.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::{model, packages, shell};

/// Builds the daemon, optimized, and says where it is.
fn programs() -> Result<PathBuf> {
    packages::ensure(&[&packages::BROKER, &packages::BROKER_CLIENTS])?;
    let packages = ["--package", "andond", "--package", "andonctl"];
    shell::run(shell::cargo(&["build", "--release"]).args(packages))?;
    Ok(shell::target_directory().join("release"))
}

/// Runs those of the tests against the daemon that have these words in their names, of which there are so many: a name that
/// no test has any more would be a campaign that finds nothing.
///
/// # Errors
/// When there are others.
pub(crate) fn tests(words: &[&str], count: usize) -> Result<Command> {
    let command = || {
        let mut cargo = shell::cargo(&["test", "--package", "andon-tests", "--test", "it", "--"]);
        cargo.args(words);
        cargo
    };
    let listed = shell::output(command().args(["--list", "--format", "terse"]))?;
    let found = listed.lines().filter(|line| line.ends_with(": test"));
    let found = found.count();
    ensure!(
        found == count,
        "{found} tests are called {}, not {count}",
        words.join(" or ")
    );
    let mut cargo = command();
    cargo.arg("--nocapture");
    Ok(cargo)
}

/// So many hostile requests over each front end.
///
/// # Errors
/// When they leave something behind.
pub(crate) fn hostile(count: u64, seed: u64, only: Option<&str>) -> Result<ExitCode> {
    let known = ["http", "wire", "mqtt"];
    ensure!(
        only.is_none_or(|only| known.contains(&only)),
        "--only takes http, wire or mqtt"
    );
    let (model, programs) = (model::ensure()?, programs()?);
    for front in known
        .into_iter()
        .filter(|front| only.is_none_or(|only| only == *front))
    {
        let filter = format!("abuse::{front}");
        let mut cargo = tests(&[&filter], 1)?;
        cargo
            .env("ANDON_BIN_DIR", &programs)
            .env("ANDON_HOSTILE_MODEL", &model)
            .env("ANDON_HOSTILE_COUNT", count.to_string())
            .env("ANDON_HOSTILE_SEED", seed.to_string());
        shell::run(&mut cargo)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// So many hours of mixed load in all.
///
/// # Errors
/// When the daemon ends, or holds more and more.
pub(crate) fn soak(hours: f64, state: Option<PathBuf>) -> Result<ExitCode> {
    let (model, programs) = (model::ensure()?, programs()?);
    let mut build = shell::cargo(&["build", "--package", "andon-tests"]);
    shell::run(build.args(["--bin", "andon-soak"]))?;
    let target = shell::target_directory();
    let state = state.unwrap_or_else(|| target.join("soak.jsonl"));
    let mut soak = Command::new(target.join("debug/andon-soak"));
    soak.arg("--programs")
        .arg(&programs)
        .arg("--model")
        .arg(&model);
    soak.arg("--hours")
        .arg(hours.to_string())
        .arg("--state")
        .arg(&state);
    shell::run(&mut soak)?;
    Ok(ExitCode::SUCCESS)
}
