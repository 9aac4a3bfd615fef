//! Sockets passed by whoever starts a process, each case in a process of its own without another thread.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio, exit};

use andon_os::{listens_for_streams, take_passed};

/// Names the case that a process is for.
const CASE: &str = "ANDON_ACTIVATION_CASE";

fn main() {
    match env::var(CASE).as_deref() {
        Ok(case) => report(case),
        Err(_) => cases(),
    }
}

/// What the process that was started says of what it was passed.
fn report(case: &str) {
    let own = (case == "own").then(|| File::open("/dev/null").expect("a file"));
    match take_passed() {
        Ok(passed) => {
            let listening = |one: &OwnedFd| listens_for_streams(one).unwrap_or(false);
            let numbers: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
            let left = env::vars().any(|(name, _)| name.starts_with("LISTEN_"));
            let again = take_passed().map(|passed| passed.len());
            // Whoever starts programs passes none of it on.
            let inherited = Command::new("sh")
                .args(["-c", "true 2>/dev/null <&3 && echo open || echo closed"])
                .output()
                .expect("a shell");
            println!(
                "{numbers:?} {:?} {left} {:?} {}",
                passed.iter().map(listening).collect::<Vec<_>>(),
                again.ok(),
                String::from_utf8_lossy(&inherited.stdout).trim()
            );
        }
        Err(error) => println!("error: {error}"),
    }
    drop(own);
    exit(0);
}

/// Runs a case as a manager does: the sockets at 3 and 4, where `redirections` puts them, and `variables` in the environment.
fn run(case: &str, folder: &Path, redirections: &str, variables: &str) -> String {
    let [first, second] = ["first", "second"].map(|name| {
        let path = folder.join(name);
        drop(std::fs::remove_file(&path));
        UnixListener::bind(path).expect("a socket")
    });
    let script = format!("{variables} exec \"$0\" {redirections} <&- 1>&2");
    let output = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg::<&OsStr>(env::current_exe().expect("this program").as_ref())
        .env(CASE, case)
        .stdin(Stdio::from(OwnedFd::from(first)))
        .stdout(Stdio::from(OwnedFd::from(second)))
        .output()
        .expect("a shell");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn cases() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let both = "3<&0 4<&1";
    let meant = "LISTEN_PID=$$ LISTEN_FDNAMES=a:b";
    let check = |said: String, expected: &str| assert_eq!(said, expected);
    check(
        run("passed", folder, both, &format!("{meant} LISTEN_FDS=2")),
        "[3, 4] [true, true] false Some(0) closed",
    );
    // What is meant for another process stays as it is.
    check(
        run("other", folder, both, "LISTEN_PID=1 LISTEN_FDS=2"),
        "[] [] true Some(0) open",
    );
    check(run("none", folder, "", ""), "[] [] false Some(0) closed");
    for (count, why) in [
        (
            "two",
            "LISTEN_FDS is \"two\", which is no number from 0 to 16",
        ),
        (
            "-1",
            "LISTEN_FDS is \"-1\", which is no number from 0 to 16",
        ),
        (
            "17",
            "LISTEN_FDS is \"17\", which is no number from 0 to 16",
        ),
    ] {
        let said = run(
            "count",
            folder,
            both,
            &format!("{meant} LISTEN_FDS={count}"),
        );
        check(said, &format!("error: {why}"));
    }
    let said = run("closed", folder, both, &format!("{meant} LISTEN_FDS=3"));
    assert!(
        said.starts_with("error: descriptor 5 of LISTEN_FDS: Bad file"),
        "{said}"
    );
    check(
        run("own", folder, "", &format!("{meant} LISTEN_FDS=1")),
        "error: descriptor 3 of LISTEN_FDS: it was opened by this process",
    );
    // A socket that is connected is passed all the same: what it is is for the caller to look at.
    let (stream, _other) = UnixStream::pair().expect("sockets");
    assert!(!listens_for_streams(stream).expect("a socket"));
    println!("sockets that are passed: good");
}
