//! Where the programs under test are, and what the set-up of the tests found.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::source::repository_root;

/// The folder with `andond` and `andonctl`, built from this checkout.
///
/// `ANDON_BIN_DIR` names it where the caller has just built them, as `cargo xtask test` does; else
/// they are built here, once, so that no test ever runs against an older program.
///
/// # Errors
/// When they do not build.
pub fn folder() -> io::Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(folder) = env::var_os("ANDON_BIN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    FOLDER
        .get_or_init(|| build().map_err(|error| error.to_string()))
        .clone()
        .map_err(io::Error::other)
}

fn build() -> io::Result<PathBuf> {
    let this = env::current_exe()?;
    // Tests run from `<profile>/deps`, programs from `<profile>`.
    let mut folder = this.parent().map(PathBuf::from).unwrap_or_default();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "andond",
        "--package",
        "andonctl",
        // As in a build of the whole workspace, tests of the emulated card among it.
        "--features",
        "andond/cuda-emulation",
    ]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(repository_root()).output()?;
    if !built.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&built.stderr).into_owned(),
        ));
    }
    Ok(folder)
}

/// The real model that `cargo xtask setup` fetched, if it did; a test without it says so and ends.
#[must_use]
pub fn real_model() -> Option<PathBuf> {
    found("ANDON_TEST_MODEL")
}

/// The Python interpreter with the packages of `tests/requirements.txt`, if there is one.
#[must_use]
pub fn python() -> Option<PathBuf> {
    found("ANDON_TEST_PYTHON")
}

fn found(variable: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {variable} is not set (cargo xtask setup says how)");
    }
    path
}
