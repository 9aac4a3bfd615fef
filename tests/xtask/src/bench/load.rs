//! How soon an answer begins while batch work keeps the daemon busy: of alarms, and of interactive requests.
//!
//! A few jobs decode without end. Meanwhile one request after the other is sent, each with a prompt that nobody sent
//! before; what counts is the time to its first event. The same is measured of alarms while there is nothing else, and the
//! time between two events of a job, before any alarm comes, is that of a step.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::daemon::{self, Folder, PATIENCE};
use super::definition::Definition;
use super::percentile;

/// Requests of each kind.
const ASKED: usize = 100;

/// Tokens of such an answer.
const ANSWER_TOKENS: usize = 4;

/// Tokens of the prompt of a job.
const JOB_PROMPT: usize = 32;

/// Ids from here on are used for prompts: the first few are often special. No vocabulary is smaller than both together.
const FIRST_ID: usize = 100;
const IDS: usize = 20_000;

/// While what is measured once is.
const SETTLE: Duration = Duration::from_secs(3);

/// While steps of the jobs are timed.
const STEPS: Duration = Duration::from_secs(5);

/// What all threads share.
struct Load<'a> {
    socket: &'a Path,
    /// Makes every prompt another.
    prompts: AtomicUsize,
    over: AtomicBool,
    /// Milliseconds between two events of a job, while nothing but jobs runs.
    gaps: Mutex<Vec<f64>>,
    /// Whether that is now.
    alone: AtomicBool,
    /// Jobs that decode now.
    decoding: AtomicUsize,
}

/// Starts the daemon and measures.
///
/// # Errors
/// When it does not start or does not answer.
pub(super) fn load(programs: &Path, definition: &Definition, model: &Path) -> Result<Value> {
    let folder = Folder::make()?;
    daemon::configure(folder.path(), definition, model, "idle", toml::Table::new())?;
    let mut daemon = daemon::launch(programs, folder.path())?;
    daemon.wait_ready(folder.path())?;
    daemon::wait_for_pack(&folder.path().join("cache"))?;
    thread::sleep(SETTLE);
    let socket = folder.path().join("http.sock");
    let load = Load {
        socket: &socket,
        prompts: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        gaps: Mutex::default(),
        alone: AtomicBool::new(false),
        decoding: AtomicUsize::new(0),
    };
    let alone = load.ask("alarm", definition.prompt)?;
    let (alarm, interactive) = thread::scope(|scope| {
        let jobs: Vec<_> = (0..definition.jobs)
            .map(|_| scope.spawn(|| load.job(definition.generate)))
            .collect();
        let asked = load.wait_for_jobs(definition.jobs).and_then(|()| {
            // A step is that of the jobs, not of what is measured against it.
            load.alone.store(true, Ordering::Relaxed);
            thread::sleep(STEPS);
            load.alone.store(false, Ordering::Relaxed);
            let alarm = load.ask("alarm", definition.prompt)?;
            Ok((alarm, load.ask("interactive", definition.prompt)?))
        });
        load.over.store(true, Ordering::Relaxed);
        for job in jobs {
            if let Ok(job) = job.join() {
                job?;
            }
        }
        asked
    })?;
    let gaps = load.gaps.into_inner().unwrap_or_default();
    ensure!(!gaps.is_empty(), "no step of the jobs was seen");
    let step = super::median(&gaps);
    let own = super::median(&alone);
    let late = percentile(&alarm, 99);
    Ok(json!({
        "step-ms": step,
        "alone-ms": own,
        "alarm-p50-ms": super::median(&alarm),
        "alarm-p99-ms": late,
        "alarm-ratio": late / (own + 2.0 * step),
        "interactive-p50-ms": super::median(&interactive),
        "interactive-p95-ms": percentile(&interactive, 95),
    }))
}

impl Load<'_> {
    /// Decodes without end, until it is over.
    fn job(&self, tokens: usize) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            // Whether it was alone then, too: a gap counts that is so from end to end.
            let mut last: Option<(Instant, bool)> = None;
            let streamed = self.stream("batch", JOB_PROMPT, tokens, |at| {
                let alone = self.alone.load(Ordering::Relaxed);
                match last.replace((at, alone)) {
                    Some((last, true)) if alone => {
                        if let Ok(mut gaps) = self.gaps.lock() {
                            gaps.push((at - last).as_secs_f64() * 1e3);
                        }
                    }
                    Some(_) => {}
                    None => drop(self.decoding.fetch_add(1, Ordering::Relaxed)),
                }
                !self.over.load(Ordering::Relaxed)
            });
            if last.is_some() {
                self.decoding.fetch_sub(1, Ordering::Relaxed);
            }
            streamed?;
        }
        Ok(())
    }

    fn wait_for_jobs(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        while self.decoding.load(Ordering::Relaxed) < count {
            ensure!(began.elapsed() < PATIENCE, "the jobs do not begin");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Milliseconds to the first event of one request after the other.
    fn ask(&self, priority: &str, prompt: usize) -> Result<Vec<f64>> {
        let one = |index: usize| {
            // Not in step with anything.
            thread::sleep(Duration::from_millis(20 + (index * 37 % 100) as u64));
            let began = Instant::now();
            let mut first = None;
            self.stream(priority, prompt, ANSWER_TOKENS, |at| {
                first.get_or_insert(at);
                true
            })?;
            let first = first.context("an answer without an event")?;
            Ok((first - began).as_secs_f64() * 1e3)
        };
        (0..ASKED).map(one).collect()
    }

    /// Asks, and says when each event is there until that says to stop.
    fn stream(
        &self,
        priority: &str,
        prompt: usize,
        tokens: usize,
        mut event: impl FnMut(Instant) -> bool,
    ) -> Result<()> {
        let number = self.prompts.fetch_add(1, Ordering::Relaxed);
        let prompt: Vec<usize> = (0..prompt)
            .map(|index| FIRST_ID + (number * 7919 + index * 7 + index * index) % IDS)
            .collect();
        let body = json!({
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "priority": priority,
        });
        let body = body.to_string();
        let mut stream = UnixStream::connect(self.socket).context("andond does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: andon\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        // Far more than the events of the longest answer.
        let mut lines = BufReader::new(stream.take(1 << 26));
        let mut line = String::new();
        let mut any = false;
        while lines.read_line(&mut line)? > 0 {
            if line.starts_with("data: {") {
                ensure!(!line.contains("\"error\""), "{}", line.trim());
                any = true;
                if !event(Instant::now()) {
                    return Ok(());
                }
            } else if line.starts_with("HTTP/1.1 ") && !line.contains(" 200 ") {
                bail!("andond refused: {}", line.trim());
            }
            line.clear();
        }
        ensure!(any, "andond did not answer with a stream");
        Ok(())
    }
}
