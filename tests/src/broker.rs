//! A real mosquitto in a folder of its own, its command-line clients, and a broker that speaks nothing
//! newer than MQTT 3.1.1.
//!
//! Ports are chosen by the kernel. Brokers and clients end with the value that stands for them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for a broker to take connections, and for a subscription to hold.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a message; generous, since debug builds answer on busy machines.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// Ports tried before giving up: another process may take the one that was free.
const PORT_TRIES: usize = 8;
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);
/// Largest CONNECT packet the old broker's door reads.
const CONNECT_BYTES_MAX: usize = 4096;

/// A port that was free a moment ago.
///
/// # Errors
/// When the kernel has none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// A running mosquitto.
#[derive(Debug)]
pub struct Broker {
    child: Option<Child>,
    port: u16,
    folder: TempDir,
}

impl Broker {
    /// Starts a broker that lets everybody in.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not start.
    pub fn start() -> io::Result<Broker> {
        Broker::start_with("")
    }

    /// Starts a broker with more lines of configuration.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not start.
    pub fn start_with(lines: &str) -> io::Result<Broker> {
        Broker::start_at(lines, None)
    }

    /// Starts one that also listens at another address of this machine, at the same port.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not start.
    pub fn start_at(lines: &str, address: Option<Ipv4Addr>) -> io::Result<Broker> {
        Broker::start_from(&|port| {
            // As root, mosquitto would change to a user who may not read the folder.
            let mut config = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nlog_type all\n{lines}\n"
            );
            if let Some(address) = address {
                config.push_str(&format!("listener {port} {address}\n"));
            }
            config
        })
    }

    /// Starts one whose whole configuration is made for the port that it gets.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not start.
    pub fn start_from(config: &dyn Fn(u16) -> String) -> io::Result<Broker> {
        let folder = tempfile::Builder::new().prefix("andon-broker-").tempdir()?;
        let mut broker = Broker {
            child: None,
            port: 0,
            folder,
        };
        for _ in 0..PORT_TRIES {
            broker.port = free_port()?;
            fs::write(
                broker.folder.path().join("mosquitto.conf"),
                config(broker.port),
            )?;
            if broker.launch()? {
                return Ok(broker);
            }
        }
        Err(io::Error::other(format!(
            "mosquitto does not start\n{}",
            broker.log()
        )))
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lines for the daemon's configuration that connect it to this broker.
    #[must_use]
    pub fn config(&self) -> String {
        config(self.port)
    }

    /// What the broker has said.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends the broker at once; its sessions are gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn stop(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks the broker to end and waits until it has: one that keeps its state then writes it down.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn terminate(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Sends the broker a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let child = self
            .child
            .as_ref()
            .ok_or_else(|| io::Error::other("the broker does not run"))?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Starts the broker again on the same port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> io::Result<()> {
        self.stop()?;
        if self.launch()? {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "mosquitto does not start again\n{}",
            self.log()
        )))
    }

    /// One of mosquitto's clients, pointed at this broker.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        client(program, self.port)
    }

    /// Subscribes with `mosquitto_sub` and returns when the subscription holds.
    ///
    /// # Errors
    /// When it does not.
    pub fn watch(&self, filter: &str, version: &str) -> io::Result<Watcher> {
        Watcher::start(self.port, filter, version)
    }

    /// Publishes at QoS 1 in MQTT 3.1.1 and returns when the broker has it.
    ///
    /// # Errors
    /// When it does not take it.
    pub fn publish(&self, topic: &str, payload: &str) -> io::Result<()> {
        let mut command = self.client("mosquitto_pub");
        command.args(["-V", "mqttv311", "-q", "1", "-t", topic, "-m", payload]);
        succeed(&mut command).map(drop)
    }

    fn launch(&mut self) -> io::Result<bool> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))?;
        let mut child = Command::new(mosquitto())
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("mosquitto: {error}")))?;
        let start = Instant::now();
        while start.elapsed() < START_TIMEOUT {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                self.child = Some(child);
                return Ok(true);
            }
            thread::sleep(POLL);
        }
        child.kill()?;
        child.wait()?;
        Ok(false)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.stop());
        if thread::panicking() {
            eprintln!("--- log of mosquitto\n{}---", self.log());
        }
    }
}

/// Lines for the daemon's configuration that connect it to a broker on 127.0.0.1.
#[must_use]
pub fn config(port: u16) -> String {
    format!("[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {port}\nreconnect-max-s = 1\n")
}

