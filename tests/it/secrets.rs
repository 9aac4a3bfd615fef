//! Secrets are planted wherever one can be given, and looked for wherever the daemon says or leaves something.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, Watcher, free_port};
use andon_tests::daemon::Daemon;
use andon_tests::journald::Journald;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::ctl::andonctl;
use crate::mqtt::link::certificates;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What clients say.
const PROMPT: &str = "qzPromptHttp7f31";
const CHAT: &str = "qzPromptChat7f32";
const STOP: &str = "qzStopString7f33";
const FIELD: &str = "qzTaskField7f34";
const MQTT: &str = "qzPromptMqtt7f35";
const WIRE: &str = "qzPromptWire7f36";
const SCHEMA: &str = "qzSchemaWord7f37";
const KEPT: &str = "qzPromptKept7f38";
/// What somebody shows at the loopback listener.
const WRONG_TOKEN: &str = "qzWrongToken7f3b-0123456789abcdef0123";
/// What the operator gives.
const PASSWORD: &str = "qzBrokerPassword7f39";
const SPOOL_KEY: &str = "qzSpoolKey7f3a-0123456789abcdefghijklmnop";

const TOKEN: &str = "qzRightToken7f3c-0123456789abcdef0123";

const ALL: [&str; 12] = [
    PROMPT,
    CHAT,
    STOP,
    FIELD,
    MQTT,
    WIRE,
    SCHEMA,
    KEPT,
    WRONG_TOKEN,
    PASSWORD,
    SPOOL_KEY,
    TOKEN,
];

/// What was said in one place.
struct Said {
    place: String,
    text: String,
}

/// Fails where a secret is found, as it is or as it would be encoded.
fn judge(said: &[Said], secrets: &[&str]) {
    use base64::Engine as _;
    for secret in secrets {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(secret);
        // Its last characters depend on what follows.
        let base64 = &base64[..base64.len() - 4];
        let bytes = format!("{:?}", secret.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        for Said { place, text } in said {
            for form in [*secret, &hex, base64, bytes] {
                assert!(!text.contains(form), "{secret} is in {place}, as {form}");
            }
        }
    }
}

struct Setup {
    folder: tempfile::TempDir,
    broker: Broker,
    loopback: u16,
    config: String,
}

impl Setup {
    fn new() -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("password"), format!("{PASSWORD}\n")).unwrap();
        fs::write(at("spool.key"), SPOOL_KEY).unwrap();
        fs::write(at("token"), format!("{TOKEN}\n")).unwrap();
        let broker = Broker::start().unwrap();
        let loopback = free_port().unwrap();
        let config = format!(
            "{}username = \"gateway\"\npassword-file = \"{}\"\n\
             [spool]\nkey-file = \"{}\"\n\
             [http]\nlisten = \"127.0.0.1:{loopback}\"\ntoken-file = \"{}\"\n\
             [audit]\nenabled = true\ndir = \"{}\"\n\
             [log]\nlevel = \"trace\"\nevents-per-second-max = 0\n\
             [task.explain]\ninstructions = \"Explain {{{{ code }}}}.\"\n",
            broker.config(),
            at("password").display(),
            at("spool.key").display(),
            at("token").display(),
            at("audit").display(),
        );
        Setup {
            folder,
            broker,
            loopback,
            config,
        }
    }

    fn audit(&self) -> PathBuf {
        self.folder.path().join("audit")
    }
}

