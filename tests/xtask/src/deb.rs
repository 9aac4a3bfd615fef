//! The Debian packages, really built by `cargo deb`, and held against what `cargo xtask install` lays into a root.
//!
//! Their life on a system (installed, upgraded, removed, purged) is the stage `system`'s. Invariant: both ways install the
//! same files with the same permissions, and leave the same ones to the administrator.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use crate::assets::{self, Package};
use crate::stages::Outcome;
use crate::{cache, install, shell};

/// The version of cargo-deb that is built where none is installed.
const VERSION: &str = "3.8.0";

/// cargo-deb, in PATH or on its way into the cache: half a minute of a processor, once, while other stages build.
pub(crate) struct Tool {
    making: Option<JoinHandle<Result<Option<PathBuf>>>>,
    made: Result<Packer, String>,
}

impl Tool {
    /// Begins to build it if it is neither in PATH nor in the cache.
    pub(crate) fn start() -> Tool {
        Tool {
            making: Some(thread::spawn(tool)),
            made: Err("cargo-deb was never looked for".to_owned()),
        }
    }

    /// What packs.
    ///
    /// # Errors
    /// When a tool is missing and cannot be had.
    pub(crate) fn packer(&mut self) -> Result<Packer> {
        if let Some(making) = self.making.take() {
            let made = making
                .join()
                .unwrap_or_else(|_| bail!("building cargo-deb panicked"));
            self.made = made
                .and_then(Packer::new)
                .map_err(|error| format!("{error:#}"));
        }
        self.made.clone().map_err(anyhow::Error::msg)
    }
}

/// The folder with cargo-deb, or `None` for PATH.
fn tool() -> Result<Option<PathBuf>> {
    if shell::find("cargo-deb").is_some() {
        return Ok(None);
    }
    let folder = cache::folder()?.join(format!("cargo-deb-{VERSION}"));
    let programs = folder.join("bin");
    if programs.join("cargo-deb").is_file() {
        return Ok(Some(programs));
    }
    println!("  building cargo-deb in {}", folder.display());
    // Beside its place, and moved there when it is whole.
    let new = folder.with_extension(format!("new-{}", process::id()));
    let mut build = shell::mortal("nice");
    build.args(["-n", "19"]);
    build.arg(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "install",
        "cargo-deb",
        "--quiet",
        "--locked",
        "--debug",
        "--version",
        VERSION,
    ]);
    build
        .arg("--root")
        .arg(&new)
        .env("CARGO_TARGET_DIR", new.join("target"));
    let made = shell::output(&mut build)
        .context("cargo-deb is not installed, and cannot be")
        .and_then(|_| {
            fs::remove_dir_all(new.join("target"))?;
            // Somebody else may have been faster; one is as good as the other.
            fs::rename(&new, &folder)
                .or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) })?;
            Ok(())
        });
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    made.map(|()| Some(programs))
}

/// Makes packages.
#[derive(Clone)]
pub(crate) struct Packer {
    folder: Option<PathBuf>,
}

impl Packer {
    /// One that finds cargo-deb in `folder`.
    fn new(folder: Option<PathBuf>) -> Result<Packer> {
        for needed in ["dpkg-deb", "dpkg-shlibdeps"] {
            shell::find(needed)
                .with_context(|| format!("no {needed} here (apt-get install dpkg-dev)"))?;
        }
        Ok(Packer { folder })
    }

    /// Builds a package of these programs.
    ///
    /// # Errors
    /// What cargo-deb says.
    pub(crate) fn pack(&self, package: &Package, programs: &Path) -> Result<PathBuf> {
        // It takes programs from where optimized ones are built; which ones these are is for the caller to say.
        let release = folder().join("release");
        fs::create_dir_all(&release)?;
        for program in package.programs() {
            let from = programs.join(program);
            fs::copy(&from, release.join(program))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let file = folder().join(format!("{}.deb", package.name));
        let mut deb = shell::cargo(&["deb", "--no-build", "--no-strip", "--fast", "--quiet"]);
        // Its own compression is as slow as it was built.
        deb.args([
            "--compress-system",
            "--package",
            &package.crate_name,
            "--output",
        ]);
        if let Some(folder) = &self.folder {
            deb.env("PATH", before_path(folder)?);
        }
        shell::run(deb.arg(&file).env("CARGO_TARGET_DIR", folder()))?;
        Ok(file)
    }
}

/// PATH, with a folder before it.
fn before_path(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [folder.to_path_buf()];
    let folders = folders.into_iter().chain(env::split_paths(&path));
    env::join_paths(folders).context("PATH")
}

/// Builds each package from the programs of the tests and compares.
///
/// # Errors
/// A package that does not build, or differs; the error says in what.
pub(crate) fn check(tool: Result<Packer>) -> Result<Outcome> {
    let packer = match tool {
        Ok(packer) => packer,
        Err(error) => return Ok(Outcome::Skipped(format!("{error:#}"))),
    };
    let build = ["build", "--quiet", "--workspace", "--bins"];
    shell::run(&mut shell::cargo(&build))?;
    let programs = shell::target_directory().join("debug");
    let mut built = Vec::new();
    for package in assets::packages()? {
        let named = || format!("the package {}", package.name);
        let file = packer.pack(&package, &programs).with_context(named)?;
        compare(&package, &file, &programs).with_context(named)?;
        built.push(package.name);
    }
    Ok(Outcome::Passed(built.join(", ")))
}

/// Where a package is built and looked at.
fn folder() -> PathBuf {
    shell::target_directory().join("package")
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