/// One of mosquitto's clients, pointed at a port of 127.0.0.1.
#[must_use]
pub fn client(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    command
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run or fails; the error has what it said.
pub fn succeed(command: &mut Command) -> io::Result<Output> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(output);
    }
    Err(io::Error::other(format!(
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )))
}

/// Where Debian puts the broker, which is not on every user's path.
fn mosquitto() -> &'static str {
    const DEBIAN: &str = "/usr/sbin/mosquitto";
    if fs::exists(DEBIAN).unwrap_or(false) {
        DEBIAN
    } else {
        "mosquitto"
    }
}

/// A running `mosquitto_pub` that publishes to one topic at QoS 1, a message for each line: many of them
/// take no process each.
#[derive(Debug)]
pub struct Publisher {
    child: Child,
    /// Closed, it has the client end when all is with the broker.
    lines: Option<ChildStdin>,
}

impl Publisher {
    /// Connects to the broker.
    ///
    /// # Errors
    /// When `mosquitto_pub` cannot be run.
    pub fn start(port: u16, topic: &str) -> io::Result<Publisher> {
        let mut child = client("mosquitto_pub", port)
            .args(["-V", "mqttv311", "-q", "1", "-l", "-t", topic])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = child.stdin.take();
        Ok(Publisher { child, lines })
    }

