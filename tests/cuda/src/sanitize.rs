//! Checks under compute-sanitizer, on small sizes: accesses outside of memory, barriers that not all come to, races.
//!
//! racecheck takes no order but that of barriers at which all wait. Decode kernels hand over with one warp going on, so it is
//! run on a build in which both wait, and its report of the other is shown beside it.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Longest that one check is waited for under a tool.
const LIMIT: Duration = Duration::from_secs(150);

/// What the tool exits with where it found something.
const FOUND: i32 = 9;

/// Tools, and the checks that are fast enough under each; `None` for all.
const TOOLS: [(&str, Option<&[&str]>); 3] = [
    ("memcheck", None),
    (
        "synccheck",
        Some(&["hand_over", "norm", "columns", "heads", "top_k"]),
    ),
    (
        "racecheck",
        Some(&["norm", "columns", "heads", "glu", "quantize"]),
    ),
];

/// The tool of `PATH`, or where toolkits are usually.
pub(crate) fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/cuda/bin".into(), "/opt/cuda/bin".into()])
        .map(|folder| folder.join("compute-sanitizer"))
        .find(|file| file.is_file())
}

/// A check under a tool, on its way.
struct Running {
    title: String,
    child: Child,
    said: PathBuf,
    /// Whether a report is a failure.
    fails: bool,
}

/// How one ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Clean,
    Reported,
    Failed,
    Unfinished,
}

impl Running {
    fn start(
        sanitizer: &Path,
        tool: &str,
        program: &OsStr,
        check: &str,
        title: String,
        fails: bool,
    ) -> Result<Running> {
        let folder = env::temp_dir().join(format!("andon-cuda-check-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let said = folder.join(title.replace(' ', "-"));
        let output = File::create(&said)?;
        let child = Command::new(sanitizer)
            .args(["--error-exitcode", &FOUND.to_string(), "--tool", tool])
            .arg(program)
            .args(["--small", "--only", check])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", sanitizer.display()))?;
        Ok(Running {
            title,
            child,
            said,
            fails,
        })
    }

    /// Waits until it ends, or `until`.
    fn end(&mut self, until: Instant) -> Result<Ended> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(match status.code() {
                    Some(0) => Ended::Clean,
                    Some(FOUND) => Ended::Reported,
                    _ => Ended::Failed,
                });
            }
            if Instant::now() >= until {
                // The tool has the check as a child of its own.
                let group = format!("-{}", self.child.id());
                Command::new("kill")
                    .args(["-KILL", "--", &group])
                    .status()?;
                self.child.wait()?;
                return Ok(Ended::Unfinished);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Runs `checks` under every tool, and the handing over under racecheck, of this program and, where both warps wait, of
/// `both_wait`.
///
/// # Errors
/// If a tool found something that is not explained, or could not be run.
pub(crate) fn all(sanitizer: &Path, checks: &[&str], both_wait: Option<&Path>) -> Result<()> {
    let program = env::current_exe()?;
    let mut running = Vec::new();
    for (tool, some) in TOOLS {
        for &check in some.unwrap_or(checks) {
            let title = format!("{tool} {check}");
            running.push(Running::start(
                sanitizer,
                tool,
                program.as_os_str(),
                check,
                title,
                true,
            )?);
        }
    }
    let one_waits = "racecheck hand_over, one warp waits".to_owned();
    running.push(Running::start(
        sanitizer,
        "racecheck",
        program.as_os_str(),
        "hand_over",
        one_waits,
        false,
    )?);
    if let Some(program) = both_wait {
        let both = "racecheck hand_over, both warps wait".to_owned();
        running.push(Running::start(
            sanitizer,
            "racecheck",
            program.as_os_str(),
            "hand_over",
            both,
            true,
        )?);
    }
    let until = Instant::now() + LIMIT;
    let mut failed = Vec::new();
    for mut one in running {
        let ended = one.end(until)?;
        let said = fs::read_to_string(&one.said).unwrap_or_default();
        let (mark, wrong) = match ended {
            Ended::Clean => ("clean", false),
            Ended::Reported => ("reports", one.fails),
            Ended::Failed => ("FAILED", true),
            Ended::Unfinished => ("not finished", false),
        };
        println!("{:<38} {mark}", one.title);
        if ended != Ended::Clean {
            let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
            let shown = lines.len().saturating_sub(12);
            for line in &lines[shown..] {
                println!("    {line}");
            }
        }
        if wrong {
            failed.push(one.title);
        }
    }
    if both_wait.is_none() {
        println!(
            "races of the handing over are not settled: there is no build in which both warps wait"
        );
    }
    if !failed.is_empty() {
        bail!("compute-sanitizer: {}", failed.join("; "));
    }
    Ok(())
}
