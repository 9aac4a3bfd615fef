//! What the daemon gives up when it starts: the probe, confined by the daemon's own code, is refused everything, and unconfined
//! is not; and the daemon says what is in force.
//!
//! That the daemon still does all it does is what every other module here shows: the sandbox is on by default.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use serde_json::Value;
use tempfile::TempDir;

use crate::ctl::{andonctl, good};

/// A configuration, in folders of its own, and a secret and a folder beside them.
fn place(more: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["etc", "run", "spool", "other"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("other/secret"), "a secret").unwrap();
    TinyModel::default()
        .write(Path::new(&at("etc/m.gguf")))
        .unwrap();
    let text = format!(
        "[model]\npath = '{}'\n[models]\ndir = '{}'\n[cache]\ndir = '{}'\n[spool]\ndir = '{}'\n[http]\nsocket = '{}'\n[wire]\n\
         socket = '{}'\n{more}",
        at("etc/m.gguf"),
        at("models"),
        at("cache"),
        at("spool"),
        at("run/h"),
        at("run/w"),
    );
    fs::write(at("etc/andond.toml"), text).unwrap();
    folder
}

/// The probe, which a test build makes beside the test.
fn probe(folder: &Path, confined: bool) -> Output {
    let mut probe = Command::new(env!("CARGO_BIN_EXE_andon-probe"));
    if confined {
        probe.arg("--config").arg(folder.join("etc/andond.toml"));
    }
    probe
        .arg("--own")
        .arg(folder.join("spool"))
        .arg("--outside")
        .arg(folder.join("other"))
        .arg("--secret")
        .arg(folder.join("other/secret"))
        .output()
        .unwrap()
}

/// The attempts of which the probe says so.
fn said<'a>(output: &'a str, word: &str) -> Vec<&'a str> {
    let lines = output.lines().filter_map(|line| line.strip_prefix(word));
    lines
        .map(|line| line.trim().split(':').next().unwrap_or(line))
        .collect()
}

#[test]
fn what_takes_over_the_daemon_gets_nowhere() {
    let folder = place("");
    let output = probe(folder.path(), true);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let refused = said(&text, "refused ");
    for attempt in [
        &*format!("write to {}", folder.path().join("other").display()),
        &*format!("read {}", folder.path().join("other/secret").display()),
        "run a program",
        "make a process",
        "trace another process",
        "map writable and executable memory",
        "map a file of its own as code",
        "load a module's file",
        "open a raw socket",
        "open a netlink socket",
        "get users of its own",
        "connect to a port that is not named",
    ] {
        assert!(refused.contains(&attempt), "{attempt}: {text}");
    }
}

#[test]
fn what_is_not_confined_gets_somewhere() {
    let folder = place("");
    let output = probe(folder.path(), false);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let through = said(&text, "LET THROUGH ");
    for attempt in [
        &*format!("write to {}", folder.path().join("other").display()),
        &*format!("read {}", folder.path().join("other/secret").display()),
        "run a program",
        "make a process",
        "map writable and executable memory",
        "map a file of its own as code",
        "open a netlink socket",
    ] {
        assert!(through.contains(&attempt), "{attempt}: {text}");
    }
}

#[test]
fn each_part_refuses_its_own_without_the_other() {
    let [files, memory] = ["write to /usr", "map writable and executable memory"];
    for (off, refused, through) in [("landlock", memory, files), ("seccomp", files, memory)] {
        let folder = place(&format!("[sandbox]\n{off} = 'off'\n"));
        let output = probe(folder.path(), true);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said(&text, "refused ").contains(&refused), "{text}");
        assert!(said(&text, "LET THROUGH ").contains(&through), "{text}");
    }
}

#[test]
fn the_daemon_says_what_is_in_force() {
    let status = |config: &str| -> Value {
        let daemon = Daemon::builder().config(config).start().unwrap();
        serde_json::from_str(&good(&andonctl(&daemon, &["status", "--json"]))).unwrap()
    };
    let whole = status("[sandbox]\nlandlock = 'require'\nseccomp = 'require'\n");
    assert_eq!(whole["sandbox"]["seccomp"]["on"], true, "{whole}");
    assert!(
        whole["sandbox"]["landlock"]["level"].as_u64() >= Some(2),
        "{whole}"
    );
    assert_eq!(whole["spool"]["durable"], true, "{whole}");
    assert_eq!(whole["models"].as_array().map(Vec::len), Some(1), "{whole}");
    let off = status("[sandbox]\nlandlock = 'off'\nseccomp = 'off'\n");
    for part in ["landlock", "seccomp"] {
        assert_eq!(
            off["sandbox"][part],
            serde_json::json!({"on": false}),
            "{off}"
        );
    }
}
