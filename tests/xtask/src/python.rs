//! A Python environment with the packages of `tests/requirements.txt`, kept in the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{cache, shell};

/// The environment's interpreter. One environment is made for each list of packages.
///
/// # Errors
/// When the environment cannot be made or pip cannot fetch a package.
pub(crate) fn ensure() -> Result<PathBuf> {
    let _lock = cache::lock()?;
    let list = shell::root().join("tests/requirements.txt");
    let text = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let version = shell::output(Command::new("python3").arg("--version"))?;
    let mut hash = Sha256::new();
    hash.update(&text);
    hash.update(&version);
    let key: String = hash
        .finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let folder = cache::folder()?.join(format!("python-{key}"));
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if complete.is_file() && python.exists() {
        return Ok(python);
    }
    println!("  making a Python environment in {}", folder.display());
    shell::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]);
    shell::run(
        pip.args(["--only-binary", ":all:", "--requirement"])
            .arg(&list),
    )?;
    fs::write(&complete, b"")?;
    Ok(python)
}
