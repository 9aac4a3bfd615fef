//! `andonctl` against a daemon, and what a test expects of it.

use std::process::{Command, Output, Stdio};

use andon_tests::daemon::Daemon;
use andon_tests::programs;

/// Runs it in the daemon's folder.
pub(crate) fn andonctl(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(programs::folder().unwrap().join("andonctl"))
        .arg("--socket")
        .arg(daemon.wire_socket())
        .args(arguments)
        .current_dir(daemon.folder())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What it printed, having done well.
#[track_caller]
pub(crate) fn good(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// That it did not, with this status and for this reason.
#[track_caller]
pub(crate) fn bad(output: &Output, status: i32, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(why), "{why:?} is not in: {stderr}");
}
