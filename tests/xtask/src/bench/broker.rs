//! A mosquitto, and its own clients, which ask andond and read its answers line by line.
//!
//! Both clients stay connected: what is timed is the way of a message, not the start of a program.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::daemon::PATIENCE;
use super::service::{Answer, Conversation};
use crate::{packages, shell};

/// The name that asks.
const CLIENT: &str = "bench";

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(20);

/// A broker, ended when dropped.
pub(super) struct Broker {
    child: Child,
    pub(super) port: u16,
}

/// A program, ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
///
/// # Errors
/// When there is none.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// Waits until somebody listens at a port.
///
/// # Errors
/// When the program ends or takes too long.
pub(super) fn wait_for_port(child: &mut Child, port: u16, what: &str) -> Result<()> {
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("{what} ended with {status}");
        }
        ensure!(began.elapsed() < PATIENCE, "{what} does not listen");
        thread::sleep(LOOK);
    }
    Ok(())
}

impl Broker {
    /// Starts one that keeps nothing and lets everybody in, as it comes otherwise.
    ///
    /// # Errors
    /// When it is not installed and cannot be, or does not start.
    pub(super) fn start(folder: &Path) -> Result<Broker> {
        packages::ensure(&[&packages::BROKER, &packages::BROKER_CLIENTS])?;
        let program = shell::find("mosquitto").context("mosquitto is not installed")?;
        let port = free_port()?;
        let config = folder.join("mosquitto.conf");
        // As root, it would change to a user who may not read the folder.
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n");
        fs::write(&config, text)?;
        let log = fs::File::create(folder.join("mosquitto.log"))?;
        let mut command = shell::mortal(program);
        command.arg("-c").arg(&config).stdin(Stdio::null());
        let mut child = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run mosquitto")?;
        wait_for_port(&mut child, port, "mosquitto")?;
        Ok(Broker { child, port })
    }
}

/// Asks over a broker, one request after the other.
pub(super) struct Asker {
    _publisher: Ended,
    _subscriber: Ended,
    questions: ChildStdin,
    answers: Receiver<(Instant, String)>,
    asked: usize,
}

impl Asker {
    /// Connects, and returns once andond is there and answers arrive. With `task`, asks that task.
    ///
    /// # Errors
    /// When they do not.
    pub(super) fn connect(port: u16, gateway: &str, task: Option<&str>) -> Result<Asker> {
        let client = task.map_or_else(|| CLIENT.to_owned(), |task| format!("{CLIENT}-{task}"));
        let base = format!("andon/{gateway}");
        let mut request = format!("{base}/request/{client}");
        if let Some(task) = task {
            request = format!("{request}/{task}");
        }
        let filter = format!("{base}/response/{client}/#");
        // The first line is the retained status of a gateway that takes requests.
        let mut subscriber = shell::mortal("stdbuf");
        subscriber.args(["-oL", "mosquitto_sub"]).args(to(port));
        subscriber.args(["-q", "1", "-F", "%p", "-t", &filter, "-t"]);
        subscriber.arg(format!("{base}/status"));
        let mut subscriber = subscriber
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run mosquitto_sub")?;
        let lines = subscriber.stdout.take().context("no output")?;
        let subscriber = Ended(subscriber);
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let mut publisher = shell::mortal("mosquitto_pub");
        publisher.args(to(port));
        publisher.args(["-q", "1", "-t", &request, "-l"]);
        let mut publisher = publisher
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run mosquitto_pub")?;
        let questions = publisher.stdin.take().context("no input")?;
        let asker = Asker {
            _publisher: Ended(publisher),
            _subscriber: subscriber,
            questions,
            answers,
            asked: 0,
        };
        asker.wait_ready()?;
        Ok(asker)
    }

    /// Waits until andond has said that it is there and takes requests.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn wait_ready(&self) -> Result<()> {
        self.wait(|status| status["state"] == "online" && status["ready"] == true)
    }

    /// Waits until andond has said that it is gone.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn wait_gone(&self) -> Result<()> {
        self.wait(|status| status["state"] == "offline")
    }

    fn wait(&self, holds: impl Fn(&Value) -> bool) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !holds(&self.next(until)?.1) {}
        Ok(())
    }

    /// The next that comes, but not after `until`: other lines do not prolong the wait for the one that is missing.
    fn next(&self, until: Instant) -> Result<(Instant, Value)> {
        let left = until.saturating_duration_since(Instant::now());
        let (at, line) = self
            .answers
            .recv_timeout(left)
            .context("it does not come from the broker")?;
        let value = serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))?;
        Ok((at, value))
    }

    /// Asks, and reads the answer as it comes.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn stream(&mut self, conversation: &Conversation, tokens: usize) -> Result<Answer> {
        let messages: Vec<Value> = conversation
            .iter()
            .map(|(role, content)| json!({ "role": role, "content": content }))
            .collect();
        self.send(json!({ "messages": messages, "temperature": 0, "tokens_max": tokens }))
    }

    /// Asks the task, and reads the answer as it comes.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn task(&mut self, input: &Value) -> Result<Answer> {
        self.send(json!({ "input": input }))
    }

    fn send(&mut self, mut request: Value) -> Result<Answer> {
        self.asked += 1;
        let id = self.asked.to_string();
        request["id"] = json!(id);
        request["stream"] = json!(true);
        let line = format!("{request}\n");
        let began = Instant::now();
        self.questions.write_all(line.as_bytes())?;
        let mut first = None;
        loop {
            let (at, value) = self.next(began + PATIENCE)?;
            if value["id"] != id.as_str() {
                // The status, which changes with every request.
                continue;
            }
            ensure!(value["type"] != "error", "{}", value["error"]);
            first.get_or_insert(at);
            if value["type"] == "answer" {
                let usage = &value["usage"];
                let count = |name: &str| {
                    let count = usage[name].as_u64().unwrap_or(0);
                    usize::try_from(count).unwrap_or(usize::MAX)
                };
                let first = first.unwrap_or(at);
                return Ok(Answer {
                    first_ms: (first - began).as_secs_f64() * 1e3,
                    prompt: count("prompt_tokens"),
                    cached: count("cached_tokens"),
                    completion: count("completion_tokens"),
                });
            }
        }
    }
}

/// What tells mosquitto's clients where the broker is.
fn to(port: u16) -> [String; 4] {
    ["-h", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned)
}
