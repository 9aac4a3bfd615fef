//! Whether the sandbox denies: the probe, as the program of a copy of the daemon's unit, tries what somebody would try who has
//! taken over the daemon.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::gateway::Gateway;
use crate::units::{DAEMON, journal, output, systemctl};

/// The program that tries.
const PROBE: &str = "/usr/libexec/andon-probe";
/// What it is told of the daemon's folders.
const OWN: &str = "--unit --own /var/lib/andon/spool --outside /run/systemd/journal";
/// Lines of the unit, and an attempt that nothing else of the unit refuses.
const HELD: [(&str, &str); 9] = [
    ("ReadOnlyPaths", "write to /run"),
    ("InaccessiblePaths", "write to /tmp"),
    ("NoExecPaths", "map a file of its own as code"),
    ("MemoryDenyWriteExecute", "make written memory executable"),
    ("LockPersonality", "have readable memory be executable"),
    ("RestrictNamespaces", "get users of its own"),
    ("RestrictAddressFamilies", "open a netlink socket"),
    ("SystemCallFilter", "trace another process"),
    ("ProtectProc", "see other processes"),
];
/// Attempts that have to be let through without a sandbox; there are many more.
const THROUGH_MIN: usize = 10;

/// The daemon says that both parts of its own sandbox are in force under its unit.
pub(crate) fn is_in_force(_: &mut Gateway) -> Result<String> {
    let status: Value = serde_json::from_str(&output("andonctl", &["status", "--json"])?)?;
    let sandbox = &status["sandbox"];
    for part in ["landlock", "seccomp"] {
        ensure!(
            sandbox[part]["on"] == true,
            "{part} is not in force: {sandbox}"
        );
    }
    Ok(format!(
        "landlock of level {}",
        sandbox["landlock"]["level"]
    ))
}

/// Every attempt is refused under the daemon's unit and its own sandbox, and many are let through without.
pub(crate) fn denies(_: &mut Gateway) -> Result<String> {
    let unit = fs::read_to_string(format!("/usr/lib/systemd/system/{DAEMON}"))?;
    let start = format!("{PROBE} {OWN} --config /etc/andon/andond.toml");
    let said = run("andon-probe.service", &copy(&unit, &start))?;
    let total = counted(&said)?;
    ensure!(
        total.0 > 0 && total.1 == 0 && total.2 == 0,
        "the probe got somewhere:\n{said}"
    );
    let bare = format!("[Service]\nType=oneshot\nUser=andon\nExecStart=-{PROBE} {OWN}\n");
    let said = run("andon-probe-bare.service", &bare)?;
    let without = counted(&said)?;
    ensure!(
        without.1 >= THROUGH_MIN,
        "without a sandbox the probe gets nowhere, so it shows nothing:\n{said}"
    );
    Ok(format!(
        "{} attempts refused, without a sandbox {} let through",
        total.0, without.1
    ))
}

/// The unit holds by these lines: without any one of them, and without the daemon's own sandbox, the probe gets where it does
/// not get with all of them.
pub(crate) fn holds_by_its_lines(_: &mut Gateway) -> Result<String> {
    let shipped = fs::read_to_string(format!("/usr/lib/systemd/system/{DAEMON}"))?;
    let start = format!("{PROBE} {OWN}");
    let whole = through(&run("andon-probe-unit.service", &copy(&shipped, &start))?)?;
    for (key, attempt) in HELD {
        ensure!(
            !whole.iter().any(|found| found == attempt),
            "the unit alone lets through: {attempt}"
        );
        let others = |line: &&str| line.split('=').next() != Some(key);
        let weakened: Vec<&str> = shipped.lines().filter(others).collect();
        ensure!(
            weakened.len() < shipped.lines().count(),
            "the unit has no {key}="
        );
        let name = format!("andon-probe-without-{key}.service");
        let found = through(&run(&name, &copy(&weakened.join("\n"), &start))?)?;
        ensure!(
            found.iter().any(|found| found == attempt),
            "without {key}= the probe does not get further, so it does not show what the line does: {found:?}"
        );
    }
    Ok(format!(
        "each of {} lets an attempt through where it is missing",
        HELD.len()
    ))
}

/// The attempts that were let through.
fn through(said: &str) -> Result<Vec<String>> {
    counted(said)?;
    let lines = said
        .lines()
        .filter_map(|line| line.strip_prefix("LET THROUGH "));
    Ok(lines.map(str::to_owned).collect())
}

/// The unit with another program, which ends.
fn copy(unit: &str, start: &str) -> String {
    let mut text = String::new();
    for line in unit.lines() {
        let key = line.split('=').next().unwrap_or_default();
        match key {
            "Type" => text.push_str("Type=oneshot"),
            // Failures are told by what the probe says.
            "ExecStart" => text.push_str(&format!("ExecStart=-{start}")),
            "Restart"
            | "RestartSec"
            | "RestartPreventExitStatus"
            | "WatchdogSec"
            | "NotifyAccess"
            | "Wants"
            | "After"
            | "WantedBy"
            | "Also" => continue,
            _ => text.push_str(&line.replace("/usr/bin/andond", PROBE)),
        }
        text.push('\n');
    }
    text
}

/// Starts a unit, waits for its end, and returns what it said.
fn run(name: &str, text: &str) -> Result<String> {
    fs::write(format!("/run/systemd/system/{name}"), text)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["start", name])?;
    // Its last words may still be on their way.
    output("journalctl", &["--sync"])?;
    journal(&["--unit", name, "--output", "cat"])
}

/// How many attempts the probe made, how many were let through, and how many could not be made.
fn counted(said: &str) -> Result<(usize, usize, usize)> {
    let line = said
        .lines()
        .find(|line| line.contains(" attempts, "))
        .with_context(|| format!("the probe does not count:\n{said}"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    let mut next = || numbers.next().with_context(|| line.to_owned());
    Ok((next()?, next()?, next()?))
}
