//! Models that the daemon keeps: added, refused, served, removed, and what survives `kill -9`.

mod files;
mod packs;
mod several;
mod signed;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::programs;
use andon_tests::tiny_encoder::TinyEncoder;
use andon_tests::tiny_model::{TensorType, TinyModel};
use andon_wire::limits::MODEL_DATA_BYTES_MAX;
use andon_wire::{
    AddModel, Bytes, ClientFrame, ErrorCode, HEADER_BYTES, Hello, ModelData, PROTOCOL_VERSION,
    RequestId, ServerFrame,
};
use serde_json::{Value, json};

use crate::ctl::{andonctl, bad, good};

/// Longest wait for anything; generous, since debug builds run on busy machines.
const PATIENCE: Duration = Duration::from_secs(120);

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A file in the daemon's folder.
fn file(daemon: &Daemon, name: &str, bytes: &[u8]) -> PathBuf {
    let path = daemon.folder().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn names(daemon: &Daemon) -> Vec<String> {
    good(&andonctl(daemon, &["model", "ls", "--json"]))
        .lines()
        .map(|line| {
            let model: Value = serde_json::from_str(line).unwrap();
            model["name"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// What lies in the folder of models that have no name yet.
fn staged(daemon: &Daemon) -> usize {
    fs::read_dir(daemon.folder().join("models/.staging")).map_or(0, Iterator::count)
}

fn ready(daemon: &Daemon) -> bool {
    daemon
        .http()
        .get("/readyz")
        .is_ok_and(|reply| reply.status == 200)
}

#[test]
fn a_new_gateway_waits_for_its_model_and_serves_it() {
    let mut daemon = Daemon::builder().kept("helper").start().unwrap();
    let reply = daemon.http().get("/readyz").unwrap();
    assert_eq!(reply.status, 503);
    bad(&andonctl(&daemon, &["ask", "hello"]), 5, "");
    assert_eq!(
        good(&andonctl(&daemon, &["model", "ls"])),
        "no models are kept\n"
    );
    let check = Command::new(programs::folder().unwrap().join("andond"))
        .arg("--config")
        .arg(daemon.folder().join("andond.toml"))
        .arg("check")
        .output()
        .unwrap();
    bad(&check, 78, "no model helper is kept here");

    let model = TinyModel::default().bytes();
    file(&daemon, "some-model.gguf", &model);
    let said = good(&andonctl(
        &daemon,
        &["model", "add", "some-model.gguf", "--name", "helper"],
    ));
    assert_eq!(said, "helper\n");
    eventually("the model is served", || ready(&daemon));
    let ask = ["ask", "--tokens-max", "12", "hello"];
    let answer = good(&andonctl(&daemon, &ask));
    assert!(good(&andonctl(&daemon, &["model", "ls"])).contains("active"));
    let show = good(&andonctl(&daemon, &["model", "show", "helper"]));
    let manifest: Value = serde_json::from_str(&show).unwrap();
    assert_eq!(manifest["architecture"], "llama");
    assert_eq!(manifest["members"][0]["path"], "some-model.gguf");

    // What is served is not removed, and is there after a restart.
    bad(
        &andonctl(&daemon, &["model", "rm", "helper"]),
        1,
        "is being served",
    );
    daemon.restart().unwrap();
    eventually("the model is served again", || ready(&daemon));
    assert_eq!(good(&andonctl(&daemon, &ask)), answer);

    // The same file by its path gives the same answer.
    let plain = Daemon::builder()
        .model(&daemon.folder().join("some-model.gguf"))
        .start()
        .unwrap();
    assert_eq!(good(&andonctl(&plain, &ask)), answer);
    daemon.terminate().unwrap();
    assert!(daemon.wait(PATIENCE).unwrap().success());
}

#[test]
fn a_daemon_that_waits_stops_when_it_is_told() {
    let mut daemon = Daemon::builder().kept("helper").start().unwrap();
    daemon.terminate().unwrap();
    assert!(daemon.wait(PATIENCE).unwrap().success());
}

#[test]
fn a_bundle_brings_its_template_and_tasks() {
    let mut daemon = Daemon::builder()
        .kept("helper")
        .config(
            "[models]\nbundle-tasks = true\nprobation-s = 0\n\
             [task.ours]\ninstructions = 'Say {{ x }}.'\ntokens-max = 4\n",
        )
        .start()
        .unwrap();
    let folder = daemon.folder().join("source");
    fs::create_dir_all(folder.join("tasks")).unwrap();
    TinyModel::default().write(&folder.join("m.gguf")).unwrap();
    fs::write(folder.join("LICENSE"), "Do as you like.").unwrap();
    fs::write(
        folder.join("chat_template.jinja"),
        "{% if messages[0].role == 'system' %}{{ raise_exception('the bundle says no') }}{% endif %}\
         {% for message in messages %}{{ message.content }}{% endfor %}",
    )
    .unwrap();
    fs::write(
        folder.join("tasks/explain.toml"),
        "instructions = 'Explain {{ code }}.'\ntokens-max = 5\n",
    )
    .unwrap();
    // Loses against the configuration's.
    fs::write(folder.join("tasks/ours.toml"), "instructions = '{{ y }}'\n").unwrap();
    let create = [
        "bundle",
        "create",
        "source",
        "--name",
        "helper",
        "--license",
        "mit",
    ];
    good(&andonctl(&daemon, &create));
    good(&andonctl(&daemon, &["model", "add", "helper.andon"]));
    eventually("the model is served", || ready(&daemon));

    let task = |name: &str, input: &str| {
        andonctl(
            &daemon,
            &["ask", "--task", name, "--input", input, "--json"],
        )
    };
    let answer: Value =
        serde_json::from_str(&good(&task("explain", r#"{"code": "E42"}"#))).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    good(&task("ours", r#"{"x": "hello"}"#));
    bad(&task("ours", r#"{"y": "hello"}"#), 1, "");
    let system = ["ask", "--system", "Be brief.", "hello"];
    bad(&andonctl(&daemon, &system), 1, "the bundle says no");

    // Under another name the weights are shared, and the rest comes along.
    let again = ["model", "add", "helper.andon", "--name", "second"];
    good(&andonctl(&daemon, &again));
    let weights = |name: &str| {
        fs::metadata(daemon.folder().join("models").join(name).join("m.gguf")).unwrap()
    };
    assert_eq!(weights("helper").ino(), weights("second").ino());
    assert_eq!(names(&daemon), ["helper", "second"]);
    good(&andonctl(&daemon, &["model", "verify", "second"]));

    // Tasks are those of the model of the configured name, as whatever it was loaded before.
    good(&andonctl(&daemon, &["model", "load", "second"]));
    good(&andonctl(&daemon, &["model", "swap", "second"]));
    good(&task("explain", r#"{"code": "E42"}"#));
    good(&andonctl(&daemon, &["model", "load", "helper"]));
    good(&andonctl(&daemon, &["model", "rollback"]));
    good(&task("explain", r#"{"code": "E42"}"#));
    assert!(daemon.log().contains("loaded anew"), "{}", daemon.log());
    good(&andonctl(&daemon, &["model", "unload", "second"]));
    good(&andonctl(&daemon, &["model", "rm", "second"]));
    assert_eq!(names(&daemon), ["helper"]);
    good(&andonctl(&daemon, &["model", "verify", "helper"]));
    assert_eq!(staged(&daemon), 0);

    // What was altered is used where signatures are only wished for, and the entry says which model's it is.
    let template = daemon.folder().join("models/helper/chat_template.jinja");
    fs::remove_file(&template).unwrap();
    fs::write(&template, "{{ messages[0].content }}").unwrap();
    daemon.kill().unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    let log = daemon.log();
    let said = log
        .lines()
        .find(|line| line.contains("is not what the manifest says, and is used"));
    assert!(said.is_some_and(|line| line.contains("helper")), "{log}");
}

#[test]
fn what_cannot_be_served_is_refused_and_leaves_nothing() {
    let daemon = Daemon::builder().start().unwrap();
    let sound = TinyModel {
        weights: TensorType::F32,
        tied: true,
        ..TinyModel::default()
    }
    .bytes();
    let add = |name: &str, bytes: &[u8]| {
        file(&daemon, name, bytes);
        andonctl(&daemon, &["model", "add", name])
    };
    bad(
        &add("cut.gguf", &sound[..sound.len() - 5000]),
        1,
        "sound GGUF",
    );
    // The last tensor is the last norm; with it every result is no number.
    let mut damaged = sound.clone();
    let end = damaged.len();
    damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let place = format!("`nan.gguf`: byte {}: tensor `output_norm.weight`", end - 4);
    bad(&add("nan.gguf", &damaged), 1, &place);
    let mut other = sound.clone();
    let at = other
        .windows(5)
        .position(|window| window == b"llama")
        .unwrap();
    other[at..at + 5].copy_from_slice(b"nonet");
    bad(&add("other.gguf", &other), 1, "nonet");

    file(&daemon, "sound.gguf", &sound);
    file(&daemon, "broken.toml", b"instructions = '{{ x '\n");
    let create = [
        "bundle",
        "create",
        "sound.gguf",
        "--task",
        "broken.toml",
        "--out",
        "task.andon",
    ];
    good(&andonctl(&daemon, &create));
    bad(
        &andonctl(&daemon, &["model", "add", "task.andon"]),
        1,
        "tasks/broken.toml",
    );
    file(&daemon, "bad.jinja", b"{% for %}");
    let create = [
        "bundle",
        "create",
        "sound.gguf",
        "--chat-template",
        "bad.jinja",
        "--out",
        "chat.andon",
    ];
    good(&andonctl(&daemon, &create));
    bad(
        &andonctl(&daemon, &["model", "add", "chat.andon"]),
        1,
        "chat template",
    );
    let create = [
        "bundle",
        "create",
        "sound.gguf",
        "--pre-tokenizer",
        "no-such",
        "--out",
        "pre.andon",
    ];
    good(&andonctl(&daemon, &create));
    bad(
        &andonctl(&daemon, &["model", "add", "pre.andon"]),
        1,
        "no-such",
    );

    // Damaged on the way: the manifest's digest is another.
    good(&andonctl(
        &daemon,
        &["bundle", "create", "sound.gguf", "--out", "flip.andon"],
    ));
    let path = daemon.folder().join("flip.andon");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    bad(
        &andonctl(&daemon, &["model", "add", "flip.andon"]),
        1,
        "digest",
    );

    assert!(names(&daemon).is_empty());
    assert_eq!(staged(&daemon), 0);
    // And the daemon serves as before.
    good(&andonctl(&daemon, &["ask", "--tokens-max", "3", "hello"]));
}

#[test]
fn names_are_kept_apart_and_nothing_is_stored_twice() {
    let daemon = Daemon::builder().start().unwrap();
    let one = TinyModel::default().bytes();
    let two = TinyModel {
        seed: 99,
        ..TinyModel::default()
    }
    .bytes();
    file(&daemon, "m.gguf", &one);
    good(&andonctl(&daemon, &["model", "add", "m.gguf"]));
    let again = andonctl(&daemon, &["model", "add", "m.gguf"]);
    good(&again);
    assert!(String::from_utf8_lossy(&again.stderr).contains("was there before"));
    file(&daemon, "m.gguf", &two);
    bad(
        &andonctl(&daemon, &["model", "add", "m.gguf"]),
        1,
        "there is another model m",
    );
    good(&andonctl(
        &daemon,
        &["model", "add", "m.gguf", "--name", "n"],
    ));
    assert_eq!(names(&daemon), ["m", "n"]);

    // A bit that the disk lost is found when it is looked for.
    let path = daemon.folder().join("models/n/m.gguf");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    bad(
        &andonctl(&daemon, &["model", "verify", "n"]),
        1,
        "has the digest",
    );
    good(&andonctl(&daemon, &["model", "verify", "m"]));
    good(&andonctl(&daemon, &["model", "rm", "n"]));
    // An encoder is tried by what it is for.
    file(&daemon, "e.gguf", &TinyEncoder::default().bytes());
    good(&andonctl(&daemon, &["model", "add", "e.gguf"]));
    good(&andonctl(&daemon, &["model", "rm", "e"]));
    bad(&andonctl(&daemon, &["model", "rm", "n"]), 1, "no model n");
    bad(&andonctl(&daemon, &["model", "show", "n"]), 1, "no model n");
    bad(
        &andonctl(&daemon, &["model", "verify", "n"]),
        1,
        "no model n",
    );
    assert_eq!(names(&daemon), ["m"]);
    // A folder that is no model is passed over.
    fs::create_dir(daemon.folder().join("models/odd")).unwrap();
    assert_eq!(names(&daemon), ["m"]);
}

#[test]
fn models_are_bounded_by_configuration_and_disk() {
    for (key, word) in [
        ("bytes-max = 1000", "at most 1000"),
        ("free-bytes-min = 1099511627776", "to give"),
    ] {
        let daemon = Daemon::builder()
            .config(&format!("[models]\n{key}\n"))
            .start()
            .unwrap();
        file(&daemon, "m.gguf", &TinyModel::default().bytes());
        bad(&andonctl(&daemon, &["model", "add", "m.gguf"]), 1, word);
        assert!(names(&daemon).is_empty());
    }
}

/// A client that says what it likes.
struct Client {
    stream: UnixStream,
}

impl Client {
    fn new(daemon: &Daemon) -> Client {
        let stream = UnixStream::connect(daemon.wire_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { stream };
        client.send(&ClientFrame::Hello(Hello {
            version: PROTOCOL_VERSION,
            software: "test",
        }));
        client.next(|frame| assert!(matches!(frame, ServerFrame::Welcome(_))));
        client
    }

    fn send(&mut self, frame: &ClientFrame<'_>) {
        let mut buffer = vec![0; 600 * 1024];
        let bytes = frame.encode(&mut buffer).unwrap();
        self.stream.write_all(bytes).unwrap();
    }

    fn next<T>(&mut self, look: impl FnOnce(ServerFrame<'_>) -> T) -> T {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).unwrap();
        let mut payload = vec![0; usize::try_from(u32::from_le_bytes(header)).unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        look(ServerFrame::decode(&payload).unwrap())
    }

    fn add(&mut self, id: &str, manifest: &Value) {
        let manifest = manifest.to_string();
        self.send(&ClientFrame::AddModel(AddModel {
            id: RequestId::new(id).unwrap(),
            name: None,
            manifest: &manifest,
        }));
    }

    fn data(&mut self, id: &str, bytes: &[u8]) {
        self.send(&ClientFrame::ModelData(ModelData {
            id: RequestId::new(id).unwrap(),
            bytes: Bytes(bytes),
        }));
    }

    /// The code and message of the fault that has to come, with its id.
    fn fault(&mut self) -> (Option<String>, ErrorCode, String) {
        loop {
            let fault = self.next(|frame| match frame {
                ServerFrame::Error(fault) => Some((
                    fault.id.map(|id| id.as_str().to_owned()),
                    fault.code,
                    fault.message.to_owned(),
                )),
                ServerFrame::ModelProgress(_) => None,
                other => panic!("{other:?}"),
            });
            if let Some(fault) = fault {
                return fault;
            }
        }
    }

    fn ready(&mut self) {
        self.next(|frame| assert!(matches!(frame, ServerFrame::AddReady(_)), "{frame:?}"));
    }
}

fn manifest(name: &str, bytes: usize) -> Value {
    json!({
        "format": 1, "name": name, "architecture": "llama", "quantization": "F32", "created-s": 0,
        "members": [
            { "path": "m.gguf", "role": "weights", "bytes": bytes, "sha256": "0".repeat(64) },
        ],
    })
}

#[test]
fn a_kill_in_the_middle_leaves_nothing() {
    let mut daemon = Daemon::builder().start().unwrap();
    let model = TinyModel::default().bytes();
    file(&daemon, "kept.gguf", &model);
    good(&andonctl(&daemon, &["model", "add", "kept.gguf"]));
    let mut client = Client::new(&daemon);
    client.add("1", &manifest("half", 10_000_000));
    client.ready();
    client.data("1", &vec![1; 200_000]);
    let staging = daemon.folder().join("models/.staging");
    eventually("bytes are on the disk", || holds_bytes(&staging));
    daemon.restart().unwrap();
    assert_eq!(staged(&daemon), 0);
    assert_eq!(names(&daemon), ["kept"]);
    good(&andonctl(&daemon, &["model", "verify", "kept"]));
    let again = TinyModel {
        seed: 3,
        ..TinyModel::default()
    };
    file(&daemon, "half.gguf", &again.bytes());
    good(&andonctl(&daemon, &["model", "add", "half.gguf"]));
    assert_eq!(names(&daemon), ["half", "kept"]);
}

/// Whether there are bytes of weights somewhere below.
fn holds_bytes(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            fs::metadata(entry.path().join("m.gguf")).is_ok_and(|metadata| metadata.len() > 0)
        })
    })
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let daemon = Daemon::builder().start().unwrap();
    let mut client = Client::new(&daemon);
    client.add("1", &manifest("half", 10_000_000));
    client.ready();
    client.data("1", &vec![1; 200_000]);
    drop(client);
    eventually("the staging folder is empty", || staged(&daemon) == 0);
    assert!(names(&daemon).is_empty());
    // Its name is free.
    let mut client = Client::new(&daemon);
    eventually("the name is free", || {
        client.add("2", &manifest("half", 10));
        client.next(|frame| matches!(frame, ServerFrame::AddReady(_)))
    });
}

#[test]
fn adds_at_once_do_not_disturb_each_other() {
    let daemon = Daemon::builder().start().unwrap();
    let mut first = Client::new(&daemon);
    first.add("1", &manifest("a", 1000));
    first.ready();
    // One operation a connection, one a name, two in all.
    first.add("2", &manifest("b", 1000));
    assert_eq!(first.fault().1, ErrorCode::Busy);
    let mut second = Client::new(&daemon);
    second.add("1", &manifest("a", 1000));
    let (id, code, message) = second.fault();
    assert_eq!(
        (id.as_deref(), code),
        (Some("1"), ErrorCode::Conflict),
        "{message}"
    );
    second.add("2", &manifest("b", 1000));
    second.ready();
    let mut third = Client::new(&daemon);
    third.add("1", &manifest("c", 1000));
    assert_eq!(third.fault().1, ErrorCode::Busy);

    drop(first);
    file(&daemon, "d.gguf", &TinyModel::default().bytes());
    eventually("there is a place again", || {
        andonctl(&daemon, &["model", "add", "d.gguf"])
            .status
            .success()
    });
    // More than was announced, and what was announced but is not it.
    second.data("2", &[7; 1001]);
    let (_, code, message) = second.fault();
    assert_eq!(code, ErrorCode::Rejected, "{message}");
    // What is still on its way after that is dropped.
    second.data("2", &[7; 5]);
    second.add("3", &manifest("b", 3));
    second.ready();
    second.data("3", b"abc");
    let (_, code, message) = second.fault();
    assert!(
        code == ErrorCode::Rejected && message.contains("digest"),
        "{message}"
    );
    assert_eq!(names(&daemon), ["d"]);
}

#[test]
fn work_on_models_gives_way_to_answers() {
    let daemon = Daemon::builder().start().unwrap();
    let mut client = Client::new(&daemon);
    client.add("1", &manifest("half", 10_000_000));
    client.ready();
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let ranks = threads.flatten().filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let (name, facts) = stat.split_once(')')?;
        let rank = facts.split_ascii_whitespace().nth(16)?;
        // Whatever writes pages of the KV cache to the disk gives way as well.
        (!name.ends_with("(pages")).then_some(())?;
        Some((name.ends_with("(model"), rank.parse::<i32>().ok()?))
    });
    let (at_work, others): (Vec<_>, Vec<_>) = ranks.partition(|(at_work, _)| *at_work);
    assert_eq!(at_work, [(true, 19)]);
    assert!(others.iter().all(|(_, rank)| *rank < 19), "{others:?}");
}

#[test]
fn manifests_that_lead_elsewhere_are_refused() {
    let daemon = Daemon::builder().start().unwrap();
    let mut client = Client::new(&daemon);
    let sound = manifest("m", 10);
    for (number, (key, value)) in [
        ("format", json!(andon_wire::manifest::FORMAT + 1)),
        ("name", json!("../../m")),
        ("name", json!(".staging")),
        ("surprise", json!(true)),
        ("members", json!([])),
        ("architecture", json!("x".repeat(1000))),
    ]
    .into_iter()
    .enumerate()
    {
        let mut odd = sound.clone();
        odd[key] = value;
        client.add(&number.to_string(), &odd);
        let (_, code, message) = client.fault();
        assert_eq!(code, ErrorCode::Rejected, "{odd}: {message}");
    }
    for path in [
        "../m.gguf",
        "/tmp/m.gguf",
        "a/m.gguf",
        "manifest.json",
        ".m.gguf",
    ] {
        let mut odd = sound.clone();
        odd["members"][0]["path"] = json!(path);
        client.add("p", &odd);
        assert_eq!(client.fault().1, ErrorCode::Rejected, "{path}");
    }
    let mut huge = sound.clone();
    huge["members"][0]["bytes"] = json!(u64::MAX);
    client.add("h", &huge);
    assert_eq!(client.fault().1, ErrorCode::Rejected);
    assert!(!daemon.folder().join("m.gguf").exists());
    assert!(names(&daemon).is_empty());

    // More bytes in a frame than the protocol has room for end the connection, as do bytes of nothing.
    client.data("x", &vec![0; MODEL_DATA_BYTES_MAX + 1]);
    let (id, code, _) = client.fault();
    assert_eq!((id, code), (None, ErrorCode::InvalidRequest));
    let mut client = Client::new(&daemon);
    client.data("x", b"abc");
    let (id, code, _) = client.fault();
    assert_eq!((id, code), (None, ErrorCode::InvalidRequest));
}

#[test]
fn a_real_model_is_added_and_served() {
    let Some(real) = programs::real_model() else {
        return;
    };
    let daemon = Daemon::builder().kept("real").start().unwrap();
    let path = real.to_str().unwrap();
    good(&andonctl(
        &daemon,
        &["model", "add", path, "--name", "real"],
    ));
    eventually("the model is served", || ready(&daemon));
    good(&andonctl(&daemon, &["ask", "--tokens-max", "4", "hello"]));
}
