//! What is asked of systemd, by its own programs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::succeed;
use anyhow::{Context, Result, bail};

/// The daemon's unit.
pub(crate) const DAEMON: &str = "andond.service";
/// Its sockets.
pub(crate) const SOCKETS: &str = "andond.socket";
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let done = succeed(Command::new(program).args(arguments))?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// `systemctl` with these arguments.
pub(crate) fn systemctl(arguments: &[&str]) -> Result<String> {
    output("systemctl", arguments)
}

/// A property of a unit, such as `ActiveState`.
pub(crate) fn property(unit: &str, name: &str) -> Result<String> {
    let said = systemctl(&["show", "--value", "--property", name, unit])?;
    Ok(said.trim().to_owned())
}

/// A property that is a number.
pub(crate) fn number(unit: &str, name: &str) -> Result<u64> {
    let said = property(unit, name)?;
    said.parse()
        .with_context(|| format!("{name} of {unit} is {said:?}"))
}

/// Waits until something holds.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let began = Instant::now();
    while !holds()? {
        if began.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(began.elapsed())
}

/// Waits until a unit is active again.
pub(crate) fn until_active(unit: &str, limit: Duration) -> Result<Duration> {
    until(&format!("{unit} is active"), limit, || {
        Ok(property(unit, "ActiveState")? == "active")
    })
}

/// A drop-in that holds until it is dropped, or the machine loses its power.
pub(crate) struct DropIn {
    path: PathBuf,
}

impl DropIn {
    /// Lays `text` over a unit.
    pub(crate) fn new(unit: &str, name: &str, text: &str) -> Result<DropIn> {
        let folder = PathBuf::from(format!("/run/systemd/system/{unit}.d"));
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{name}.conf"));
        fs::write(&path, text)?;
        systemctl(&["daemon-reload"])?;
        Ok(DropIn { path })
    }

    /// Takes it away again.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_file(&self.path)?;
        systemctl(&["daemon-reload"]).map(drop)
    }
}

/// What the journal has of this boot, by `journalctl` with these arguments.
pub(crate) fn journal(arguments: &[&str]) -> Result<String> {
    let mut all = vec!["--boot", "--no-pager"];
    all.extend_from_slice(arguments);
    output("journalctl", &all)
}

/// Waits until the daemon has said `words` since it was last started.
pub(crate) fn until_journal(words: &str, limit: Duration) -> Result<()> {
    let invocation = property(DAEMON, "InvocationID")?;
    let field = format!("_SYSTEMD_INVOCATION_ID={invocation}");
    until(&format!("the journal says {words:?}"), limit, || {
        Ok(journal(&["--output", "cat", &field])?.contains(words))
    })
    .map(drop)
}
