//! The real `andond` in a folder of its own.
//!
//! A [`Daemon`] has its own configuration, sockets and log, and is killed when it is dropped. Its
//! readiness is what it tells the service manager, on a socket of ours. It listens itself, or on sockets that are passed to
//! it: by `systemd-socket-activate`, or from here as a service manager passes them, again at each start.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::http;
use crate::programs;
use crate::tiny_model::TinyModel;

/// Longest wait for READY; generous, since debug builds start on busy machines.
pub const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// The names of the sockets in the daemon's folder: HTTP, and the compact one.
pub const SOCKETS: [&str; 2] = ["andon.sock", "wire.sock"];

/// Puts the two sockets that it is given as its standard input and output where a service manager puts them, the log in their
/// place, and becomes the program.
const PASS: &str = r#"LISTEN_PID=$$ LISTEN_FDS=2 exec "$@" 3<&0 4<&1 </dev/null >>"$0" 2>&1"#;

/// Who listens on the daemon's sockets.
#[derive(Debug, Default)]
enum Listening {
    /// The daemon.
    #[default]
    Itself,
    /// `systemd-socket-activate`, on these in the daemon's folder, until the first client comes: it then becomes the daemon.
    Activated(Vec<String>),
    /// This process, and the daemon while it runs.
    Held(Option<[UnixListener; 2]>),
}

/// What is decided before a daemon is started.
#[derive(Debug, Default)]
pub struct Builder {
    model: Option<PathBuf>,
    kept: Option<String>,
    programs: Option<PathBuf>,
    before: Vec<String>,
    listening: Listening,
    config: Table,
}

impl Builder {
    /// Serves this file instead of a tiny model.
    #[must_use]
    pub fn model(mut self, path: &Path) -> Builder {
        self.model = Some(path.to_path_buf());
        self
    }

    /// Serves the model that the daemon keeps under this name, once there is one.
    #[must_use]
    pub fn kept(mut self, name: &str) -> Builder {
        self.kept = Some(name.to_owned());
        self
    }

    /// Starts `andond` from this folder instead of the checkout's build.
    #[must_use]
    pub fn programs(mut self, folder: &Path) -> Builder {
        self.programs = Some(folder.to_path_buf());
        self
    }

    /// Puts these words before the program: what runs it where it is to run, and becomes it.
    #[must_use]
    pub fn before(mut self, words: Vec<String>) -> Builder {
        self.before = words;
        self
    }

    /// Has `systemd-socket-activate` listen on the sockets of these names in the daemon's folder and become the daemon once
    /// somebody connects.
    #[must_use]
    pub fn activated(mut self, names: &[&str]) -> Builder {
        let names = names.iter().map(|&name| name.to_owned());
        self.listening = Listening::Activated(names.collect());
        self
    }

    /// Listens on both sockets here, whether the daemon runs or not, and passes them to it as a service manager does.
    #[must_use]
    pub fn held(mut self) -> Builder {
        self.listening = Listening::Held(None);
        self
    }

