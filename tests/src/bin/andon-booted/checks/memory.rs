//! The unit's own accounting of memory, where the kernel keeps to limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::unistd::sync;
use serde_json::{Value, json};

use crate::gateway::{CLIENT, Gateway, PATIENCE, PROMPT, next};
use crate::units::{
    DAEMON, DropIn, journal, number, output, property, systemctl, until, until_active,
};

/// What the unit may have, in bytes; the daemon makes its budget of it.
const LIMIT: u64 = 384 << 20;
/// The same for a real model, whose weights are pages that the unit reads.
const LIMIT_OF_REAL: u64 = 640 << 20;
/// Less than the daemon has in its hands, in bytes.
const TOO_LITTLE: u64 = 4 << 20;
/// Tokens of each of the answers that are made at once.
const TOKENS: u32 = 400;
/// How many are.
const ANSWERS: usize = 8;

/// With a limit on the unit the daemon says what it will take at most, and the kernel never counts more.
pub(crate) fn stays_within_its_budget(gateway: &mut Gateway) -> Result<String> {
    within_its_budget(gateway, LIMIT)
}

/// The same with a real model.
pub(crate) fn stays_within_its_budget_with_a_real_model(gateway: &mut Gateway) -> Result<String> {
    within_its_budget(gateway, LIMIT_OF_REAL)
}

fn within_its_budget(gateway: &Gateway, limit: u64) -> Result<String> {
    DropIn::new(
        DAEMON,
        "memory",
        &format!("[Service]\nMemoryAccounting=yes\nMemoryMax={limit}\n"),
    )?;
    // Pages of files are counted for whoever reads them first: that is to be this run, not the one before.
    systemctl(&["stop", DAEMON])?;
    sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop what files left in memory")?;
    gateway.restart()?;
    let group = group()?;
    let kept = counter(&group, "memory.max")?;
    ensure!(
        kept == limit,
        "the kernel's limit is {kept} and not {limit}: nothing is measured here"
    );
    let loaded = number(DAEMON, "MemoryCurrent")?;
    ensure!(loaded > 0, "the unit's memory is not counted");
    thread::scope(|scope| {
        let asked: Vec<_> = (0..ANSWERS)
            .map(|_| scope.spawn(|| gateway.ask(TOKENS)))
            .collect();
        asked
            .into_iter()
            .try_for_each(|answer| answer.join().expect("asking does not panic").map(drop))
    })?;
    let current = number(DAEMON, "MemoryCurrent")?;
    let peak = counter(&group, "memory.peak")?;
    let status: Value = serde_json::from_str(&output("andonctl", &["status", "--json"])?)?;
    let stated = |name: &str| {
        status["memory"][name]
            .as_u64()
            .with_context(|| format!("no {name} in {status}"))
    };
    let (budget, promised) = (stated("budget_bytes")?, stated("promised_bytes")?);
    ensure!(
        promised <= budget && budget < limit,
        "{promised} bytes promised of a budget of {budget}, for a unit that may have {limit}"
    );
    ensure!(
        peak <= promised,
        "{peak} bytes at most, {promised} promised"
    );
    let events = fs::read_to_string(group.join("memory.events"))?;
    ensure!(
        events.lines().any(|line| line == "oom_kill 0"),
        "killed for want of memory: {events}"
    );
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1_048_576.0);
    Ok(format!(
        "MiB: limit {}, budget {}, promised {}; counted {} when loaded, {} after {ANSWERS} answers at once, {} at most",
        mib(limit),
        mib(budget),
        mib(promised),
        mib(loaded),
        mib(current),
        mib(peak)
    ))
}

/// A limit below what is in use ends the daemon; it is started anew, and what it had accepted is answered.
pub(crate) fn is_restarted_for_want_of_memory(gateway: &mut Gateway) -> Result<String> {
    let before = number(DAEMON, "NRestarts")?;
    let expected = gateway.ask(TOKENS)?;
    let asked = json!({ "id": "oom", "prompt": PROMPT, "tokens_max": TOKENS, "temperature": 0, "stream": true });
    let first = gateway
        .ask_over_mqtt(CLIENT, &asked, 20)?
        .context("no answer begins")?;
    ensure!(
        first["type"] == "chunk",
        "no time to take memory away: {first}"
    );
    let watcher = gateway.listen()?;
    let began = Instant::now();
    limit(TOO_LITTLE)?;
    until("the daemon is killed for want of memory", PATIENCE, || {
        Ok(property(DAEMON, "Result")? == "oom-kill")
    })?;
    // Before it is started anew, which it is after RestartSec.
    limit(LIMIT)?;
    until("systemd counts a restart", PATIENCE, || {
        Ok(number(DAEMON, "NRestarts")? > before)
    })?;
    until_active(DAEMON, PATIENCE)?;
    let back = began.elapsed();
    let said = journal(&["--unit", DAEMON])?;
    ensure!(
        said.contains("Failed with result 'oom-kill'"),
        "systemd gives another reason:\n{said}"
    );
    let answer = next(&watcher, |seen| {
        seen.json().is_ok_and(|message| message["type"] != "chunk")
    })?
    .json()?;
    ensure!(
        answer["answer"] == expected.as_str() && answer["attempt"] == 2,
        "{answer}"
    );
    Ok(format!(
        "serving again after {} ms; {CLIENT} got the answer of attempt 2",
        back.as_millis()
    ))
}

fn limit(bytes: u64) -> Result<()> {
    systemctl(&[
        "set-property",
        "--runtime",
        DAEMON,
        &format!("MemoryMax={bytes}"),
    ])
    .map(drop)
}

/// The folder of the unit's control group.
fn group() -> Result<PathBuf> {
    let group = property(DAEMON, "ControlGroup")?;
    Ok(Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/')))
}

fn counter(group: &Path, name: &str) -> Result<u64> {
    let path = group.join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| format!("{} is {text:?}", path.display()))
}