    /// Publishes a message, which is one line.
    ///
    /// # Errors
    /// When it is more than one, or the client has ended.
    pub fn send(&mut self, payload: &str) -> io::Result<()> {
        if payload.contains('\n') {
            return Err(io::Error::other("a message of several lines"));
        }
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let lines = self.lines.as_mut().ok_or_else(gone)?;
        lines.write_all(format!("{payload}\n").as_bytes())?;
        lines.flush()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        drop(self.lines.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A message that a [`Watcher`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: String,
}

impl Seen {
    /// The payload as JSON.
    ///
    /// # Errors
    /// When it is none; the error quotes it.
    pub fn json(&self) -> io::Result<serde_json::Value> {
        serde_json::from_str(&self.payload)
            .map_err(|error| io::Error::other(format!("{error} in {:?}", self.payload)))
    }
}

/// A running `mosquitto_sub`.
#[derive(Debug)]
pub struct Watcher {
    child: Child,
    lines: Receiver<String>,
    /// Messages of a lasting session, which come before its subscription is granted again.
    early: RefCell<VecDeque<String>>,
}

/// What the lines with messages begin with; the others are the client's own words.
const MARK: &str = "\u{1}message\t";

impl Watcher {
    /// Subscribes to a filter and waits until the broker has granted it.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(port: u16, filter: &str, version: &str) -> io::Result<Watcher> {
        Watcher::start_with(port, filter, version, &[])
    }

    /// The same with more arguments for `mosquitto_sub`, such as `-c -i NAME` for a session that lasts.
    ///
    /// # Errors
    /// When the broker does not grant the subscription.
    pub fn start_with(
        port: u16,
        filter: &str,
        version: &str,
        arguments: &[&str],
    ) -> io::Result<Watcher> {
        // Line by line: the client buffers what goes into a pipe.
        let mut command = Command::new("stdbuf");
        command.args([
            "-oL",
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-d",
        ]);
        command.args([
            "-V",
            version,
            "-q",
            "1",
            "-t",
            filter,
            "-F",
            &format!("{MARK}%t\t%p"),
        ]);
        let mut child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no output"))?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut watcher = Watcher {
            child,
            lines,
            early: RefCell::default(),
        };
        let start = Instant::now();
        while start.elapsed() < START_TIMEOUT {
            match watcher.lines.recv_timeout(POLL) {
                Ok(line) if line.starts_with("Subscribed") => return Ok(watcher),
                Ok(line) => watcher.early.get_mut().push_back(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        watcher.end();
        Err(io::Error::other(format!("no subscription to {filter}")))
    }

    /// The next message.
    ///
    /// # Errors
    /// When none comes within `timeout`.
    pub fn next(&self, timeout: Duration) -> io::Result<Seen> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let early = self.early.borrow_mut().pop_front();
            let line = early
                .map_or_else(|| self.lines.recv_timeout(left), Ok)
                .map_err(|error| io::Error::other(format!("no message: {error}")))?;
            let message = line
                .strip_prefix(MARK)
                .and_then(|rest| rest.split_once('\t'));
            if let Some((topic, payload)) = message {
                return Ok(Seen {
                    topic: topic.to_owned(),
                    payload: payload.to_owned(),
                });
            }
        }
    }

    /// The next message for which `wanted` holds.
    ///
    /// # Errors
    /// When none comes within [`MESSAGE_TIMEOUT`].
    pub fn wait_for(&self, mut wanted: impl FnMut(&Seen) -> bool) -> io::Result<Seen> {
        let start = Instant::now();
        loop {
            let seen = self.next(MESSAGE_TIMEOUT.saturating_sub(start.elapsed()))?;
            if wanted(&seen) {
                return Ok(seen);
            }
        }
    }

    fn end(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// A door before a broker that knows nothing newer than MQTT 3.1.1, and says so to whoever comes with
/// MQTT 5, in the words of 3.1.1: a CONNACK with code 1, as old brokers do.
#[derive(Debug)]
pub struct OldBroker {
    broker: Broker,
    port: u16,
}

impl OldBroker {
    /// Starts a broker and the door before it.
    ///
    /// # Errors
    /// When either does not start.
    pub fn start() -> io::Result<OldBroker> {
        let broker = Broker::start()?;
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = door.local_addr()?.port();
        let inside = broker.port();
        // The door stands as long as the process; with the broker behind it gone, it leads nowhere.
        thread::spawn(move || {
            for guest in door.incoming().map_while(Result::ok) {
                thread::spawn(move || drop(admit(guest, inside)));
            }
        });
        Ok(OldBroker { broker, port })
    }

    /// The door's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lines for the daemon's configuration that connect it to this broker.
    #[must_use]
    pub fn config(&self) -> String {
        config(self.port)
    }

    /// The broker behind the door, for clients that need not pass it.
    #[must_use]
    pub fn inside(&self) -> &Broker {
        &self.broker
    }
}

/// Reads a guest's CONNECT and lets it in, or not.
fn admit(mut guest: TcpStream, inside: u16) -> io::Result<()> {
    let mut connect = Vec::new();
    let mut byte = [0];
    // The fixed header: a type, then a length of up to four bytes.
    let mut left = 0usize;
    for index in 0..5 {
        guest.read_exact(&mut byte)?;
        connect.extend_from_slice(&byte);
        if index > 0 {
            left |= usize::from(byte[0] & 0x7f) << (7 * (index - 1));
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
    }
    let header = connect.len();
    if left > CONNECT_BYTES_MAX {
        return Ok(());
    }
    connect.resize(header + left, 0);
    guest.read_exact(connect.get_mut(header..).unwrap_or_default())?;
    // After the name "MQTT" with its length comes the protocol's level: 4 is 3.1.1.
    if connect.get(header + 6) != Some(&4) {
        guest.write_all(&[0x20, 2, 0, 1])?;
        return guest.shutdown(Shutdown::Both);
    }
    let mut host = TcpStream::connect((Ipv4Addr::LOCALHOST, inside))?;
    host.write_all(&connect)?;
    let (mut from_guest, mut to_host) = (guest.try_clone()?, host.try_clone()?);
    let inwards = thread::spawn(move || {
        drop(io::copy(&mut from_guest, &mut to_host));
        drop(to_host.shutdown(Shutdown::Both));
    });
    drop(io::copy(&mut host, &mut guest));
    drop(guest.shutdown(Shutdown::Both));
    drop(inwards.join());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_carries_a_message_and_starts_again() {
        let mut broker = Broker::start().unwrap();
        let watcher = broker.watch("a/#", "mqttv5").unwrap();
        broker.publish("a/b", "hello\tworld").unwrap();
        let seen = watcher.next(MESSAGE_TIMEOUT).unwrap();
        assert_eq!(
            (seen.topic.as_str(), seen.payload.as_str()),
            ("a/b", "hello\tworld")
        );
        broker.start_again().unwrap();
        broker.publish("a/b", "again").unwrap();
    }

    #[test]
    fn a_publisher_carries_one_message_after_the_other() {
        let broker = Broker::start().unwrap();
        let watcher = broker.watch("a/#", "mqttv311").unwrap();
        let mut publisher = Publisher::start(broker.port(), "a/b").unwrap();
        for number in 0..50 {
            publisher.send(&format!("message {number}")).unwrap();
        }
        for number in 0..50 {
            let seen = watcher.next(MESSAGE_TIMEOUT).unwrap();
            assert_eq!(seen.payload, format!("message {number}"));
        }
        assert!(publisher.send("two\nlines").is_err());
    }

    #[test]
    fn the_old_broker_takes_only_the_old_protocol() {
        let old = OldBroker::start().unwrap();
        let publish = |version| {
            let mut command = client("mosquitto_pub", old.port());
            command.args(["-V", version, "-q", "1", "-t", "a", "-m", "x"]);
            succeed(&mut command)
        };
        publish("mqttv311").unwrap();
        assert!(publish("mqttv5").is_err());
    }
}