    /// Lays TOML over the configuration, key by key.
    ///
    /// # Panics
    /// When `text` is not TOML.
    #[must_use]
    pub fn config(mut self, text: &str) -> Builder {
        let table = text
            .parse::<Table>()
            .unwrap_or_else(|error| panic!("{error}\n{text}"));
        merge(&mut self.config, table);
        self
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends before it is ready (the error has its log), or takes longer than
    /// [`READY_TIMEOUT`].
    pub fn start(self) -> io::Result<Daemon> {
        let mut daemon = self.spawn()?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> io::Result<Daemon> {
        let folder = tempfile::Builder::new().prefix("andon-").tempdir()?;
        let at = |name: &str| Value::String(folder.path().join(name).display().to_string());
        let (key, model) = if let Some(name) = &self.kept {
            ("name", name.clone())
        } else if let Some(path) = &self.model {
            ("path", path.display().to_string())
        } else {
            let path = folder.path().join("tiny.gguf");
            TinyModel::default().write(&path)?;
            ("path", path.display().to_string())
        };
        // What the kernel tells of a process that leaves no core dump is for root alone, and tests look at it.
        let looked_into = Value::Boolean(!geteuid().is_root());
        let mut config = Table::new();
        for (section, key, value) in [
            ("gateway", "name", Value::String("test".to_owned())),
            ("gateway", "core-dumps", looked_into),
            ("model", key, Value::String(model)),
            ("models", "dir", at("models")),
            ("cache", "dir", at("cache")),
            ("spool", "dir", at("spool")),
            ("http", "socket", at(SOCKETS[0])),
            ("wire", "socket", at(SOCKETS[1])),
        ] {
            merge(
                &mut config,
                Table::from_iter([(
                    section.to_owned(),
                    Value::Table(Table::from_iter([(key.to_owned(), value)])),
                )]),
            );
        }
        merge(&mut config, self.config);
        fs::write(folder.path().join("andond.toml"), config.to_string())?;
        let programs = match self.programs {
            Some(programs) => programs,
            None => programs::folder()?,
        };
        let notify = UnixDatagram::bind(folder.path().join("notify"))?;
        notify.set_nonblocking(true)?;
        let mut listening = self.listening;
        if let Listening::Held(held) = &mut listening {
            let bind = |name| UnixListener::bind(folder.path().join(name));
            *held = Some([bind(SOCKETS[0])?, bind(SOCKETS[1])?]);
        }
        let (child, started) = launch(&self.before, &listening, &programs, folder.path(), &[])?;
        Ok(Daemon {
            child,
            started,
            ready: None,
            notify,
            told: Vec::new(),
            before: self.before,
            listening,
            programs,
            folder,
        })
    }
}

/// A running `andond`.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    started: Instant,
    ready: Option<Duration>,
    notify: UnixDatagram,
    told: Vec<String>,
    before: Vec<String>,
    listening: Listening,
    programs: PathBuf,
    folder: TempDir,
}

impl Daemon {
    /// A daemon to be configured.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Waits until the daemon says READY.
    ///
    /// # Errors
    /// When it ends or [`READY_TIMEOUT`] passes; the error has its log.
    pub fn wait_ready(&mut self) -> io::Result<()> {
        while self.started.elapsed() < READY_TIMEOUT {
            if self.is_ready()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(io::Error::other(format!(
            "andond is not ready\n{}",
            self.log()
        )))
    }

    /// Whether the daemon has said READY.
    ///
    /// # Errors
    /// When it has ended; the error has its log.
    pub fn is_ready(&mut self) -> io::Result<bool> {
        self.listen()?;
        match self.child.try_wait()? {
            Some(status) => Err(io::Error::other(format!(
                "andond ended with {status}\n{}",
                self.log()
            ))),
            None => Ok(self.ready.is_some()),
        }
    }

    /// Reads what the daemon has told.
    fn listen(&mut self) -> io::Result<()> {
        let mut message = [0; 4096];
        loop {
            match self.notify.recv(&mut message) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(message.get(..bytes).unwrap_or_default());
                    if self.ready.is_none() && text.lines().any(|line| line == "READY=1") {
                        self.ready = Some(self.started.elapsed());
                    }
                    self.told.extend(text.lines().map(str::to_owned));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// What the daemon has told the service manager since it was started last, line by line.
    ///
    /// # Errors
    /// When the socket on which it does cannot be read.
    pub fn told(&mut self) -> io::Result<&[String]> {
        self.listen()?;
        Ok(&self.told)
    }

    /// Time from start to READY, once it was waited for.
    #[must_use]
    pub fn ready_after(&self) -> Option<Duration> {
        self.ready
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The daemon's own folder: configuration, sockets, log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the programs in use.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The HTTP socket.
    #[must_use]
    pub fn http_socket(&self) -> PathBuf {
        self.folder().join(SOCKETS[0])
    }

    /// The compact socket.
    #[must_use]
    pub fn wire_socket(&self) -> PathBuf {
        self.folder().join(SOCKETS[1])
    }

    /// A client of the HTTP socket.
    #[must_use]
    pub fn http(&self) -> http::Client {
        http::Client::new(&self.http_socket())
    }

    /// Lays TOML over the daemon's configuration, key by key; it holds once the daemon has read it again. The file is replaced
    /// as a whole.
    ///
    /// # Errors
    /// When the file cannot be read or written, or `text` is not TOML.
    pub fn configure(&self, text: &str) -> io::Result<()> {
        let path = self.folder().join("andond.toml");
        let mut config: Table = fs::read_to_string(&path)?
            .parse()
            .map_err(io::Error::other)?;
        merge(&mut config, text.parse().map_err(io::Error::other)?);
        let new = self.folder().join("andond.toml.new");
        fs::write(&new, config.to_string())?;
        fs::rename(new, path)
    }

    /// Forgets what the daemon has told the service manager and nobody has read, so that there is room for more: a few
    /// messages fill the socket, and then the daemon waits.
    pub fn forget_told(&self) {
        let mut message = [0; 4096];
        while self.notify.recv(&mut message).is_ok() {}
    }

    /// Everything the daemon has said on standard error and output.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the daemon has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the daemon to stop, as the service manager does.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Waits for the daemon's end.
    ///
    /// # Errors
    /// When `timeout` passes; the error has its log.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        Err(io::Error::other(format!(
            "andond has not ended\n{}",
            self.log()
        )))
    }

