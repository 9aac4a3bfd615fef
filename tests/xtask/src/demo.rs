//! `cargo xtask demo`: everything needed to see answers, then the show itself.
//!
//! The show is the program `andon-demo` of andon-tests, so that the broker and the clients it
//! carries are not built for every other command.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::{model, shell};

/// Prepares and shows; the exit status is that of the show.
pub(crate) fn run(keep: bool, given: Option<PathBuf>) -> Result<ExitCode> {
    println!("== model");
    let model = match given {
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("no model at {}", path.display()))?,
        None => model::ensure()?,
    };
    println!("  {}", model.display());
    println!("== build (the first time this takes some minutes)");
    shell::run(&mut shell::cargo(&[
        "build",
        "--release",
        "--package",
        "andond",
        "--package",
        "andonctl",
    ]))?;
    shell::run(&mut shell::cargo(&[
        "build",
        "--package",
        "andon-tests",
        "--bin",
        "andon-demo",
    ]))?;
    let target = shell::target_directory();
    let mut show = Command::new(target.join("debug/andon-demo"));
    show.arg("--programs")
        .arg(target.join("release"))
        .arg("--model")
        .arg(model);
    if keep {
        show.arg("--keep");
    }
    // The show takes our place, so that Ctrl-C and the exit status are its own.
    Err(show.stdin(Stdio::null()).exec()).context("cannot run andon-demo")
}
