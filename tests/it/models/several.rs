//! Several models: asked for side by side, loaded for who asks, one in another's place, and back.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use andon_tests::daemon::Daemon;
use andon_tests::tiny_encoder::TinyEncoder;
use andon_tests::tiny_model::TinyModel;
use hyper::Method;
use serde_json::{Value, json};

use super::{andonctl, bad, eventually, file, good, ready};

/// A daemon that serves one model by its path, and keeps two others.
fn three(config: &str) -> Daemon {
    let daemon = Daemon::builder().config(config).start().unwrap();
    for (name, seed) in [("one", 7), ("two", 8)] {
        let model = TinyModel {
            seed,
            ..TinyModel::default()
        };
        let gguf = format!("{name}.gguf");
        file(&daemon, &gguf, &model.bytes());
        good(&andonctl(&daemon, &["model", "add", &gguf]));
    }
    daemon
}

fn ask(daemon: &Daemon, model: Option<&str>) -> Value {
    let mut body = json!({ "prompt": "hello", "max_tokens": 12, "ignore_eos": true });
    if let Some(model) = model {
        body["model"] = model.into();
    }
    let reply = daemon.http().post("/v1/completions", &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json().unwrap()
}

fn text(daemon: &Daemon, model: Option<&str>) -> String {
    ask(daemon, model)["choices"][0]["text"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn state(daemon: &Daemon, name: &str) -> String {
    let reply = daemon.http().get(&format!("/v1/models/{name}")).unwrap();
    let model = reply.json().unwrap();
    model["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn models_are_loaded_for_who_asks_and_answer_side_by_side() {
    let daemon = three("[models]\nloaded-max = 2\n");
    let default = text(&daemon, None);
    assert_eq!(state(&daemon, "one"), "kept");
    let unknown = json!({ "prompt": "hello", "model": "three" });
    let reply = daemon.http().post("/v1/completions", &unknown).unwrap();
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json().unwrap()["error"]["code"], "model_not_found");

    // All of those who ask while it is loaded wait for it.
    let (one, others) = thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| text(&daemon, Some("one"))))
            .collect();
        let others: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| text(&daemon, None)))
            .collect();
        let join = |all: Vec<thread::ScopedJoinHandle<'_, String>>| {
            let mut all: Vec<String> = all.into_iter().map(|one| one.join().unwrap()).collect();
            all.dedup();
            all
        };
        (join(asking), join(others))
    });
    assert_eq!(others, std::slice::from_ref(&default));
    assert_eq!(one.len(), 1);
    assert_ne!(one[0], default);
    assert_eq!(ask(&daemon, Some("one"))["model"], "one");
    assert_eq!(state(&daemon, "one"), "loaded");
    bad(
        &andonctl(&daemon, &["model", "rm", "one"]),
        1,
        "unload it first",
    );

    // The third takes the place of the one that nobody asks just now.
    let two = text(&daemon, Some("two"));
    assert_ne!(two, one[0]);
    eventually("the other is gone", || state(&daemon, "one") == "kept");
    let metrics = daemon.http().get("/metrics").unwrap().text();
    assert!(
        metrics.contains("andon_model_loaded{model=\"one\"} 0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("andon_model_loaded{model=\"two\"} 1"),
        "{metrics}"
    );

    good(&andonctl(&daemon, &["model", "unload", "two"]));
    assert_eq!(state(&daemon, "two"), "kept");
    good(&andonctl(&daemon, &["model", "load", "one"]));
    assert!(good(&andonctl(&daemon, &["model", "ls"])).contains("loaded"));
    assert_eq!(text(&daemon, Some("one")), one[0]);
    // What is loaded by hand stays, and is within the bound.
    bad(
        &andonctl(&daemon, &["model", "load", "two"]),
        1,
        "loaded-max",
    );
    let reply = daemon
        .http()
        .post(
            "/v1/completions",
            &json!({ "prompt": "hello", "model": "two" }),
        )
        .unwrap();
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert_eq!(text(&daemon, None), default);
}

