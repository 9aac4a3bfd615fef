//! The Debian packages, really built, and held against what `cargo xtask install` lays into a root.
//!
//! Left out is their life on a system (installed, upgraded, removed, purged). Invariant: both ways install the same
//! files with the same permissions, and leave the same ones to the administrator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::assets::{self, Package};
use crate::stages::Outcome;
use crate::{install, shell};

/// Builds each package from the programs of the tests and compares.
///
/// # Errors
/// A package that does not build, or differs; the error says in what.
pub(crate) fn check() -> Result<Outcome> {
    for tool in ["cargo-deb", "dpkg-deb"] {
        if shell::find(tool).is_none() {
            return Ok(Outcome::Skipped(format!(
                "{tool} is not installed (cargo install cargo-deb; apt-get install dpkg)"
            )));
        }
    }
    let mut built = Vec::new();
    for package in assets::packages()? {
        build(&package).with_context(|| format!("the package {}", package.name))?;
        built.push(package.name);
    }
    Ok(Outcome::Passed(built.join(", ")))
}

/// Where a package is built and looked at.
fn folder() -> PathBuf {
    shell::target_directory().join("package")
}

fn build(package: &Package) -> Result<()> {
    shell::run(&mut shell::cargo(&[
        "build",
        "--quiet",
        "--workspace",
        "--bins",
    ]))?;
    // cargo-deb packs what is optimized; what is packed is not what is tested here, so that nothing is built twice.
    let programs = folder().join("release");
    fs::create_dir_all(&programs)?;
    for program in package.programs() {
        let from = shell::target_directory().join("debug").join(program);
        fs::copy(&from, programs.join(program))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let file = folder().join(format!("{}.deb", package.name));
    let mut deb = shell::cargo(&["deb", "--no-build", "--no-strip", "--fast", "--quiet"]);
    deb.args(["--package", &package.crate_name, "--output"]);
    shell::run(deb.arg(&file).env("CARGO_TARGET_DIR", folder()))?;
    compare(package, &file, &programs)
}

/// Unpacks the package beside an installation of the same files.
fn compare(package: &Package, file: &Path, programs: &Path) -> Result<()> {
    let (unpacked, installed) = (
        folder().join(&package.name).join("unpacked"),
        folder().join(&package.name).join("installed"),
    );
    for root in [&unpacked, &installed] {
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        fs::create_dir_all(root)?;
    }
    shell::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;
    install::install(package, &installed, programs)?;

    // What Debian wants beside: pages that are packed, and a word on who may copy.
    let documents = unpacked.join("usr/share/doc");
    let own = documents.join(&package.name);
    fs::remove_file(own.join("copyright")).context("no word on who may copy it")?;
    for folder in [own, documents] {
        // It stays where there is more in it.
        drop(fs::remove_dir(folder));
    }
    shell::run(
        Command::new("gzip")
            .args(["-dr"])
            .arg(unpacked.join("usr/share/man")),
    )?;
    let (ours, theirs) = (listing(&installed)?, listing(&unpacked)?);
    if let Some(line) = only_in(&theirs, &ours).or_else(|| only_in(&ours, &theirs)) {
        bail!("the package and the installation differ: {line}");
    }
    shell::run(
        Command::new("diff")
            .arg("-r")
            .arg(&installed)
            .arg(&unpacked),
    )?;

    let conffiles = shell::output(
        Command::new("dpkg-deb")
            .arg("-I")
            .arg(file)
            .arg("conffiles"),
    );
    let mut theirs: Vec<PathBuf> = match (&conffiles, package.kept.is_empty()) {
        (Ok(text), _) => text
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| PathBuf::from(line.trim_start_matches('/')))
            .collect(),
        (Err(_), true) => Vec::new(),
        (Err(error), false) => bail!("no file is the administrator's: {error:#}"),
    };
    theirs.sort();
    if theirs != package.kept {
        bail!(
            "the administrator's are {theirs:?} in the package, {:?} in the table",
            package.kept
        );
    }
    Ok(())
}

/// Kind, permissions and path of all that is below `root` but folders.
fn listing(root: &Path) -> Result<Vec<String>> {
    let mut find = Command::new("find");
    find.arg(root)
        .args(["-not", "-type", "d", "-printf", "%y %m %P\n"]);
    let mut lines: Vec<String> = shell::output(&mut find)?
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    if lines.is_empty() {
        bail!("{} is empty", root.display());
    }
    Ok(lines)
}

/// The first line of `lines` that `others` have not.
fn only_in(lines: &[String], others: &[String]) -> Option<String> {
    lines.iter().find(|line| !others.contains(line)).cloned()
}