    /// Ends the daemon at once, as a power cut would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts the daemon again in the same folder and waits until it is ready.
    ///
    /// # Errors
    /// Those of [`Builder::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.relaunch(&[])?;
        self.wait_ready()
    }

    /// Starts a daemon that has ended again in the same folder, with these variables in its environment, and does not
    /// wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn relaunch(&mut self, variables: &[(&str, &str)]) -> io::Result<()> {
        let mut stale = [0; 4096];
        while self.notify.recv(&mut stale).is_ok() {}
        (self.child, self.started) = launch(
            &self.before,
            &self.listening,
            &self.programs,
            self.folder.path(),
            variables,
        )?;
        self.ready = None;
        self.told.clear();
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.kill());
        if thread::panicking() {
            eprintln!("--- log of andond\n{}---", self.log());
        }
    }
}

fn launch(
    before: &[String],
    listening: &Listening,
    programs: &Path,
    folder: &Path,
    variables: &[(&str, &str)],
) -> io::Result<(Child, Instant)> {
    let path = folder.join("log");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)?;
    let program = programs.join("andond");
    let notify = folder.join("notify").display().to_string();
    let mut words: Vec<OsString> = before.iter().map(OsString::from).collect();
    let (mut input, mut output) = (Stdio::null(), Stdio::from(log.try_clone()?));
    match listening {
        Listening::Itself => {}
        Listening::Activated(names) => {
            words.push("systemd-socket-activate".into());
            for name in names {
                words.extend(["-l".into(), folder.join(name).into()]);
            }
            // It passes nothing else on.
            for (name, value) in variables.iter().chain(&[("NOTIFY_SOCKET", &*notify)]) {
                words.extend(["-E".into(), format!("{name}={value}").into()]);
            }
        }
        Listening::Held(held) => {
            let [http, wire] = held
                .as_ref()
                .ok_or_else(|| io::Error::other("nobody listens"))?;
            input = Stdio::from(OwnedFd::from(http.try_clone()?));
            output = Stdio::from(OwnedFd::from(wire.try_clone()?));
            words.extend(["sh".into(), "-c".into(), PASS.into(), path.into()]);
        }
    }
    words.push(program.clone().into());
    let (first, rest) = words
        .split_first()
        .ok_or_else(|| io::Error::other("there is nothing to start"))?;
    let mut command = Command::new(first);
    command.args(rest);
    command.arg("--config").arg(folder.join("andond.toml"));
    command
        .env("NOTIFY_SOCKET", notify)
        .env_remove("JOURNAL_STREAM")
        .envs(variables.iter().copied());
    command.stdin(input).stdout(output).stderr(log);
    let started = Instant::now();
    let child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    Ok((child, started))
}

/// Lays `over` on `base`: tables are merged, everything else is replaced.
pub fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_laid_over_key_by_key() {
        let mut base: Table = "[a]\nx = 1\ny = 2\n[b]\nz = 3\n".parse().unwrap();
        merge(&mut base, "[a]\ny = 4\n[c]\nw = 5\n".parse().unwrap());
        assert_eq!(
            base,
            "[a]\nx = 1\ny = 4\n[b]\nz = 3\n[c]\nw = 5\n"
                .parse()
                .unwrap()
        );
    }
}
