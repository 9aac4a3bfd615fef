//! Checks under compute-sanitizer, on small sizes: accesses outside of memory, barriers that not all come to, races.
//!
//! racecheck takes no order but that of barriers at which all wait. Decode kernels hand over with one warp going on, so it is
//! run on a build in which both wait, and its report of the other is shown beside it.

use crate::children::{Done, Ended, Task};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, io};

/// Longest that all checks together are waited for under a tool; those that take longer are told, and are no failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);

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

/// A build in which races of the handing over are expected to be reported.
const ONE_WAITS: &str = "racecheck hand_over, one warp waits";

/// The tool of `PATH`, or where toolkits are usually.
pub(crate) fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/cuda/bin".into(), "/opt/cuda/bin".into()])
        .map(|folder| folder.join("compute-sanitizer"))
        .find(|file| file.is_file())
}

/// `checks` under every tool, and the handing over under racecheck, of this program and, where both warps wait, of `both_wait`.
///
/// # Errors
/// If this program's file is not known.
pub(crate) fn tasks(
    sanitizer: &Path,
    checks: &[&str],
    both_wait: Option<&Path>,
) -> io::Result<Vec<Task>> {
    let program = env::current_exe()?;
    let task = |tool: &str, program: &OsStr, check: &str, title: String| {
        let mut command = Command::new(sanitizer);
        command.args(["--error-exitcode", &FOUND.to_string(), "--tool", tool]);
        command.arg(program).args(["--small", "--here", check]);
        Task::new(title, command)
    };
    let mut tasks = Vec::new();
    for (tool, some) in TOOLS {
        for &check in some.unwrap_or(checks) {
            tasks.push(task(
                tool,
                program.as_ref(),
                check,
                format!("{tool} {check}"),
            ));
        }
    }
    let one = task(
        "racecheck",
        program.as_ref(),
        "hand_over",
        ONE_WAITS.to_owned(),
    );
    tasks.push(one);
    if let Some(program) = both_wait {
        let title = "racecheck hand_over, both warps wait".to_owned();
        tasks.push(task("racecheck", program.as_ref(), "hand_over", title));
    }
    Ok(tasks)
}

/// Whether what became of a check is a failure: all but no report, too little time, and the report that is expected.
pub(crate) fn fails(done: &Done) -> bool {
    match done.ended {
        Ended::Unfinished | Ended::With(Some(0)) => false,
        Ended::With(Some(FOUND)) => done.name != ONE_WAITS,
        Ended::With(_) => true,
    }
}
