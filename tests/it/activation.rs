//! Sockets that the service manager listens on: served from the first client on, left alone at the end, and no others; what is
//! asked while the model is being loaded waits; and a daemon that nobody asks ends until somebody does.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::{Builder, Daemon, READY_TIMEOUT, SOCKETS};
use andon_tests::http::{Client, Reply};
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

use crate::ctl::{andonctl, bad, good};

/// Exit status of a configuration that only a person can mend.
const CONFIGURATION: i32 = 78;

/// More than any stop in a debug build on a busy machine takes.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether the program is there that listens and becomes the daemon; a test without it says so and ends.
fn can_activate() -> bool {
    let found = Command::new("systemd-socket-activate")
        .arg("--version")
        .output();
    if found.is_err() {
        eprintln!("skipped: there is no systemd-socket-activate here (Debian: systemd)");
    }
    found.is_ok()
}

/// Waits until somebody listens on the HTTP socket.
fn listened_on(daemon: &mut Daemon) {
    let began = Instant::now();
    while !daemon.http_socket().exists() {
        assert!(began.elapsed() < READY_TIMEOUT, "{}", daemon.log());
        assert!(daemon.is_running(), "{}", daemon.log());
        thread::sleep(Duration::from_millis(5));
    }
}

fn ask(client: &Client, more: &Value) -> Reply {
    let mut body = json!({ "prompt": "The machine", "max_tokens": 4, "temperature": 0 });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    client.post("/v1/completions", &body).unwrap()
}

fn complete(daemon: &Daemon) {
    let reply = ask(&daemon.http(), &json!({}));
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// A daemon whose load hangs, near its end, until it is let go on: it is to read a draft from a pipe that nobody writes to.
struct Slow {
    daemon: Daemon,
    gate: PathBuf,
    _folder: tempfile::TempDir,
}

impl Slow {
    fn start(builder: Builder) -> Slow {
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("draft.gguf");
        let made = Command::new("mkfifo").arg(&gate).status().unwrap();
        assert!(made.success());
        let config = format!("[speculation]\ndraft = '{}'\n", gate.display());
        Slow {
            daemon: builder.config(&config).spawn().unwrap(),
            gate,
            _folder: folder,
        }
    }

    /// Lets it go on, without that draft, and waits until it is ready.
    fn go_on(&mut self) {
        drop(File::options().write(true).open(&self.gate).unwrap());
        self.daemon.wait_ready().unwrap();
    }
}

/// Waits until `done`.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < READY_TIMEOUT, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_client_starts_it_and_both_sockets_are_served() {
    if !can_activate() {
        return;
    }
    let mut daemon = Daemon::builder().activated(&SOCKETS).spawn().unwrap();
    listened_on(&mut daemon);
    // It comes before there is a process, let alone a model.
    let asked = Instant::now();
    complete(&daemon);
    println!(
        "answered {} ms after the connection that started the daemon",
        asked.elapsed().as_millis()
    );
    daemon.wait_ready().unwrap();
    complete(&daemon);
    good(&andonctl(&daemon, &["status"]));
    daemon.terminate().unwrap();
    assert!(daemon.wait(STOP_TIMEOUT).unwrap().success());
    // They are the manager's, which goes on listening.
    for name in SOCKETS {
        assert!(daemon.folder().join(name).exists(), "{name}");
    }
}

#[test]
fn what_was_not_passed_is_listened_on_all_the_same() {
    if !can_activate() {
        return;
    }
    let mut daemon = Daemon::builder().activated(&SOCKETS[..1]).spawn().unwrap();
    listened_on(&mut daemon);
    assert_eq!(daemon.http().get("/healthz").unwrap().status, 200);
    daemon.wait_ready().unwrap();
    good(&andonctl(&daemon, &["status"]));
    daemon.terminate().unwrap();
    assert!(daemon.wait(STOP_TIMEOUT).unwrap().success());
    assert!(daemon.http_socket().exists() && !daemon.wire_socket().exists());
}

#[test]
fn a_socket_that_the_configuration_does_not_name_is_the_operators_mistake() {
    if !can_activate() {
        return;
    }
    let refused = |names: &[&str], config: &str, why: &str| {
        let mut daemon = Daemon::builder()
            .activated(names)
            .config(config)
            .spawn()
            .unwrap();
        listened_on(&mut daemon);
        // Whoever comes is not answered.
        assert!(daemon.http().get("/healthz").is_err());
        let status = daemon.wait(STOP_TIMEOUT).unwrap();
        assert_eq!(status.code(), Some(CONFIGURATION), "{}", daemon.log());
        let said = daemon.log();
        assert!(said.contains(why), "no word of {why} in\n{said}");
    };
    refused(
        &[SOCKETS[0], SOCKETS[1], "other.sock"],
        "",
        "other.sock, which the configuration does not name",
    );
    refused(
        &SOCKETS,
        "[wire]\nenabled = false\n",
        "wire.sock, which the configuration does not name",
    );
}

