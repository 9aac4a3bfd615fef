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
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use crate::stages::Outcome;
use crate::{packages, shell};

use self::boot::{Ended, Machine};
use self::report::Counts;

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

/// Installs, boots, cuts the power, boots again, and counts what was found.
pub(crate) fn check(making: Making) -> Result<Outcome> {
    let base = match making.wait() {
        Ok(base) => base,
        Err(error) => return Ok(Outcome::Skipped(format!("no root to boot: {error:#}"))),
    };
    if let Err(error) = boot::can_run(&base) {
        return Ok(Outcome::Skipped(format!(
            "systemd-nspawn cannot run here: {error:#}"
        )));
    }
    let programs = programs()?;
    let folder = shell::target_directory().join("system");
    let machine = Machine::new(&base, &folder, &programs)?;
    let counts = two_boots(&machine, "first", |phase| machine.boot(phase))?;
    machine.remove().context("cannot remove the root")?;
    Ok(Outcome::Passed(counts.to_string()))
}

/// The same by user-mode Linux, for what nspawn cannot show: limits of memory, and what a disk has when the power goes.
pub(crate) fn check_memory() -> Result<ExitCode> {
    packages::ensure(&[&packages::BOOTSTRAP, &packages::USER_MODE_LINUX])?;
    let base = root::base()?;
    let programs = programs()?;
    let folder = shell::target_directory().join("system-uml");
    let machine = Machine::new(&base, &folder, &programs)?;
    let disk = uml::Disk::new(&machine, &folder)?;
    let counts = two_boots(&machine, "memory", |phase| disk.boot(phase))?;
    println!("{counts}");
    machine.remove().context("cannot remove the root")?;
    Ok(ExitCode::SUCCESS)
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

/// The folder with the programs, which are built unless the environment names one.
fn programs() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("ANDON_BIN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    // As the tests' stage builds them: another choice would build every dependency once more.
    let build = ["build", "--quiet", "--workspace", "--bins"];
    shell::run(&mut shell::cargo(&build))?;
    Ok(shell::target_directory().join("debug"))
}

/// Removes a folder if it is there.
fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
