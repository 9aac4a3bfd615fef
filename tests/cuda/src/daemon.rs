//! The daemon as its clients see it: when it is ready, how long the first token takes, and tokens per second of one client
//! and of several at once.

use crate::figures::{Figures, median};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Daemon<'a> {
    /// The program.
    pub andond: &'a Path,
    /// The model that it serves.
    pub model: &'a Path,
    /// By which figures are named.
    pub name: &'a str,
    /// Variables of its environment.
    pub environment: &'a [(&'a str, OsString)],
    /// A folder that is the run's own.
    pub folder: &'a Path,
    /// Bytes of prompts, of which synthetic models make a token each, and tokens of answers.
    pub sizes: (usize, usize),
    /// Requests that are sent at once by several clients.
    pub clients: usize,
    /// Longest that is waited for the daemon, and for an answer.
    pub patience: Duration,
}

/// How an answer came.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Seconds from the request to the first piece, and to the end.
    first: f64,
    all: f64,
    pieces: usize,
}

struct Running {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Daemon<'_> {
    fn start(&self, sandbox: &str) -> Result<Running> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        fs::create_dir_all(self.folder)?;
        let context = 8192;
        let config = format!(
            "[gateway]\nname = 'check'\n[model]\npath = '{}'\nkv-tokens-max = {}\n[models]\ndir = '{}'\n[cache]\ndir = '{}'\n\
             [spool]\ndir = '{}'\n[http]\nsocket = '{}'\n[wire]\nsocket = '{}'\n[engine]\nbackend = 'cuda'\nparallel-max = {}\n\
             {sandbox}",
            self.model.display(),
            if self.sizes.1 < 32 {
                1024
            } else {
                context * self.clients
            },
            at("models"),
            at("cache"),
            at("spool"),
            at("http.sock"),
            at("wire.sock"),
            self.clients,
        );
        let file = self.folder.join("andond.toml");
        fs::write(&file, config)?;
        let log = self.folder.join("log");
        let output = fs::File::create(&log)?;
        let child = Command::new(self.andond)
            .arg("--config")
            .arg(&file)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", self.andond.display()))?;
        Ok(Running {
            child,
            socket: self.folder.join("http.sock"),
            log,
        })
    }

    /// Waits until the daemon serves with the card; seconds until it served at all, and until then.
    fn ready(&self, running: &mut Running) -> Result<(f64, f64)> {
        let began = Instant::now();
        let mut served = None;
        while began.elapsed() < self.patience {
            if let Some(status) = running.child.try_wait()? {
                bail!("andond ended with {status}: {}", running.log());
            }
            let now = began.elapsed().as_secs_f64();
            if served.is_none() && get(&running.socket, "/readyz").is_ok_and(|text| is_ok(&text)) {
                served = Some(now);
            }
            if let Some(served) = served
                && get(&running.socket, "/metrics")
                    .is_ok_and(|text| text.contains("andon_backend_models{backend=\"cuda\"} 1"))
            {
                return Ok((served, now));
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("andond does not serve with the card: {}", running.log());
    }

    /// Measures the daemon.
    ///
    /// # Errors
    /// If it does not start, does not take the card, or does not answer.
    pub fn measure(&self, figures: &Figures) -> Result<String> {
        let name = self.name;
        let (mut running, confined) = match self.run("") {
            Ok(running) => (running, ""),
            // Containers without landlock, and drivers in unusual places.
            Err(error) => {
                let running = self.run("[sandbox]\nlandlock = 'off'\n");
                let running = running.with_context(|| format!("{error:#}"))?;
                (running, ", without landlock")
            }
        };
        let (served, on_card) = running.1;
        figures.note(format!("daemon {name}: served after"), served, "s");
        figures.note(format!("daemon {name}: on the card after"), on_card, "s");
        let socket = running.0.socket.clone();
        let (prompt, tokens) = self.sizes;
        let ask = |seed: usize| ask(&socket, seed, prompt, tokens, self.patience);
        // The first finds nothing ready.
        ask(0)?;
        let times = (1..4).map(ask).collect::<Result<Vec<Answer>>>()?;
        let first: Vec<f64> = times.iter().map(|answer| answer.first).collect();
        let rates: Vec<f64> = times
            .iter()
            .map(|answer| (tokens - 1) as f64 / (answer.all - answer.first))
            .collect();
        let (first, rate) = (median(&first), median(&rates));
        figures.note(format!("daemon {name}: first token"), first * 1e3, "ms");
        figures.note(format!("daemon {name}: one client"), rate, "tokens/s");
        let began = Instant::now();
        let many: Vec<Answer> = thread::scope(|scope| {
            let asked: Vec<_> = (0..self.clients)
                .map(|client| scope.spawn(move || ask(10 + client)))
                .collect();
            let joined = asked.into_iter().map(|asked| {
                let answer = asked.join();
                answer.unwrap_or_else(|_| bail!("a client panicked"))
            });
            joined.collect::<Result<_>>()
        })?;
        let all = began.elapsed().as_secs_f64();
        let together = (tokens * many.len()) as f64 / all;
        let firsts: Vec<f64> = many.iter().map(|answer| answer.first).collect();
        let clients = self.clients;
        figures.note(
            format!("daemon {name}: {clients} clients"),
            together,
            "tokens/s",
        );
        let log = running.0.log();
        ensure!(running.0.child.try_wait()?.is_none(), "it ended: {log}");
        Ok(format!(
            "served after {served:.2} s, on the card after {on_card:.2} s{confined}; first of {tokens} tokens after {:.1} ms, \
             {rate:.1} tokens/s, in {} pieces; {clients} clients at once, prompts and all: {together:.1} tokens/s, first token \
             after {:.1} ms",
            first * 1e3,
            times[0].pieces,
            median(&firsts) * 1e3
        ))
    }

    fn run(&self, sandbox: &str) -> Result<(Running, (f64, f64))> {
        let mut running = self.start(sandbox)?;
        let ready = self.ready(&mut running)?;
        Ok((running, ready))
    }
}

fn is_ok(text: &str) -> bool {
    text.starts_with("HTTP/1.1 200")
}

fn get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: andon\r\nconnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Asks for so many tokens behind a prompt that nobody sent before.
fn ask(
    socket: &Path,
    seed: usize,
    prompt_bytes: usize,
    tokens: usize,
    patience: Duration,
) -> Result<Answer> {
    let words = (0..).map(|at: usize| format!("{} ", (at * 7919 + seed * 104_729) % 900 + 100));
    let prompt: String = words.take(prompt_bytes / 4).collect();
    let body = serde_json::json!({
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true,
    })
    .to_string();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    let began = Instant::now();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: andon\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let (mut first, mut pieces, mut ended) = (None, 0, false);
    let mut said = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line == "data: [DONE]" {
            ended = true;
            break;
        }
        if line.starts_with("data: {") {
            first.get_or_insert_with(|| began.elapsed());
            pieces += 1;
        }
        if said.len() < 4096 {
            said.push_str(&line);
            said.push('\n');
        }
    }
    let all = began.elapsed().as_secs_f64();
    ensure!(ended, "no whole answer: {said}");
    let first = first.with_context(|| format!("no token: {said}"))?;
    Ok(Answer {
        first: first.as_secs_f64(),
        all,
        pieces,
    })
}
