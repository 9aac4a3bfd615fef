//! Programs that are run for a bounded time, some at once, and what they say.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// One to be run.
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) command: Command,
}

impl Task {
    pub(crate) fn new(name: impl Into<String>, command: Command) -> Task {
        Task {
            name: name.into(),
            command,
        }
    }
}

/// How one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit code; none if a signal ended it.
    With(Option<i32>),
    /// Not within its time.
    Unfinished,
}

/// What became of one.
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) ended: Ended,
    pub(crate) seconds: f64,
    /// Both of its outputs.
    pub(crate) said: String,
}

impl Done {
    pub(crate) fn is_good(&self) -> bool {
        self.ended == Ended::With(Some(0))
    }

    /// What it said at the end, for a failure.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<&str> {
        let lines: Vec<&str> = self.said.lines().filter(|line| !line.is_empty()).collect();
        let from = lines.len().saturating_sub(count);
        lines[from..].to_vec()
    }
}

struct Running {
    name: String,
    child: Child,
    said: PathBuf,
    began: Instant,
}

impl Running {
    fn start(task: Task, folder: &Path, number: usize) -> Result<Running> {
        let Task { name, mut command } = task;
        let said = folder.join(format!("said.{number}"));
        let output = File::create(&said)?;
        let program = PathBuf::from(command.get_program());
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Running {
            name,
            child,
            said,
            began: Instant::now(),
        })
    }

    /// How it ended, if it has, or by now had to.
    fn ended(&mut self, until: Instant) -> Result<Option<Ended>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(Ended::With(status.code())));
        }
        if Instant::now() < until {
            return Ok(None);
        }
        // Tools have what they watch as a child of their own.
        let group = format!("-{}", self.child.id());
        Command::new("kill")
            .args(["-KILL", "--", &group])
            .status()?;
        self.child.wait()?;
        Ok(Some(Ended::Unfinished))
    }

    fn done(&self, ended: Ended) -> Done {
        Done {
            name: self.name.clone(),
            ended,
            seconds: self.began.elapsed().as_secs_f64(),
            said: String::from_utf8_lossy(&fs::read(&self.said).unwrap_or_default()).into_owned(),
        }
    }
}

/// Runs all of them, `jobs` at once, none after `until`. Those that were never started are unfinished.
///
/// # Errors
/// If one cannot be started.
pub(crate) fn run(
    tasks: Vec<Task>,
    (jobs, until): (usize, Instant),
    folder: &Path,
    mut ended: impl FnMut(Done),
) -> Result<()> {
    let mut waiting: VecDeque<Task> = tasks.into();
    let mut running: Vec<Running> = Vec::new();
    let mut number = 0;
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < jobs.max(1)
            && Instant::now() < until
            && let Some(task) = waiting.pop_front()
        {
            number += 1;
            running.push(Running::start(task, folder, number)?);
        }
        if running.is_empty() {
            for task in waiting.drain(..) {
                ended(Done {
                    name: task.name,
                    ended: Ended::Unfinished,
                    seconds: 0.0,
                    said: String::new(),
                });
            }
            break;
        }
        let mut index = 0;
        while index < running.len() {
            match running[index].ended(until)? {
                Some(how) => ended(running.remove(index).done(how)),
                None => index += 1,
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