#[test]
fn who_comes_while_it_is_away_is_served_by_the_next_start() {
    let mut daemon = Daemon::builder().held().start().unwrap();
    complete(&daemon);
    for _ in 0..2 {
        daemon.kill().unwrap();
        let client = daemon.http();
        let early = thread::spawn(move || client.get("/healthz").unwrap().status);
        // Nobody is there to answer, or to refuse it.
        thread::sleep(Duration::from_millis(100));
        assert!(!early.is_finished());
        daemon.relaunch(&[]).unwrap();
        daemon.wait_ready().unwrap();
        assert_eq!(early.join().unwrap(), 200);
        complete(&daemon);
    }
}

#[test]
fn what_is_asked_while_the_model_is_being_loaded_waits_for_it() {
    let mut slow = Slow::start(Daemon::builder().held());
    let folder = slow.daemon.folder().to_owned();
    let post = |path: &'static str, body: Value| {
        let client = slow.daemon.http();
        thread::spawn(move || client.post(path, &body).unwrap().status)
    };
    let prompt = json!({ "prompt": "The machine", "max_tokens": 2 });
    let mut waiting = vec![
        post("/v1/completions", prompt.clone()),
        post(
            "/v1/completions",
            json!({ "prompt": [72, 101], "max_tokens": 2, "echo": true }),
        ),
        post(
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 2 }),
        ),
        post("/tokenize", json!({ "content": "The machine" })),
    ];
    let client = slow.daemon.http();
    waiting.push(thread::spawn(move || {
        client.get("/v1/models").unwrap().status
    }));
    // One that is of no worth any more when the model is there.
    let late = {
        let client = slow.daemon.http();
        thread::spawn(move || ask(&client, &json!({ "deadline_ms": 200 })))
    };
    let wire = {
        let socket = slow.daemon.wire_socket();
        let program = slow.daemon.programs().join("andonctl");
        thread::spawn(move || {
            let mut andonctl = Command::new(program);
            andonctl.arg("--socket").arg(socket).arg("ask").arg("Hello");
            andonctl.current_dir(folder).output().unwrap()
        })
    };
    let late = late.join().unwrap();
    assert_eq!(late.status, 504, "{}", late.text());
    // Who asks how it is does not wait.
    assert_eq!(
        slow.daemon.http().get("/readyz").unwrap().text(),
        "loading\n"
    );
    assert_eq!(slow.daemon.http().get("/healthz").unwrap().status, 200);
    assert!(!waiting.iter().any(thread::JoinHandle::is_finished) && !wire.is_finished());
    slow.go_on();
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), 200);
    }
    good(&wire.join().unwrap());
}

#[test]
fn no_more_wait_for_the_model_than_there_are_places() {
    let builder = Daemon::builder().held().config("[limits]\nqueue-max = 8\n");
    let mut slow = Slow::start(builder);
    let asked = (0..16).map(|_| {
        let client = slow.daemon.http();
        thread::spawn(move || ask(&client, &json!({})).status)
    });
    let asked: Vec<_> = asked.collect();
    // An eighth of the places is kept for alarms.
    eventually("the others are refused", || {
        asked.iter().filter(|one| one.is_finished()).count() == 9
    });
    slow.go_on();
    let ended: Vec<u16> = asked.into_iter().map(|one| one.join().unwrap()).collect();
    let count = |wanted| ended.iter().filter(|&&status| status == wanted).count();
    assert_eq!((count(200), count(429)), (7, 9), "{ended:?}");
}

#[test]
fn a_load_is_given_more_time_for_progress_and_for_nothing_else() {
    let mut slow = Slow::start(Daemon::builder());
    let extended = |daemon: &mut Daemon| {
        let told = daemon.told().unwrap().iter();
        told.filter(|line| *line == "EXTEND_TIMEOUT_USEC=60000000")
            .count()
    };
    eventually("it asks for more time", || extended(&mut slow.daemon) > 0);
    // What was done until it hung may be told by the next look.
    thread::sleep(Duration::from_secs(1));
    let before = extended(&mut slow.daemon);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(extended(&mut slow.daemon), before, "it hangs");
    assert!(!slow.daemon.is_ready().unwrap());
    slow.go_on();
    // Once it is ready there is nothing to be waited for.
    thread::sleep(Duration::from_secs(1));
    let told = slow.daemon.told().unwrap();
    let ready = told.iter().position(|line| line == "READY=1").unwrap();
    assert!(
        !told[ready..].iter().any(|line| line.starts_with("EXTEND_")),
        "{told:?}"
    );
}

#[test]
fn who_asks_for_a_model_that_is_not_coming_is_told_so() {
    let daemon = Daemon::builder().kept("absent").start().unwrap();
    let reply = ask(&daemon.http(), &json!({}));
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(
        reply.text().contains("no model absent is kept here"),
        "{}",
        reply.text()
    );
    assert_eq!(daemon.http().get("/v1/models").unwrap().status, 503);
}

