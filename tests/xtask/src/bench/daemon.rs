//! The daemon's start: from its execution to READY and to the first token, and the memory that it keeps.
//!
//! It is started as a service manager would: with a configuration, and a socket on which it says READY.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::definition::Definition;

/// Longest wait for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How often a folder is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Starts per round, of which the medians count; one before them warms the page cache.
const STARTS: usize = 5;

/// A folder of our own, removed when dropped.
pub(super) struct Folder(PathBuf);

/// What names of such folders begin with; after it comes the id of the process.
const PREFIX: &str = "andon-bench-";

/// The kind of file system that such folders are on: on one in memory, what is brought to the disk costs nothing.
pub(super) fn scratch() -> Result<String> {
    let mut command = Command::new("stat");
    command.args(["-f", "-c", "%T"]).arg(std::env::temp_dir());
    Ok(crate::shell::output(&mut command)?.trim().to_owned())
}

/// Removes folders of processes that were ended before they could.
fn clear_away() {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let id = id.and_then(|id| id.parse::<u32>().ok());
        if id.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            // Another's is left to it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Folder {
    pub(super) fn make() -> Result<Folder> {
        clear_away();
        let place = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(Folder(place))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A folder in it.
    pub(super) fn sub(&self, name: &str) -> Result<PathBuf> {
        let place = self.0.join(name);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(place)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind is a few small files in the folder for such.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A daemon, ended when dropped.
pub(super) struct Daemon {
    child: Child,
    started: Instant,
    notify: UnixDatagram,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the daemon several times, without a pack of the weights and, if `packed`, with one.
///
/// # Errors
/// When it does not start or does not answer.
pub(super) fn start(programs: &Path, definition: &Definition, model: &Path) -> Result<Value> {
    let folder = Folder::make()?;
    let mut figures = json!({});
    for (pack, prefix) in [("never", "raw"), ("idle", "packed")] {
        configure(&folder.0, definition, model, pack, toml::Table::new())?;
        if pack == "idle" {
            let mut daemon = launch_timed(programs, &folder.0)?;
            daemon.wait_ready(&folder.0)?;
            wait_for_pack(&folder.0.join("cache"))?;
        }
        let mut all: [Vec<f64>; 3] = Default::default();
        for round in 0..=STARTS {
            let one = one_start(programs, &folder.0, definition, model)?;
            if round > 0 {
                all.iter_mut()
                    .zip(one)
                    .for_each(|(values, value)| values.push(value));
            }
        }
        for (name, values) in ["ready-ms", "first-token-ms", "resident-ratio"]
            .iter()
            .zip(&all)
        {
            let value = super::median(values);
            figures[format!("{prefix}-{name}")] = json!(value);
            // The bar holds for the slower of both.
            let worst = figures[*name].as_f64().unwrap_or(0.0).max(value);
            figures[*name] = json!(worst);
        }
    }
    Ok(figures)
}

/// Writes the configuration: what every daemon here is told, laid over `config`.
pub(super) fn configure(
    folder: &Path,
    definition: &Definition,
    model: &Path,
    pack: &str,
    mut config: toml::Table,
) -> Result<()> {
    let at = |name: &str| toml::Value::from(folder.join(name).display().to_string());
    let entries = [
        ("gateway", "name", toml::Value::from("bench")),
        ("model", "path", model.display().to_string().into()),
        ("models", "dir", at("models")),
        ("spool", "dir", at("spool")),
        ("cache", "dir", at("cache")),
        ("cache", "pack", pack.into()),
        ("http", "socket", at("http.sock")),
        ("wire", "socket", at("wire.sock")),
        (
            "engine",
            "threads",
            i64::try_from(definition.threads)?.into(),
        ),
    ];
    for (section, key, value) in entries {
        let section = config
            .entry(section)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let Some(table) = section.as_table_mut() {
            table.insert(key.to_owned(), value);
        }
    }
    let path = folder.join("andond.toml");
    fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

/// Starts andond, which does not outlive us.
pub(super) fn launch(programs: &Path, folder: &Path) -> Result<Daemon> {
    spawn(crate::shell::mortal(programs.join("andond")), folder)
}

/// Starts andond by itself: what kills it with us is a program too, whose time would be taken for andond's.
fn launch_timed(programs: &Path, folder: &Path) -> Result<Daemon> {
    spawn(Command::new(programs.join("andond")), folder)
}

fn spawn(mut command: Command, folder: &Path) -> Result<Daemon> {
    let socket = folder.join("notify");
    if socket.exists() {
        fs::remove_file(&socket)?;
    }
    let notify = UnixDatagram::bind(&socket).context("cannot make a socket")?;
    notify.set_read_timeout(Some(LOOK))?;
    let log = fs::File::create(folder.join("log"))?;
    command.arg("--config").arg(folder.join("andond.toml"));
    command
        .env("NOTIFY_SOCKET", &socket)
        .env_remove("JOURNAL_STREAM");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let started = Instant::now();
    let child = command.spawn().context("cannot run andond")?;
    Ok(Daemon {
        child,
        started,
        notify,
    })
}

impl Daemon {
    /// How long it took to say READY.
    pub(super) fn wait_ready(&mut self, folder: &Path) -> Result<Duration> {
        let mut message = [0; 4096];
        while self.started.elapsed() < PATIENCE {
            if let Ok(bytes) = self.notify.recv(&mut message) {
                let text = String::from_utf8_lossy(message.get(..bytes).unwrap_or_default());
                if text.lines().any(|line| line == "READY=1") {
                    return Ok(self.started.elapsed());
                }
            } else if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                bail!("andond ended with {status}: {}", log.trim());
            }
        }
        bail!("andond is not ready after {} s", PATIENCE.as_secs())
    }

    /// Ends it as a service manager does, and waits until it has ended.
    pub(super) fn terminate(&mut self) -> Result<()> {
        let id = self.child.id().to_string();
        crate::shell::output(Command::new("kill").args(["-TERM", &id]))?;
        self.child.wait()?;
        Ok(())
    }

    /// Bytes that it keeps in memory, mapped files included.
    fn resident_bytes(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let kilobytes: f64 = kilobytes.context("no VmRSS in the status")?.parse()?;
        Ok(kilobytes * 1024.0)
    }
}

/// Milliseconds to READY and to the first token, and memory as a share of the file.
fn one_start(
    programs: &Path,
    folder: &Path,
    definition: &Definition,
    model: &Path,
) -> Result<[f64; 3]> {
    let mut daemon = launch_timed(programs, folder)?;
    let ready = daemon.wait_ready(folder)?;
    // Any tokens but the first few, which are often special.
    let prompt: Vec<usize> = (0..definition.prompt)
        .map(|index| 100 + 7 * index)
        .collect();
    let body = json!({
        "prompt": prompt,
        "max_tokens": 2,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
    });
    first_event(&folder.join("http.sock"), &body.to_string())?;
    let first = daemon.started.elapsed();
    let share = daemon.resident_bytes()? / fs::metadata(model)?.len() as f64;
    Ok([ready.as_secs_f64() * 1e3, first.as_secs_f64() * 1e3, share])
}

/// Asks, and returns when the first event of the stream is there.
fn first_event(socket: &Path, body: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("andond does not listen")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: andon\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    // The head of the answer and a few small events; never more than this is read.
    let mut answer = String::new();
    let mut lines = BufReader::new(stream.take(1 << 20));
    while lines.read_line(&mut answer)? > 0 {
        let last = answer.lines().next_back().unwrap_or_default();
        if last.starts_with("data: {") && !last.contains("\"error\"") {
            return Ok(());
        }
    }
    bail!("andond did not answer with a stream: {}", answer.trim())
}

/// Waits until a pack is in the folder: it gets its name once it is whole.
pub(super) fn wait_for_pack(folder: &Path) -> Result<()> {
    let is_pack = |path: PathBuf| path.extension().is_some_and(|ending| ending == "pack");
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
        if entries.any(|entry| is_pack(entry.path())) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    bail!("andond made no pack in {} s", PATIENCE.as_secs())
}
