//! The life of the Debian package on a system that runs: installed, upgraded, removed, installed again, purged.
//!
//! Invariant: what is looked for after purging is every path with the project's name, so that what nobody thought of is found.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use andond::telemetry::Event;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::install;
use crate::gateway::{CONFIG, Gateway, HTTP_SOCKET, MODEL, WIRE_SOCKET, request, user_id};
use crate::units::{DAEMON, SOCKETS, journal, number, output, property, systemctl};

/// The package, where the host left it.
const PACKAGE: &str = "/results/andon.deb";
/// Its name.
const NAME: &str = "andon";
/// The version that it is upgraded to.
const NEWER: &str = "99.0-1";
/// What that one's configuration says which the one before does not.
const NEWS: &str = "# Said by a later version.\n";
/// Tokens of an answer that is being made while the package changes.
const LONG: u32 = 1200;
/// What a client is told that was taken on when the daemon was told to stop.
const STOPPING: &str = "the daemon is stopping";
/// How often somebody asks meanwhile.
const BETWEEN: Duration = Duration::from_millis(20);
/// Documents are installed though the root leaves them out: what operators copy is among them.
const DOCUMENTS: &str = "--path-include=/usr/share/doc/andon/*";

/// One installation is all it takes: user, folders, sockets, catalog; nothing runs until somebody asks.
pub(crate) fn is_installed(gateway: &mut Gateway) -> Result<String> {
    let before = paths()?;
    ensure!(before.is_empty(), "there before the package: {before:?}");
    dpkg(&["--install", PACKAGE])?;
    install::is_complete(gateway)?;
    let running = property(DAEMON, "ActiveState")?;
    ensure!(running == "inactive", "{DAEMON} is {running}, unasked");
    let enabled = systemctl(&["is-enabled", SOCKETS])?;
    ensure!(enabled.trim() == "enabled", "{SOCKETS} is {enabled}");

    // What its administrator does.
    gateway.install_model()?;
    gateway.configure_model(MODEL, "tiny")?;
    systemctl(&["enable", DAEMON])?;
    let answer = gateway.ask(8)?;
    ensure!(!answer.is_empty(), "an empty answer");
    output("journalctl", &["--sync"])?;
    let ready = format!("MESSAGE_ID={}", Event::Ready.id());
    let explained = journal(&["--catalog", &ready])?;
    ensure!(
        explained.contains("andond answers requests with tiny"),
        "the catalog explains nothing:\n{explained}"
    );
    version()
}

/// An upgrade leaves the configuration alone, answers what is in flight, has others wait meanwhile, and runs the new version.
pub(crate) fn is_upgraded(gateway: &mut Gateway) -> Result<String> {
    let before = version()?;
    let newer = newer_package()?;
    let mine = fs::read(CONFIG)?;
    let process = number(DAEMON, "MainPID")?;
    let asked = with_an_answer_in_flight(gateway, || {
        dpkg(&["--install", "--force-confdef", "--force-confold", &newer])
    })?;
    let after = version()?;
    ensure!(
        after == NEWER && before != NEWER,
        "version {before} and then {after}"
    );
    ensure!(
        fs::read(CONFIG)? == mine,
        "the upgrade changed the administrator's configuration"
    );
    let beside = fs::read_to_string(format!("{CONFIG}.dpkg-dist"))
        .context("the new version's configuration is not laid beside")?;
    ensure!(beside.ends_with(NEWS), "the former one is laid beside");
    ensure!(
        number(DAEMON, "MainPID")? != process,
        "the former version runs on"
    );
    for (unit, state) in [(DAEMON, "enabled"), (SOCKETS, "enabled")] {
        let (active, enabled) = (
            property(unit, "ActiveState")?,
            property(unit, "UnitFileState")?,
        );
        ensure!(
            active == "active" && enabled == state,
            "{unit} is {active} and {enabled}"
        );
    }
    Ok(format!("{before} to {after}; {asked} answered meanwhile"))
}