#[test]
fn who_waits_for_a_model_that_cannot_be_served_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = TinyModel::default().bytes();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut daemon = Daemon::builder().held().model(&path).spawn().unwrap();
    let status = daemon.wait(STOP_TIMEOUT).unwrap();
    assert_eq!(status.code(), Some(CONFIGURATION), "{}", daemon.log());
    // It may have ended before it took the request on, which then waits for the next start, with a model that is whole.
    let client = daemon.http();
    let asked = thread::spawn(move || ask(&client, &json!({})));
    daemon.relaunch(&[]).unwrap();
    daemon.wait(STOP_TIMEOUT).unwrap();
    std::fs::write(&path, &whole).unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    let reply = asked.join().unwrap();
    assert!([200, 503].contains(&reply.status), "{}", reply.text());
}

#[test]
fn who_asks_a_task_that_may_come_with_the_model_waits_until_that_is_known() {
    let config = "[models]\nbundle-tasks = true\nprobation-s = 0\n";
    let mut slow = Slow::start(Daemon::builder().held().kept("helper").config(config));
    let daemon = &mut slow.daemon;
    daemon.wait_ready().unwrap();
    let folder = daemon.folder().join("source");
    std::fs::create_dir_all(folder.join("tasks")).unwrap();
    TinyModel::default().write(&folder.join("m.gguf")).unwrap();
    let task = "instructions = 'Explain {{ code }}.'\ntokens-max = 5\n";
    std::fs::write(folder.join("tasks/explain.toml"), task).unwrap();
    let words = "bundle create source --name helper --license mit";
    let words: Vec<&str> = words.split(' ').collect();
    good(&andonctl(daemon, &words));
    good(&andonctl(daemon, &["model", "add", "helper.andon"]));
    daemon.kill().unwrap();
    daemon.relaunch(&[]).unwrap();
    let ask = |task: &'static str| {
        let (program, socket) = (daemon.programs().join("andonctl"), daemon.wire_socket());
        thread::spawn(move || {
            let mut andonctl = Command::new(program);
            andonctl.arg("--socket").arg(socket);
            andonctl.args(["ask", "--task", task, "--input", r#"{"code": "E42"}"#]);
            andonctl.output().unwrap()
        })
    };
    let (known, unknown) = (ask("explain"), ask("nonsense"));
    thread::sleep(Duration::from_millis(500));
    assert!(!known.is_finished() && !unknown.is_finished());
    slow.go_on();
    good(&known.join().unwrap());
    bad(&unknown.join().unwrap(), 1, "no task of this name");
}

/// Ends when nothing was asked for a second.
const IDLE: &str = "[gateway]\nidle-exit-s = 1\n";

#[test]
fn it_ends_when_nothing_is_asked_and_the_next_start_serves_who_came() {
    let mut daemon = Daemon::builder().held().config(IDLE).start().unwrap();
    complete(&daemon);
    // Who is connected may be about to ask.
    let open = UnixStream::connect(daemon.wire_socket()).unwrap();
    thread::sleep(Duration::from_millis(2500));
    assert!(daemon.is_running(), "{}", daemon.log());
    drop(open);
    let status = daemon.wait(STOP_TIMEOUT).unwrap();
    assert!(status.success(), "{status}");
    assert!(
        daemon
            .told()
            .unwrap()
            .iter()
            .any(|line| line == "STOPPING=1")
    );
    let client = daemon.http();
    let early = thread::spawn(move || ask(&client, &json!({})).status);
    thread::sleep(Duration::from_millis(50));
    daemon.relaunch(&[]).unwrap();
    assert_eq!(early.join().unwrap(), 200);
}

#[test]
fn no_request_is_lost_between_the_end_and_the_next_start() {
    const ROUNDS: u64 = 12;
    let mut daemon = Daemon::builder().held().config(IDLE).start().unwrap();
    let (client, wire) = (daemon.http(), daemon.wire_socket());
    let asking = thread::spawn(move || {
        for round in 0..ROUNDS {
            // About when it ends: a second after the last request, and up to an eighth of that later.
            thread::sleep(Duration::from_millis(980 + round * 16));
            let reply = ask(&client, &json!({}));
            assert_eq!(reply.status, 200, "{}", reply.text());
            // On the other socket a greeting is answered, or the connection waits.
            let mut stream = UnixStream::connect(&wire).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_millis(1)))
                .unwrap();
            let nothing = stream.read(&mut [0; 1]);
            assert!(nothing.is_err(), "it was closed: {nothing:?}");
        }
    });
    let mut ends = 0;
    while !asking.is_finished() {
        if !daemon.is_running() {
            ends += 1;
            daemon.relaunch(&[]).unwrap();
        }
        thread::sleep(Duration::from_millis(2));
    }
    asking.join().unwrap();
    println!("{ends} ends within {ROUNDS} requests");
    assert!(ends > 0, "it never ended");
}

#[test]
fn a_daemon_that_nobody_would_start_again_does_not_end() {
    let mut daemon = Daemon::builder().config(IDLE).start().unwrap();
    thread::sleep(Duration::from_millis(2500));
    assert!(daemon.is_running());
    assert!(
        daemon.log().contains("idle-exit-s has no effect"),
        "{}",
        daemon.log()
    );
}
