//! The configuration is read again while the daemon answers.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{config, free_port};
use andon_tests::daemon::Daemon;
use andon_tests::programs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ctl::{andonctl, bad, good};
use crate::metrics::{metric, sum};

/// Longest wait for what follows a signal.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test that is patient has the configuration read again beside requests; `ANDON_TEST_RELOADS` says another number.
const RELOADS: usize = 60;

fn tokens(daemon: &Daemon) -> u64 {
    let body = json!({ "prompt": "The machine", "temperature": 0 });
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let tokens = &reply.json().unwrap()["usage"]["completion_tokens"];
    tokens.as_u64().unwrap()
}

/// `andonctl reload`, once there is room for what the service manager hears of it.
fn reload(daemon: &Daemon, arguments: &[&str]) -> Output {
    daemon.forget_told();
    andonctl(daemon, &[&["reload"], arguments].concat())
}

fn reloaded(daemon: &Daemon) -> Value {
    serde_json::from_str(&good(&reload(daemon, &["--json"]))).unwrap()
}

fn wait_for_log(daemon: &Daemon, words: &str) {
    let start = Instant::now();
    while !daemon.log().contains(words) {
        assert!(start.elapsed() < PATIENCE, "{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_live_holds_for_the_next_request_and_disturbs_none_that_is_answered() {
    let daemon = Daemon::builder()
        .config("[limits]\ntokens-max-default = 6\n")
        .start()
        .unwrap();
    let long =
        json!({ "prompt": "The machine", "max_tokens": 400, "temperature": 0, "stream": true });
    let text = |events: &mut dyn Iterator<Item = Value>| {
        events
            .map(|event| {
                event["choices"][0]["text"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect::<String>()
    };
    let events = |daemon: &Daemon| {
        let events = daemon.http().events("/v1/completions", &long).unwrap();
        let data = events.map(|event| event.unwrap().data);
        data.take_while(|data| data != "[DONE]")
            .map(|data| serde_json::from_str::<Value>(&data).unwrap())
    };
    let expected = text(&mut events(&daemon));
    assert_eq!(tokens(&daemon), 6);
    let mut under_way = events(&daemon);
    let first = under_way.next().unwrap();
    daemon
        .configure(
            "[limits]\ntokens-max-default = 3\n[log]\nlevel = \"warn\"\n[wire]\nrequests-max = 15\n\
             [task.greet]\ninstructions = \"Greet {{ name }}.\"\ntokens-max = 2\n",
        )
        .unwrap();
    let said = good(&reload(&daemon, &[]));
    assert_eq!(
        said,
        "limits.tokens-max-default  live\nlog.level  live\ntask.greet  live\nwire.requests-max  live\n"
    );
    let answered = || daemon.log().matches("answered").count();
    let before = answered();
    assert_eq!(tokens(&daemon), 3);
    let ask = [
        "ask",
        "--task",
        "greet",
        "--input",
        r#"{"name":"Ann"}"#,
        "--stats",
    ];
    let output = andonctl(&daemon, &ask);
    good(&output);
    let stats = String::from_utf8_lossy(&output.stderr);
    assert!(stats.contains(" 2 tokens"), "{stats}");
    assert_eq!(answered(), before, "{}", daemon.log());
    // What was under way all the time ends as it would have.
    let rest = std::iter::once(first).chain(under_way);
    assert_eq!(text(&mut rest.into_iter()), expected);
    assert_eq!(good(&reload(&daemon, &[])), "nothing differs\n");
}

#[test]
fn a_file_with_problems_changes_nothing_and_each_is_reported() {
    // Nobody listens there.
    let broker = config(free_port().unwrap());
    let daemon = Daemon::builder()
        .config(&(broker + "[limits]\ntokens-max-default = 6\n"))
        .start()
        .unwrap();
    let missing = daemon.folder().join("no-such-file");
    daemon
        .configure(&format!(
            "[limits]\ntokens-max-default = 3\nqueue-maxx = 1\n[log]\nlevel = \"not=a=level\"\n\
             [models]\nadmin-groups = [\"no-such-group-here\"]\n\
             [task.broken]\ninstructions = \"Greet {{{{ name\"\n\
             [mqtt]\nusername = \"andon\"\npassword-file = \"{}\"\n",
            missing.display()
        ))
        .unwrap();
    let problems = [
        "limits.queue-maxx",
        "log.level",
        "models.admin-groups",
        "task.broken.instructions",
        "mqtt.password-file",
    ];
    let refused = reload(&daemon, &[]);
    for problem in problems {
        bad(&refused, 1, problem);
    }
    bad(&refused, 1, "nothing was changed");
    assert!(refused.stdout.is_empty());
    let refused = reload(&daemon, &["--json"]);
    let said: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(said["problems"].as_array().unwrap().len() >= problems.len());
    assert_eq!((&said["live"], &said["restart"]), (&json!([]), &json!([])));
    for problem in problems {
        assert!(daemon.log().contains(problem), "{problem}");
    }
    assert_eq!(tokens(&daemon), 6);
    // It is no TOML at all, or is not there.
    let path = daemon.folder().join("andond.toml");
    let text = fs::read(&path).unwrap();
    fs::write(&path, "[limits\n").unwrap();
    bad(&reload(&daemon, &[]), 1, "line 1");
    fs::remove_file(&path).unwrap();
    bad(&reload(&daemon, &[]), 1, "cannot read");
    assert_eq!(tokens(&daemon), 6);
    assert_eq!(
        sum(&daemon, "andon_config_reloads_total", "refused") as u64,
        4
    );
    fs::write(&path, text).unwrap();
    assert_eq!(tokens(&daemon), 6);
}

#[test]
fn what_needs_a_restart_is_named_until_there_is_one() {
    let mut daemon = Daemon::builder().start().unwrap();
    daemon
        .configure("[engine]\nparallel-max = 2\n[gateway]\nname = \"other\"\n[limits]\ntokens-max-default = 3\n")
        .unwrap();
    let restart = json!(["engine.parallel-max", "gateway.name"]);
    let said = reloaded(&daemon);
    assert_eq!(said["live"], json!(["limits.tokens-max-default"]));
    assert_eq!(said["restart"], restart);
    assert_eq!(metric::<u32>(&daemon, "andon_config_restart_keys"), 2);
    let said = good(&reload(&daemon, &[]));
    assert_eq!(
        said,
        "engine.parallel-max  needs a restart\ngateway.name  needs a restart\n"
    );
    let status = good(&andonctl(&daemon, &["status", "--json"]));
    assert!(!status.contains("\"other\""), "{status}");
    daemon.restart().unwrap();
    let said = reloaded(&daemon);
    assert_eq!((&said["live"], &said["restart"]), (&json!([]), &json!([])));
    let status = good(&andonctl(&daemon, &["status", "--json"]));
    assert!(status.contains("\"other\""), "{status}");
}

#[test]
fn a_hangup_does_the_same_and_the_service_manager_hears_of_it() {
    let mut daemon = Daemon::builder()
        .config("[limits]\ntokens-max-default = 6\n")
        .start()
        .unwrap();
    daemon
        .configure("[limits]\ntokens-max-default = 3\n")
        .unwrap();
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_for_log(&daemon, "was read again");
    assert_eq!(tokens(&daemon), 3);
    daemon.configure("[limits]\nno-such-key = 1\n").unwrap();
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_for_log(&daemon, "was not read again");
    assert!(daemon.log().contains("limits.no-such-key"));
    assert_eq!(tokens(&daemon), 3);
    let start = Instant::now();
    let kinds = loop {
        let told = daemon.told().unwrap();
        let kinds = told.iter().filter_map(|line| line.split('=').next());
        let wanted = |kind: &&str| ["RELOADING", "MONOTONIC_USEC", "READY"].contains(kind);
        let kinds: Vec<String> = kinds.filter(wanted).map(str::to_owned).collect();
        if kinds.iter().filter(|kind| *kind == "READY").count() == 3 {
            break kinds;
        }
        assert!(start.elapsed() < PATIENCE, "{told:?}");
        thread::sleep(Duration::from_millis(20));
    };
    let once = ["RELOADING", "MONOTONIC_USEC", "READY"];
    assert_eq!(kinds, [&["READY"][..], &once, &once].concat());
}

#[test]
fn a_hangup_before_anybody_watches_for_it_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("andond.toml");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let daemon = Command::new(programs::folder().unwrap().join("andond"))
        .arg("--config")
        .arg(&path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Opens when the daemon has come to where it reads it.
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let id = Pid::from_raw(daemon.id().try_into().unwrap());
    kill(id, Signal::SIGHUP).unwrap();
    file.write_all(b"[limits]\nno-such-key = 1\n").unwrap();
    drop(file);
    let output = daemon.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{} {said}", output.status);
    assert!(said.contains("limits.no-such-key"), "{said}");
}

#[test]
fn reloads_in_a_row_beside_requests_lose_none() {
    let daemon = Daemon::builder()
        .config("[limits]\ntokens-max-default = 3\n")
        .start()
        .unwrap();
    let reloads = std::env::var("ANDON_TEST_RELOADS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(RELOADS);
    let over = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0usize;
                    while !over.load(Ordering::Relaxed) {
                        let tokens = tokens(&daemon);
                        assert!((3..5).contains(&tokens), "{tokens}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        for count in 0..reloads {
            let tokens = 3 + count % 2;
            let level = ["info", "warn"][count % 2];
            daemon
                .configure(&format!(
                    "[limits]\ntokens-max-default = {tokens}\n[log]\nlevel = \"{level}\"\n\
                     [http]\nconnections-max = {}\n[task.t{}]\ninstructions = \"Greet.\"\n",
                    4 + count % 3,
                    count % 2,
                ))
                .unwrap();
            if count % 5 == 4 {
                daemon.forget_told();
                daemon.signal(Signal::SIGHUP).unwrap();
            } else {
                good(&reload(&daemon, &[]));
            }
        }
        over.store(true, Ordering::Relaxed);
        asking
            .into_iter()
            .map(|one| one.join().unwrap())
            .sum::<usize>()
    });
    assert!(answered > 0);
    println!("{reloads} reloads beside {answered} answers");
    assert_eq!(
        sum(&daemon, "andon_config_reloads_total", "refused") as u64,
        0
    );
}

#[test]
fn whoever_may_not_add_models_may_not_reload_either() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let daemon = Daemon::builder()
        .config("[wire]\nsocket-mode = \"0666\"\n[limits]\ntokens-max-default = 6\n")
        .start()
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(daemon.folder(), open).unwrap();
    daemon
        .configure("[limits]\ntokens-max-default = 3\n")
        .unwrap();
    // The program lies where only its owner may go; the copy beside the socket may be run by all.
    let program = daemon.folder().join("andonctl");
    fs::copy(daemon.programs().join("andonctl"), &program).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .arg("--socket")
        .arg(daemon.wire_socket())
        .arg("reload")
        .current_dir("/")
        .output()
        .unwrap();
    bad(&output, 1, "admin-groups");
    assert_eq!(tokens(&daemon), 6);
}