#[test]
fn a_model_takes_anothers_place_and_nothing_is_lost() {
    let mut daemon = three("[model]\nname = 'ours'\n");
    let (old, one) = (text(&daemon, None), text(&daemon, Some("one")));
    let long = json!({ "prompt": "hello", "max_tokens": 200, "ignore_eos": true, "stream": true });
    let answers: Vec<String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut all = Vec::new();
                    for _ in 0..4 {
                        let events = daemon.http().events("/v1/completions", &long).unwrap();
                        all.push(events.rest().unwrap());
                    }
                    all
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(50));
        good(&andonctl(&daemon, &["model", "swap", "one"]));
        let all = asking.into_iter().flat_map(|asking| asking.join().unwrap());
        all.collect()
    });
    for answer in &answers {
        assert!(
            answer.contains("[DONE]") && !answer.contains("\"error\""),
            "{answer}"
        );
    }
    assert_eq!(text(&daemon, None), one);
    assert_eq!(text(&daemon, Some("ours")), one);
    assert_eq!(ask(&daemon, None)["model"], "ours");
    let models = daemon.http().get("/v1/models").unwrap().json().unwrap();
    assert_eq!(models["data"][0]["id"], "ours");
    assert_eq!(models["data"][0]["answered_by"], "one");
    bad(
        &andonctl(&daemon, &["model", "swap", "one"]),
        1,
        "answers to ours already",
    );
    bad(
        &andonctl(&daemon, &["model", "rm", "one"]),
        1,
        "is being served",
    );

    // It stays so, also where the daemon had no time to prepare for its end.
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    eventually("the model is served again", || ready(&daemon));
    assert_eq!(text(&daemon, None), one);

    // Another name.
    good(&andonctl(
        &daemon,
        &["model", "swap", "two", "--for", "spare"],
    ));
    let two = text(&daemon, Some("spare"));
    assert_eq!(two, text(&daemon, Some("two")));

    good(&andonctl(&daemon, &["model", "rollback"]));
    assert_eq!(text(&daemon, None), old);
    bad(
        &andonctl(&daemon, &["model", "rollback"]),
        1,
        "no other model is remembered",
    );
    daemon.terminate().unwrap();
    assert!(daemon.wait(super::PATIENCE).unwrap().success());
    daemon.restart().unwrap();
    assert_eq!(text(&daemon, None), old);
    assert_eq!(text(&daemon, Some("spare")), two);

    // A name that is no model's own goes, and its model stays.
    good(&andonctl(&daemon, &["model", "rm", "spare"]));
    let spare = json!({ "prompt": "hello", "model": "spare" });
    let reply = daemon.http().post("/v1/completions", &spare).unwrap();
    assert_eq!(reply.status, 404);
    assert_eq!(text(&daemon, Some("two")), two);

    // A model that has its own name back stays, also where it was loaded for that only.
    good(&andonctl(
        &daemon,
        &["model", "swap", "two", "--for", "one"],
    ));
    good(&andonctl(&daemon, &["model", "rollback", "--for", "one"]));
    assert_eq!(state(&daemon, "one"), "loaded");

    // What is damaged is not believed, and not lost.
    daemon.kill().unwrap();
    let models = daemon.folder().join("models");
    fs::write(models.join(".names.json"), "{").unwrap();
    daemon.restart().unwrap();
    assert_eq!(text(&daemon, None), old);
    let kept = fs::read_to_string(models.join(".names.damaged.json"));
    assert_eq!(kept.unwrap(), "{");
}

#[test]
fn a_model_of_another_kind_takes_nobodys_place() {
    let daemon = Daemon::builder().start().unwrap();
    file(&daemon, "kind.gguf", &TinyEncoder::default().bytes());
    good(&andonctl(&daemon, &["model", "add", "kind.gguf"]));
    let old = text(&daemon, None);
    bad(
        &andonctl(&daemon, &["model", "swap", "kind", "--unload-first"]),
        1,
        "makes embeddings",
    );
    eventually("the old one is there again", || ready(&daemon));
    assert_eq!(text(&daemon, None), old);
}

