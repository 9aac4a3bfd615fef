//! A decode that hangs: the watchdog ends the daemon, and systemd starts it anew.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::gateway::{Gateway, PATIENCE, request};
use crate::units::{DAEMON, DropIn, journal, number, property, until, until_active};

/// How long nothing may be heard of the daemon; then it is ended.
const WITHIN: Duration = Duration::from_secs(2);
/// Tokens that take longer than it takes to stop the thread that makes them.
const LONG: u32 = 1500;

/// The thread that decodes is stopped, all others go on: only a watchdog that is fed by progress notices.
pub(crate) fn a_hung_decode_is_ended(gateway: &mut Gateway) -> Result<String> {
    gateway.configure("[gateway]\nstall-ms = 1000\n")?;
    let lowered = DropIn::new(
        DAEMON,
        "watchdog",
        &format!("[Service]\nWatchdogSec={}\n", WITHIN.as_secs()),
    )?;
    gateway.restart()?;
    let before = number(DAEMON, "NRestarts")?;
    let daemon = Pid::from_raw(i32::try_from(number(DAEMON, "MainPID")?)?);
    let mut asked = request(LONG);
    asked["stream"] = Value::Bool(true);
    let mut events = gateway.http().events("/v1/completions", &asked)?;
    events.next().context("no answer begins")??;
    let decoding = decoding_thread(daemon)?;
    ptrace::attach(decoding).context("cannot stop the thread that decodes")?;
    waitpid(decoding, Some(WaitPidFlag::__WALL))?;
    let hung = Instant::now();
    let ended = until("systemd counts a restart", PATIENCE, || {
        // A thread that somebody traces is not gone until they have been told.
        let _ = waitpid(decoding, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        Ok(number(DAEMON, "NRestarts")? > before)
    })?;
    ensure!(
        ended >= WITHIN,
        "ended after {} ms, before the watchdog can have been late",
        ended.as_millis()
    );
    until_active(DAEMON, PATIENCE)?;
    let back = hung.elapsed();
    let said = journal(&["--unit", DAEMON])?;
    ensure!(
        said.contains("Watchdog timeout") && said.contains("Failed with result 'watchdog'"),
        "systemd gives another reason:\n{said}"
    );
    gateway.ask(4)?;
    lowered.remove()?;
    gateway.configure("")?;
    gateway.restart()?;
    // The control: nobody is ended who is only idle, and a healthy daemon has not been ended before.
    let others = said.matches("Watchdog timeout").count();
    ensure!(others == 1, "{others} timeouts for one hung decode");
    ensure!(
        property(DAEMON, "ActiveState")? == "active",
        "{DAEMON} is not active after the watchdog"
    );
    Ok(format!(
        "ended {} ms after it hung, serving again after {} ms",
        ended.as_millis(),
        back.as_millis()
    ))
}

/// The thread of a daemon that decodes.
fn decoding_thread(daemon: Pid) -> Result<Pid> {
    for task in fs::read_dir(format!("/proc/{daemon}/task"))? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "worker\n") {
            let number = path
                .file_name()
                .and_then(|name| name.to_str())
                .context("a thread without a number")?;
            return Ok(Pid::from_raw(number.parse()?));
        }
    }
    anyhow::bail!("no thread of {daemon} decodes")
}