/// Gives the daemon every kind of secret that clients have, in requests that are answered, refused and that fail, and gathers
/// what is said.
fn exercise(setup: &Setup, daemon: &Daemon) -> Vec<Said> {
    let broker = &setup.broker;
    let watch = |filter: &str| broker.watch(filter, "mqttv5").unwrap();
    let (answers, events, status) = (
        watch("andon/test/response/#"),
        watch("andon/test/event/#"),
        watch("andon/test/status"),
    );
    let mut said = Vec::new();
    let mut note = |place: &str, text: String| {
        let place = place.to_owned();
        said.push(Said { place, text });
    };
    let http = daemon.http();
    let good = [
        (
            "/v1/completions",
            json!({ "prompt": PROMPT, "max_tokens": 2, "stop": [STOP] }),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": CHAT }], "max_tokens": 40,
                    "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema":
                    { "type": "object", "properties": { SCHEMA: { "type": "boolean" } } } } } }),
        ),
    ];
    for (path, body) in good {
        let reply = http.post(path, &body).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", "k1"),
    ];
    let kept = json!({ "prompt": KEPT, "max_tokens": 2 }).to_string();
    let reply = http
        .send(hyper::Method::POST, "/v1/completions", &headers, kept)
        .unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    // Error texts quote no value.
    for (path, body) in [
        ("/v1/completions", format!("{{\"prompt\": \"{PROMPT}\", ")),
        (
            "/v1/completions",
            format!("{{\"prompt\": \"{PROMPT}\", \"max_tokens\": \"{STOP}\"}}"),
        ),
        (
            "/v1/chat/completions",
            format!("{{\"messages\": \"{CHAT}\"}}"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": PROMPT.repeat(2000) }).to_string(),
        ),
    ] {
        let headers = [("content-type", "application/json")];
        let reply = http
            .send(hyper::Method::POST, path, &headers, body)
            .unwrap();
        assert_eq!(reply.status, 400, "{}", reply.text());
        note("an error over HTTP", reply.text());
    }
    for (token, status) in [(TOKEN, "200"), (WRONG_TOKEN, "401")] {
        let said_there = over_tcp(setup.loopback, token);
        assert!(
            said_there.starts_with(&format!("HTTP/1.1 {status}")),
            "{said_there}"
        );
        note("the loopback listener", said_there);
    }
    let asked = andonctl(daemon, &["ask", "--tokens-max", "2", WIRE]);
    assert!(
        asked.status.success(),
        "{}",
        String::from_utf8_lossy(&asked.stderr)
    );
    let topic = "andon/test/request/plc1";
    for (id, topic, payload) in [
        (
            "m1",
            topic,
            format!(r#"{{"id":"m1","prompt":"{MQTT}","tokens_max":2}}"#),
        ),
        (
            "m2",
            "andon/test/request/plc1/explain",
            format!(r#"{{"id":"m2","input":{{"code":"{FIELD}"}},"tokens_max":2}}"#),
        ),
        // Refused, and no JSON.
        (
            "m3",
            topic,
            format!(r#"{{"id":"m3","prompt":"{MQTT}","tokens_max":0}}"#),
        ),
        ("m4", topic, format!(r#"{{"id":"m4","prompt":"{MQTT}","#)),
    ] {
        broker.publish(topic, &payload).unwrap();
        if id != "m4" {
            let end = format!("/{id}");
            let answer = answers.wait_for(|seen| seen.topic.contains(&end)).unwrap();
            if id == "m3" {
                note("an error over MQTT", answer.payload);
            }
        }
    }
    events.wait_for(|seen| note_event(&mut note, seen)).unwrap();
    for path in ["/metrics", "/healthz", "/readyz", "/v1/models", "/props"] {
        note(path, http.get(path).unwrap().text());
    }
    for arguments in [
        &["status"][..],
        &["model", "ls"],
        &["spool", "ls"],
        &["corpus", "ls"],
        &["kv", "ls"],
    ] {
        let output = andonctl(daemon, arguments);
        note(
            &format!("andonctl {}", arguments.join(" ")),
            format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        );
    }
    note("the status topic", drain(&status));
    note("the event topic", drain(&events));
    // One record of each answer, by then.
    let start = Instant::now();
    let mut records = String::new();
    while records.lines().count() < 5 {
        assert!(start.elapsed() < TIMEOUT, "{records}");
        thread::sleep(Duration::from_millis(20));
        records = fs::read_dir(setup.audit())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some())
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
    }
    note("the audit stream", records);
    said
}

/// What the loopback listener answers to whoever shows this token.
fn over_tcp(port: u16, token: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!(
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Takes down an event, and says that it was one.
fn note_event(note: &mut impl FnMut(&str, String), seen: &andon_tests::broker::Seen) -> bool {
    note(
        "the event topic",
        format!("{} {}", seen.topic, seen.payload),
    );
    true
}

/// What else a watcher has seen by now.
fn drain(watcher: &Watcher) -> String {
    let mut all = String::new();
    while let Ok(seen) = watcher.next(Duration::from_millis(300)) {
        all.push_str(&format!("{} {}\n", seen.topic, seen.payload));
    }
    all
}

/// Ends the daemon and waits.
fn stop(daemon: &mut Daemon) {
    daemon.terminate().unwrap();
    daemon.wait(TIMEOUT).unwrap();
}

#[test]
fn planted_secrets_are_nowhere_on_standard_error() {
    let setup = Setup::new();
    let mut daemon = Daemon::builder().config(&setup.config).start().unwrap();
    let mut said = exercise(&setup, &daemon);
    stop(&mut daemon);
    let log = daemon.log();
    assert!(
        log.contains("TRACE") && log.contains("answered"),
        "all is logged"
    );
    said.push(Said {
        place: "standard error".to_owned(),
        text: log,
    });
    judge(&said, &ALL);
    // What the search would find: the configuration says where the password is, and the log says more where it is told to.
    let found = said.iter().any(|said| said.text.contains("m3"));
    assert!(found, "what clients say besides is there");
}

#[test]
fn planted_secrets_are_in_no_field_of_the_journal() {
    let catalog = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/andon.catalog");
    let Some(journald) = Journald::start(&catalog) else {
        return;
    };
    let setup = Setup::new();
    let mut daemon = Daemon::builder()
        .before(journald.before())
        .config(&setup.config)
        .start()
        .unwrap();
    let mut said = exercise(&setup, &daemon);
    stop(&mut daemon);
    let text = journald.journalctl(&["-o", "export", "--all"]);
    assert!(text.contains("MESSAGE=answered"), "{text}");
    said.push(Said {
        place: "the journal".to_owned(),
        text,
    });
    judge(&said, &ALL);
}

#[test]
fn text_that_is_asked_for_is_found_by_the_same_search() {
    let setup = Setup::new();
    let config = setup.config.replace("[log]\n", "[log]\ntext = true\n");
    let mut daemon = Daemon::builder().config(&config).start().unwrap();
    let said = exercise(&setup, &daemon);
    stop(&mut daemon);
    let log = daemon.log();
    for secret in [PROMPT, CHAT, FIELD, MQTT, WIRE, KEPT] {
        assert!(log.contains(secret), "{secret} is asked for");
    }
    // The operator's are in no log whatever is asked for, and nothing is anywhere else.
    let log = Said {
        place: "the log".to_owned(),
        text: log,
    };
    judge(&[log], &[PASSWORD, SPOOL_KEY]);
    judge(&said, &ALL);
}

#[test]
fn keys_are_in_no_log_whether_they_are_good_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    if !certificates(folder.path()) {
        return;
    }
    let broker = Broker::start_with(&format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        at("ca.pem").display(),
        at("broker.pem").display(),
        at("broker.key").display()
    ))
    .unwrap();
    let key = fs::read_to_string(at("gateway.key")).unwrap();
    let secrets: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(!secrets.is_empty());
    // One that is no key, in the form of one and in none.
    let broken = format!("-----BEGIN PRIVATE KEY-----\n{PASSWORD}\n-----END PRIVATE KEY-----\n");
    fs::write(at("broken.key"), broken).unwrap();
    fs::write(at("none.key"), PASSWORD).unwrap();
    for (key, words) in [
        ("gateway.key", "connected to the broker"),
        ("broken.key", "the broker cannot be connected to"),
        ("none.key", "the broker cannot be connected to"),
    ] {
        let config = format!(
            "{}tls = true\nca-file = \"{}\"\ncertificate-file = \"{}\"\nkey-file = \"{}\"\n[log]\nlevel = \"trace\"\n",
            broker.config().replace("127.0.0.1", "localhost"),
            at("ca.pem").display(),
            at("gateway.pem").display(),
            at(key).display()
        );
        let daemon = Daemon::builder().config(&config).start().unwrap();
        let start = Instant::now();
        while !daemon.log().contains(words) {
            assert!(start.elapsed() < TIMEOUT, "{}", daemon.log());
            thread::sleep(Duration::from_millis(20));
        }
        let metrics = daemon.http().get("/metrics").unwrap().text();
        let said = [("the log", daemon.log()), ("/metrics", metrics)];
        let said = said.map(|(place, text)| Said {
            place: format!("{place} with {key}"),
            text,
        });
        judge(&said, &[&secrets[..], &[PASSWORD]].concat());
    }
    // A spool key that is too short is not quoted either.
    fs::write(at("spool.key"), "qzShort").unwrap();
    let config = format!("[spool]\nkey-file = \"{}\"\n", at("spool.key").display());
    let mut daemon = Daemon::builder().config(&config).spawn().unwrap();
    assert_eq!(daemon.wait(TIMEOUT).unwrap().code(), Some(78));
    assert!(daemon.log().contains("spool.key") && !daemon.log().contains("qzShort"));
}

/// Whether a daemon that aborts with this configuration leaves a core dump.
fn dumps_core(config: &str) -> bool {
    // In its own folder, where a core dump goes if it goes to a file.
    let folder = "cd \"$(dirname \"$NOTIFY_SOCKET\")\" && exec prlimit --core=unlimited \"$@\"";
    let before = ["sh", "-c", folder, "sh"].map(str::to_owned).to_vec();
    let mut daemon = Daemon::builder()
        .before(before)
        .config(config)
        .start()
        .unwrap();
    let body = json!({ "prompt": PROMPT, "max_tokens": 1 });
    assert_eq!(
        daemon.http().post("/v1/completions", &body).unwrap().status,
        200
    );
    daemon.signal(Signal::SIGABRT).unwrap();
    let status = daemon.wait(TIMEOUT).unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
    status.core_dumped()
}

#[test]
fn a_crash_leaves_no_core_dump_unless_it_is_asked_for() {
    let off = "[gateway]\ncore-dumps = false\n";
    assert!(!dumps_core(off), "a core dump holds prompts");
    if !dumps_core("[gateway]\ncore-dumps = true\n") {
        eprintln!("skipped: this machine keeps no core dumps, so that none proves nothing");
    }
}

/// Whether another process of the daemon's user can read its memory.
fn is_readable(daemon: &Daemon, uid: &str) -> bool {
    let environment = format!("/proc/{}/environ", daemon.pid());
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        uid,
        "--regid",
        uid,
        "--clear-groups",
        "cat",
        &environment,
    ]);
    command.output().unwrap().status.success()
}

#[test]
fn other_programs_of_the_same_user_cannot_look_into_the_process() {
    const NOBODY: &str = "65534";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: to be another user takes root");
        return;
    }
    for (config, readable) in [("", false), ("[gateway]\ncore-dumps = true\n", true)] {
        // Its folder is to be that user's before the program begins.
        let folder = "chown -R 65534:65534 \"$(dirname \"$NOTIFY_SOCKET\")\" && exec \"$@\"";
        let user = [
            "setpriv",
            "--reuid",
            NOBODY,
            "--regid",
            NOBODY,
            "--clear-groups",
        ];
        let mut before: Vec<String> = ["sh", "-c", folder, "sh"].map(str::to_owned).to_vec();
        before.extend(user.map(str::to_owned));
        let daemon = Daemon::builder()
            .before(before)
            .config(config)
            .start()
            .unwrap();
        assert_eq!(is_readable(&daemon, NOBODY), readable, "{config}");
    }
}
