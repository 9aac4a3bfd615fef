//! The real systemd-journald, alone, in a mount namespace of its own: no PID 1 that is systemd is needed.
//!
//! `/run` there is empty but for the journal, which is in memory, and `/var/lib/systemd/catalog` holds what
//! `journalctl --update-catalog` makes of the catalog that is given. What runs in it logs to it.

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

const JOURNALD: &str = "/lib/systemd/systemd-journald";
/// More than journald needs on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Sets the namespace up; `$1` is the catalog.
const SETUP: &str = r#"
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/journal /run/catalog /run/catalog-database
printf '[Journal]\nStorage=volatile\nForwardToSyslog=no\nForwardToConsole=no\nRateLimitBurst=0\n' > /run/journald.conf
mount --bind /run/journald.conf /etc/systemd/journald.conf
cp "$1" /run/catalog/andon.catalog
mount --bind /run/catalog /usr/lib/systemd/catalog
mount --bind /run/catalog-database /var/lib/systemd/catalog
journalctl --update-catalog
echo ready
exec /lib/systemd/systemd-journald
"#;

/// A journald, ended when it is dropped.
#[derive(Debug)]
pub struct Journald {
    child: Child,
}

impl Journald {
    /// Starts it with a catalog. `None`, with the reason on standard error, where that cannot be done: without root, or
    /// without systemd's programs.
    ///
    /// # Panics
    /// When it should be possible and fails.
    #[must_use]
    pub fn start(catalog: &Path) -> Option<Journald> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: mount namespaces take root");
            return None;
        }
        if !Path::new(JOURNALD).exists() || !Path::new("/etc/systemd/journald.conf").exists() {
            eprintln!("skipped: systemd is not installed");
            return None;
        }
        let tried = Command::new("unshare").args(["-m", "true"]).output();
        if !tried.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: there are no mount namespaces here");
            return None;
        }
        Some(Journald::run(catalog).expect("journald runs"))
    }

    fn run(catalog: &Path) -> io::Result<Journald> {
        // What is mounted on has to be there.
        for folder in ["/usr/lib/systemd/catalog", "/var/lib/systemd/catalog"] {
            fs::create_dir_all(folder)?;
        }
        let mut child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", SETUP, "sh"])
            .arg(catalog)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()?;
        let stdout = child.stdout.take().ok_or(ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let journald = Journald { child };
        if line.trim() != "ready" {
            return Err(io::Error::other(format!("no namespace: {line:?}")));
        }
        let start = Instant::now();
        let is_there = || {
            let mut test = journald.command("test");
            test.args(["-S", "/run/systemd/journal/socket"]).status()
        };
        while !is_there()?.success() {
            if start.elapsed() > START_TIMEOUT {
                return Err(ErrorKind::TimedOut.into());
            }
            thread::sleep(POLL);
        }
        Ok(journald)
    }

    /// The words that have a program run where this journald is, and log to it.
    #[must_use]
    pub fn before(&self) -> Vec<String> {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.child.id());
        ["nsenter", &namespace, "env", "JOURNAL_STREAM=1:1"]
            .map(str::to_owned)
            .to_vec()
    }

    /// A program where this journald is.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let before = self.before();
        let mut command = Command::new(&before[0]);
        command.args(&before[1..]).arg(program);
        command
    }

    /// What `journalctl` says, asked with these arguments.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn journalctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command("journalctl");
        command.args(["-D", "/run/log/journal", "--no-pager", "-q"]);
        let output = command.args(arguments).output().expect("journalctl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The entries that match, with all their fields, once there are `count` of them.
    ///
    /// # Panics
    /// When that takes longer than 30 seconds.
    #[must_use]
    pub fn entries(&self, matches: &[&str], count: usize) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let mut arguments = vec!["-o", "json", "--all"];
            arguments.extend(matches);
            let text = self.journalctl(&arguments);
            let entries: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).expect("an entry"))
                .collect();
            if entries.len() >= count {
                return entries;
            }
            assert!(
                start.elapsed() < START_TIMEOUT,
                "{} of {count} entries of {matches:?}",
                entries.len()
            );
            thread::sleep(POLL);
        }
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended already.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        drop(self.child.wait());
    }
}