/// Removal answers what is in flight and stops; models, requests and the configuration stay.
pub(crate) fn is_removed(gateway: &mut Gateway) -> Result<String> {
    let mine = fs::read(CONFIG)?;
    let stream = Flight::begin(gateway)?;
    let invocation = property(DAEMON, "InvocationID")?;
    dpkg(&["--remove", NAME])?;
    stream.ends_well()?;
    output("journalctl", &["--sync"])?;
    let said = journal(&["--output", "cat", &format!("INVOCATION_ID={invocation}")])?;
    ensure!(
        said.contains(&format!("{DAEMON}: Deactivated successfully")) && !said.contains("Failed"),
        "the service did not stop cleanly:\n{said}"
    );
    for socket in [HTTP_SOCKET, WIRE_SOCKET] {
        ensure!(
            UnixStream::connect(socket).is_err(),
            "somebody listens at {socket}"
        );
    }
    for unit in [DAEMON, SOCKETS] {
        let state = property(unit, "ActiveState")?;
        ensure!(state == "inactive", "{unit} is {state}");
    }
    for path in [
        "/usr/bin/andond",
        "/usr/bin/andonctl",
        "/usr/lib/systemd/system/andond.service",
        "/var/cache/andon",
    ] {
        ensure!(!fs::exists(path)?, "{path} is left");
    }
    ensure!(
        fs::read(CONFIG)? == mine && fs::exists(MODEL)?,
        "the administrator's configuration or the model is gone"
    );
    let failed = systemctl(&["--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty(), "units have failed: {failed}");
    Ok("in flight: answered; service: deactivated successfully".to_owned())
}

/// Installed again it goes on where it was: with its configuration, its model, and its sockets on.
pub(crate) fn is_installed_again(gateway: &mut Gateway) -> Result<String> {
    let mine = fs::read(CONFIG)?;
    dpkg(&["--install", "--force-confdef", "--force-confold", PACKAGE])?;
    ensure!(fs::read(CONFIG)? == mine, "another configuration");
    install::is_complete(gateway)?;
    gateway.ask(8)
}

/// Purging leaves the user and the journal, and nothing else.
pub(crate) fn is_purged(_: &mut Gateway) -> Result<String> {
    let kept = Path::new("/etc/andon/credentials/http.token");
    fs::write(kept, "a secret of the service")?;
    ensure!(
        paths()?.len() > 10,
        "the paths of the package are not found, so nothing is shown"
    );
    dpkg(&["--purge", NAME])?;
    let left = paths()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    let state = property(SOCKETS, "LoadState")?;
    ensure!(state == "not-found", "{SOCKETS} is {state}");
    user_id("andon")
        .context("the user went with the package, and its number may be given to somebody else")?;
    Ok("the user andon stays".to_owned())
}

/// An answer that is being made.
struct Flight {
    stream: thread::JoinHandle<Result<String>>,
}

impl Flight {
    /// Asks, and returns when the answer has begun.
    fn begin(gateway: &Gateway) -> Result<Flight> {
        let mut asked = request(LONG);
        asked["stream"] = Value::Bool(true);
        let mut events = gateway.http().events("/v1/completions", &asked)?;
        events.next().context("no answer begins")??;
        let stream = thread::spawn(move || Ok(events.rest()?));
        Ok(Flight { stream })
    }

    /// Whether it still is.
    fn is_going_on(&self) -> bool {
        !self.stream.is_finished()
    }

    /// Waits for its end, which has to be a whole answer's.
    fn ends_well(self) -> Result<()> {
        let text = self
            .stream
            .join()
            .expect("reading does not panic")
            .context("the answer breaks off")?;
        let whole = text.contains("\"finish_reason\":\"length\"") && text.contains("[DONE]");
        let last: Vec<&str> = text.lines().rev().take(6).collect();
        ensure!(whole, "the answer in flight ends otherwise: {last:?}");
        Ok(())
    }
}

/// Does something while an answer is being made and others ask; how many were answered.
fn with_an_answer_in_flight(gateway: &Gateway, run: impl FnOnce() -> Result<()>) -> Result<usize> {
    let flight = Flight::begin(gateway)?;
    let mut asked = 0;
    thread::scope(|scope| {
        let (end, ended) = channel::<()>();
        let others = scope.spawn(move || -> Result<usize> {
            let (mut answered, mut told) = (0, 0);
            loop {
                match gateway.ask(2) {
                    Ok(_) => answered += 1,
                    // Whoever was taken on just before is told to come again, once at most.
                    Err(error) if told == 0 && error.to_string().contains(STOPPING) => told += 1,
                    Err(error) => {
                        return Err(error.context(format!("turned away after {answered} answers")));
                    }
                }
                if ended.recv_timeout(BETWEEN) != Err(RecvTimeoutError::Timeout) {
                    return Ok(answered);
                }
            }
        });
        ensure!(flight.is_going_on(), "the answer ended too early");
        let done = run();
        drop(end);
        asked = others.join().expect("asking does not panic")?;
        done?;
        flight.ends_well()
    })?;
    Ok(asked)
}

/// The same package under a higher version, with more to say in its configuration.
fn newer_package() -> Result<String> {
    let (folder, file) = ("/tmp/newer", "/tmp/newer.deb");
    output("dpkg-deb", &["--raw-extract", PACKAGE, folder])?;
    let control = Path::new(folder).join("DEBIAN/control");
    let lines: Vec<String> = fs::read_to_string(&control)?
        .lines()
        .map(|line| match line.strip_prefix("Version: ") {
            Some(_) => format!("Version: {NEWER}"),
            None => line.to_owned(),
        })
        .collect();
    fs::write(&control, lines.join("\n") + "\n")?;
    let config = Path::new(folder).join("etc/andon/andond.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text + NEWS)?;
    output("dpkg-deb", &["--build", "-Znone", folder, file])?;
    fs::remove_dir_all(folder)?;
    Ok(file.to_owned())
}

fn dpkg(arguments: &[&str]) -> Result<()> {
    let mut all = vec![DOCUMENTS];
    all.extend_from_slice(arguments);
    output("dpkg", &all).map(drop)
}

fn version() -> Result<String> {
    output("dpkg-query", &["--show", "--showformat=${Version}", NAME])
}

/// Every path with the project's name but those of these checks, of the journal, and of what dpkg keeps as its own history.
fn paths() -> Result<Vec<String>> {
    let mut arguments = vec!["/", "-xdev"];
    for folder in [
        "/proc",
        "/sys",
        "/results",
        "/tmp",
        "/var/log",
        "/usr/share/dpkg",
    ] {
        arguments.extend(["-path", folder, "-prune", "-o"]);
    }
    arguments.extend(["-name", "*andon*", "-print"]);
    let mut found = output("find", &arguments)?;
    for folder in ["/run", "/dev/shm"] {
        found += &output("find", &[folder, "-xdev", "-name", "*andon*"])?;
    }
    let own = |path: &&str| !path.contains("andon-booted") && !path.contains("andon-probe");
    let words = |path: &&str| !path.contains("abandon");
    Ok(found
        .lines()
        .filter(own)
        .filter(words)
        .map(str::to_owned)
        .collect())
}
