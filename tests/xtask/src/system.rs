//! `cargo xtask test --system`: andon installed into a minimal root that a real systemd boots, and looked at from inside.
//!
//! The root is booted by systemd-nspawn with nothing of the host but its kernel: own processes, own network, own journal.
//! The checks are made in there by `andon-booted` of andon-tests; here the root is made, booted, deprived of its power
//! and booted again, and what was found is counted. A check that was planned and has no result has failed.

mod boot;
mod report;
mod root;
mod uml;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use crate::deb::Packer;
use crate::stages::Outcome;
use crate::{assets, install, model, packages, shell};

use self::boot::{Ended, Machine};
use self::report::Counts;
use self::root::Base;

/// The minimal root on its way, made while other stages build: it is mostly waited for.
pub(crate) struct Making(Result<JoinHandle<Result<root::Base>>>);

impl Making {
    /// Installs what it takes, and begins to make the root if the cache has none.
    pub(crate) fn start() -> Making {
        let needs = [&packages::CONTAINER, &packages::BOOTSTRAP];
        Making(packages::ensure(&needs).map(|()| thread::spawn(root::base)))
    }

    fn wait(self) -> Result<root::Base> {
        let making = self.0?;
        making
            .join()
            .unwrap_or_else(|_| bail!("making the root panicked"))
    }
}

/// How the command `cargo xtask test --system` differs from the stage.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// Booted by user-mode Linux.
    pub(crate) uml: bool,
    /// Programs as they are shipped, with a real model.
    pub(crate) release: bool,
}

/// Installs, boots, cuts the power, boots again, then the same package's life on another root; counts what was found.
pub(crate) fn check(making: Making, packer: Result<Packer>) -> Result<Outcome> {
    let base = match making.wait() {
        Ok(base) => base,
        Err(error) => return Ok(Outcome::Skipped(format!("no root to boot: {error:#}"))),
    };
    if let Err(error) = boot::can_run(&base) {
        return Ok(Outcome::Skipped(format!(
            "systemd-nspawn cannot run here: {error:#}"
        )));
    }
    let programs = Programs::make(false)?;
    let folder = shell::target_directory().join("system");
    let machine = Machine::new(&base, &folder, &programs)?;
    machine.install(&programs)?;
    let mut counts = two_boots(&machine, "first", |phase| machine.boot(phase))?;
    machine.remove().context("cannot remove the root")?;
    let without = match packer {
        Ok(packer) => {
            package(&base, &programs, &packer, &mut counts)?;
            String::new()
        }
        Err(error) => format!("; without the package's life: {error:#}"),
    };
    Ok(Outcome::Passed(format!("{counts}{without}")))
}

/// The Debian package on a root that has nothing of andon.
fn package(base: &Base, programs: &Programs, packer: &Packer, counts: &mut Counts) -> Result<()> {
    let packages = assets::packages()?;
    let andon = packages.iter().find(|package| package.name == "andon");
    let file = packer.pack(andon.context("no package andon")?, &programs.shipped)?;
    let folder = shell::target_directory().join("system-package");
    let machine = Machine::new(base, &folder, programs)?;
    fs::copy(file, machine.results().join("andon.deb"))?;
    one_boot(&machine, "package", counts, |phase| machine.boot(phase))?;
    machine.remove().context("cannot remove the root")
}

/// What the command shows and the stage does not. By user-mode Linux: limits of memory, and what a disk has when the power
/// goes. With optimized programs and a real model: how fast a start by a socket is, and how much memory it takes.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let boots = match options.uml {
        true => &packages::USER_MODE_LINUX,
        false => &packages::CONTAINER,
    };
    packages::ensure(&[&packages::BOOTSTRAP, boots])?;
    let base = root::base()?;
    let programs = Programs::make(options.release)?;
    let folder = shell::target_directory().join("system-by-hand");
    let machine = Machine::new(&base, &folder, &programs)?;
    machine.install(&programs)?;
    if options.release {
        machine.bring(&model::ensure()?)?;
    }
    let mut counts = Counts::default();
    if options.uml {
        let disk = uml::Disk::new(&machine, &folder)?;
        if options.release {
            one_boot(&machine, "release-memory", &mut counts, |phase| {
                disk.boot(phase)
            })?;
        } else {
            counts = two_boots(&machine, "memory", |phase| disk.boot(phase))?;
        }
    } else {
        one_boot(&machine, "release", &mut counts, |phase| {
            machine.boot(phase)
        })?;
    }
    println!("{counts}");
    machine.remove().context("cannot remove the root")?;
    Ok(ExitCode::SUCCESS)
}

/// Boots a machine for one phase.
///
/// # Errors
/// When a check has failed.
fn one_boot(
    machine: &Machine,
    phase: &str,
    counts: &mut Counts,
    boot: impl FnOnce(&str) -> Result<Ended>,
) -> Result<()> {
    let ended = boot(phase);
    counts.take(&machine.results(), phase);
    ended?;
    if counts.failed > 0 {
        bail!("{counts}; see {}", machine.results().display());
    }
    Ok(())
}

/// Boots a machine until its power is cut, and once more.
///
/// # Errors
/// When a check has failed.
fn two_boots(
    machine: &Machine,
    phase: &str,
    mut boot: impl FnMut(&str) -> Result<Ended>,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let results = machine.results();
    let ended = boot(phase);
    counts.take(&results, phase);
    if ended? != Ended::Cut {
        bail!(
            "{counts}; the first boot ended before its power was cut; see {}",
            results.display()
        );
    }
    let ended = boot("after");
    counts.take(&results, "after");
    ended?;
    if counts.failed > 0 {
        bail!("{counts}; see {}", results.display());
    }
    Ok(counts)
}

/// Where the programs are.
struct Programs {
    /// The folder with what is installed.
    shipped: PathBuf,
    /// The folder with what looks at it.
    checks: PathBuf,
}

impl Programs {
    /// Builds what the environment does not name.
    fn make(release: bool) -> Result<Programs> {
        let named = env::var_os("ANDON_BIN_DIR").map(PathBuf::from);
        let checks = match &named {
            Some(folder) => folder.clone(),
            None => {
                // As the tests' stage builds them: another choice would build every dependency once more.
                let build = ["build", "--quiet", "--workspace", "--bins"];
                shell::run(&mut shell::cargo(&build))?;
                shell::target_directory().join("debug")
            }
        };
        let shipped = if release {
            let packages = assets::packages()?;
            install::build(&packages.iter().take(1).collect::<Vec<_>>())?
        } else {
            checks.clone()
        };
        Ok(Programs { shipped, checks })
    }
}

/// Removes a folder if it is there.
fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
