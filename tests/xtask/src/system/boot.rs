//! A root booted by systemd-nspawn, and deprived of its power.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Programs;
use super::root::Base;
use crate::{assets, install, shell};

/// Longest a boot with its checks may take.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// Longest that what ran in there takes to end with its power.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How often the host looks whether the power is to be cut.
const LOOK: Duration = Duration::from_millis(5);

/// Makes room for nspawn's own files, then becomes nspawn. What runs in there ends with the first process of its
/// name space, all at once.
const ALONE: [&str; 11] = [
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=SIGKILL",
    "--mount-proc",
    "--",
    "sh",
    "-c",
    "mount -t tmpfs -o mode=755 tmpfs /run && exec systemd-nspawn \"$@\"",
];
/// Landlock is among the calls that nspawn lets nobody make unless told.
const CALLS: &str =
    "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self";

/// The unit that makes the checks. The machine stops with it.
const CHECKS: &str = "[Unit]\nDescription=Checks of a booted root\nAfter=multi-user.target\n\
    SuccessAction=exit-force\nFailureAction=exit-force\n\
    [Service]\nType=oneshot\nTimeoutStartSec=140\nStandardOutput=journal+console\nStandardError=journal+console\n\
    ExecStart=/usr/libexec/andon-booted\n";

/// With one, a boot is not the first: a first boot would enable every unit by itself.
const MACHINE_ID: &str = "5f0c3a7e9b2d4168a0b1c2d3e4f50617\n";

/// What an installer writes and no package brings.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 press-3\n";

/// How a boot ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Whatever runs in there stopped it.
    ByItself,
    /// It asked for its power to be cut.
    Cut,
}

/// nspawn, in a name space of its own, before its own arguments.
fn alone() -> Command {
    let mut command = shell::mortal(ALONE[0]);
    command.args(&ALONE[1..]).arg("nspawn");
    command.args([
        "--register=no",
        "--keep-unit",
        "--private-network",
        "--quiet",
        CALLS,
    ]);
    command.stdin(Stdio::null());
    command
}

/// Whether containers can be run at all.
///
/// # Errors
/// What nspawn says if not.
pub(crate) fn can_run(base: &Base) -> Result<()> {
    let mut command = alone();
    command.arg("--directory").arg(base.folder());
    shell::output(command.args(["--read-only", "--pipe", "--", "/bin/true"])).map(drop)
}

/// A root with the checks in it.
pub(crate) struct Machine {
    folder: PathBuf,
}

impl Machine {
    /// Copies the base and installs the checks.
    pub(crate) fn new(base: &Base, folder: &Path, programs: &Programs) -> Result<Machine> {
        super::remove(folder)?;
        fs::create_dir_all(folder)?;
        let machine = Machine {
            folder: folder.to_path_buf(),
        };
        fs::create_dir_all(machine.results())?;
        base.copy(&machine.root())?;
        machine.prepare(&programs.checks)?;
        Ok(machine)
    }

    /// The folder that host and machine both see.
    pub(crate) fn results(&self) -> PathBuf {
        self.folder.join("results")
    }

    /// The root.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn prepare(&self, checks: &Path) -> Result<()> {
        let root = self.root();
        for name in ["andon-booted", "andon-probe"] {
            let mut place = Command::new("install");
            place.args(["-D", "-m", "755"]).arg(checks.join(name));
            shell::run(place.arg(root.join("usr/libexec").join(name)))?;
        }
        fs::write(root.join("etc/machine-id"), MACHINE_ID)?;
        fs::write(root.join("etc/hosts"), HOSTS)?;
        let units = root.join("etc/systemd/system");
        fs::write(units.join("andon-booted.service"), CHECKS)?;
        let wanted = units.join("multi-user.target.wants");
        // The broker is started when it is configured.
        fs::remove_file(wanted.join("mosquitto.service"))?;
        symlink(
            "../andon-booted.service",
            wanted.join("andon-booted.service"),
        )?;
        Ok(())
    }

    /// Installs andon as `cargo xtask install` does.
    pub(crate) fn install(&self, programs: &Programs) -> Result<()> {
        let root = self.root();
        for package in assets::packages()? {
            if package.name == "andon" {
                install::install(&package, &root, &programs.shipped)?;
            }
        }
        // What it says is left to do; users and folders are made by the boot.
        let mut preset = Command::new("systemctl");
        preset.arg(format!("--root={}", root.display()));
        shell::run(preset.args(["preset", "andond.socket", "andond.service"]))
    }

    /// Leaves a model for the checks.
    pub(crate) fn bring(&self, model: &Path) -> Result<()> {
        let to = self.root().join("usr/libexec/andon-booted.gguf");
        fs::copy(model, &to).with_context(|| format!("cannot copy {}", model.display()))?;
        Ok(())
    }

    /// Boots it by nspawn, and does what [`Machine::watch`] says.
    pub(crate) fn boot(&self, phase: &str) -> Result<Ended> {
        let mut command = alone();
        command.arg("--directory").arg(self.root());
        command.arg(format!("--bind={}:/results", self.results().display()));
        command.args(["--boot", "--console=pipe"]);
        self.watch(command, phase)
    }

    /// Runs what boots it in a phase and waits for its end, or for the machine to ask for its power to be cut, and cuts it.
    pub(crate) fn watch(&self, mut command: Command, phase: &str) -> Result<Ended> {
        let results = self.results();
        fs::write(results.join("phase"), phase)?;
        let cut = results.join("cut");
        if cut.exists() {
            fs::remove_file(&cut)?;
        }
        let console = File::create(results.join(format!("console-{phase}.txt")))?;
        println!("  $ {}", shell::line(&command));
        let mut machine = command
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("cannot run systemd-nspawn")?;
        let began = Instant::now();
        loop {
            if machine.try_wait()?.is_some() {
                return Ok(Ended::ByItself);
            }
            if cut.exists() {
                end(&mut machine)?;
                return Ok(Ended::Cut);
            }
            if began.elapsed() > BOOT_LIMIT {
                end(&mut machine)?;
                bail!(
                    "the phase {phase} was not over after {} s; see {}",
                    BOOT_LIMIT.as_secs(),
                    results.display()
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// Removes everything of it.
    pub(crate) fn remove(self) -> Result<()> {
        super::remove(&self.folder)
    }
}

/// Kills what boots a machine, and waits until nothing of it is left: the root is somebody's as long as anything is.
fn end(machine: &mut Child) -> Result<()> {
    let id = machine.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))
        .context("cannot tell what the machine runs in")?;
    machine.kill()?;
    machine.wait()?;
    let began = Instant::now();
    while children.split_whitespace().any(is_alive) {
        if began.elapsed() > END_LIMIT {
            bail!("the machine outlives its power: processes {children}");
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Whether there is a process of this number that has not ended: the first of a name space ends after all others in it.
fn is_alive(id: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // Behind the program's name, which may hold anything.
    let state = status.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}