#[test]
fn for_an_alarm_a_model_makes_room_that_does_batch_work() {
    let daemon = Daemon::builder()
        .config("[models]\nloaded-max = 2\n")
        .start()
        .unwrap();
    // The first takes its time.
    for (name, idle_layer_count, context_tokens_max) in [("one", 30, 2048), ("two", 0, 512)] {
        let model = TinyModel {
            idle_layer_count,
            context_tokens_max,
            ..TinyModel::default()
        };
        let gguf = format!("{name}.gguf");
        file(&daemon, &gguf, &model.bytes());
        good(&andonctl(&daemon, &["model", "add", &gguf]));
    }
    let long = json!({
        "prompt": "hello", "model": "one", "max_tokens": 1500, "ignore_eos": true, "stream": true, "priority": "batch",
    });
    let mut events = daemon.http().events("/v1/completions", &long).unwrap();
    assert!(events.next().unwrap().is_ok());
    let ask = |priority| {
        let body =
            json!({ "prompt": "hello", "model": "two", "max_tokens": 1, "priority": priority });
        daemon.http().post("/v1/completions", &body).unwrap()
    };
    assert_eq!(ask("interactive").status, 429);
    let reply = ask("alarm");
    assert_eq!(reply.status, 200, "{}", reply.text());
    // What was taken is answered.
    assert!(events.next().unwrap().is_ok());
}

/// Turns the bits of a few bytes in the middle of a model's weights, which leaves them numbers.
fn damage(daemon: &Daemon, name: &str) {
    let path = daemon.folder().join(format!("models/{name}/{name}.gguf"));
    let bytes = fs::metadata(&path).unwrap().len();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut piece = vec![0; 4096];
    file.seek(SeekFrom::Start(bytes / 2)).unwrap();
    file.read_exact(&mut piece).unwrap();
    piece.iter_mut().for_each(|byte| *byte ^= 0x15);
    file.seek(SeekFrom::Start(bytes / 2)).unwrap();
    file.write_all(&piece).unwrap();
}

#[test]
fn a_damaged_model_takes_nobodys_place() {
    let mut daemon = three("[cache]\npack = 'never'\n[models]\nprobation-s = 0\n");
    let old = text(&daemon, None);
    damage(&daemon, "one");
    bad(
        &andonctl(&daemon, &["model", "swap", "one"]),
        1,
        "self-test",
    );
    assert_eq!(text(&daemon, None), old);
    // Requests wait meanwhile for the one that is there in the end.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ask = || {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(text(&daemon, None), old);
            }
        };
        let asking: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        let swapped = andonctl(&daemon, &["model", "swap", "one", "--unload-first"]);
        over.store(true, Ordering::Relaxed);
        bad(&swapped, 1, "self-test");
        asking.into_iter().for_each(|asking| asking.join().unwrap());
    });
    eventually("the old one is there again", || ready(&daemon));
    assert_eq!(text(&daemon, None), old);

    // Who was promised an answer by it hears that there is none.
    let later = [
        ("idempotency-key", "a-1"),
        ("prefer", "respond-async"),
        ("content-type", "application/json"),
    ];
    let body = json!({ "prompt": "hello", "model": "one" }).to_string();
    let reply = daemon
        .http()
        .send(Method::POST, "/v1/completions", &later, body)
        .unwrap();
    assert_eq!(reply.status, 202, "{}", reply.text());
    eventually("it is answered", || {
        let reply = daemon.http().get("/v1/requests/a-1").unwrap();
        let request = reply.json().unwrap();
        request["status"] == 500 && request["response"].to_string().contains("self-test")
    });

    // One that is damaged later is found out at the start, and what answered before does again.
    good(&andonctl(&daemon, &["model", "swap", "two"]));
    assert_ne!(text(&daemon, None), old);
    damage(&daemon, "two");
    daemon.terminate().unwrap();
    assert!(daemon.wait(super::PATIENCE).unwrap().success());
    daemon.restart().unwrap();
    assert_eq!(text(&daemon, None), old);
    assert!(daemon.log().contains("rolled back"), "{}", daemon.log());

    // Too slow is not good enough either.
    let slow = Daemon::builder()
        .config("[models]\ntokens-per-second-min = 1e6\n")
        .start()
        .unwrap();
    file(&slow, "one.gguf", &TinyModel::default().bytes());
    good(&andonctl(&slow, &["model", "add", "one.gguf"]));
    bad(
        &andonctl(&slow, &["model", "swap", "one"]),
        1,
        "tokens per second",
    );
}

#[test]
fn what_would_have_its_name_back_stays_for_as_long_as_that_may_be() {
    let daemon = three("[models]\nloaded-max = 2\nprobation-s = 600\n");
    good(&andonctl(&daemon, &["model", "swap", "one"]));
    // Nobody asks the one that answered before, and it is not to go for that.
    let other = json!({ "prompt": "hello", "model": "two" });
    let reply = daemon.http().post("/v1/completions", &other).unwrap();
    assert_eq!(reply.status, 429, "{}", reply.text());
    good(&andonctl(&daemon, &["model", "swap", "two"]));
    bad(
        &andonctl(&daemon, &["model", "rm", "one"]),
        1,
        "takes its name back",
    );
}

#[test]
fn no_way_leads_back_to_a_model_that_was_removed() {
    let mut daemon = three("[models]\nprobation-s = 0\n");
    let old = text(&daemon, None);
    good(&andonctl(&daemon, &["model", "swap", "one"]));
    good(&andonctl(&daemon, &["model", "swap", "two"]));
    let two = text(&daemon, None);
    eventually("the other is gone", || state(&daemon, "one") == "kept");
    good(&andonctl(&daemon, &["model", "rm", "one"]));
    bad(
        &andonctl(&daemon, &["model", "rollback"]),
        1,
        "no other model is remembered",
    );
    assert_eq!(text(&daemon, None), two);

    // What somebody took away while the daemon was not there does not keep it from serving what it has.
    daemon.terminate().unwrap();
    assert!(daemon.wait(super::PATIENCE).unwrap().success());
    fs::remove_dir_all(daemon.folder().join("models/two")).unwrap();
    daemon.restart().unwrap();
    assert_eq!(text(&daemon, None), old);
    assert!(
        daemon.log().contains("not kept any more"),
        "{}",
        daemon.log()
    );
}

/// A named pipe; whoever waits for something to be written into it hears that there is nothing when this is dropped.
struct Pipe<'a>(&'a Path);

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        // As its reader too, so that this waits for none.
        let mut open = fs::OpenOptions::new();
        drop(open.read(true).write(true).open(self.0));
    }
}

#[test]
fn a_model_that_breaks_on_probation_gives_its_name_back_whatever_else_is_swapped() {
    let daemon = three("[cache]\npack = 'never'\n[models]\nprobation-s = 600\n");
    let old = text(&daemon, None);
    good(&andonctl(&daemon, &["model", "swap", "one"]));
    assert_ne!(text(&daemon, None), old);
    // Another swap takes as long as nobody writes into what its model is read from.
    let two = daemon.folder().join("models/two/two.gguf");
    fs::remove_file(&two).unwrap();
    let made = Command::new("mkfifo").arg(&two).status().unwrap();
    assert!(made.success());
    let swap = ["model", "swap", "two", "--for", "spare"];
    thread::scope(|scope| {
        let other = scope.spawn(|| andonctl(&daemon, &swap));
        let pipe = Pipe(&two);
        eventually("the other is being loaded", || {
            state(&daemon, "two") == "loading"
        });
        bad(&andonctl(&daemon, &swap), 5, "taking the name spare");
        let one = daemon.folder().join("models/one/one.gguf");
        let one = fs::OpenOptions::new().write(true).open(one).unwrap();
        one.set_len(4096).unwrap();
        let body = json!({ "prompt": "hello", "max_tokens": 12, "ignore_eos": true });
        eventually("the one before answers again", || {
            let reply = daemon.http().post("/v1/completions", &body).unwrap();
            reply.status == 200 && reply.json().unwrap()["choices"][0]["text"] == old
        });
        assert!(!other.is_finished());
        drop(pipe);
        bad(&other.join().unwrap(), 1, "two");
    });
    let names = daemon.folder().join("models/.names.json");
    eventually("that is kept", || {
        !fs::read_to_string(&names).unwrap().contains("one")
    });
}
