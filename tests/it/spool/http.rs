//! Requests over HTTP that outlive their connection and the daemon.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::http::Reply;
use andon_tests::tiny_model::TinyModel;
use hyper::Method;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn post(daemon: &Daemon, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    daemon
        .http()
        .send(Method::POST, path, headers, body.to_string())
        .unwrap()
}

fn question(tokens: u32) -> Value {
    json!({
        "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "temperature": 1.0,
    })
}

fn kept(daemon: &Daemon, id: &str) -> Value {
    let reply = daemon.http().get(&format!("/v1/requests/{id}")).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json().unwrap()
}

fn wait_for(daemon: &Daemon, id: &str) -> Value {
    let began = Instant::now();
    loop {
        let found = kept(daemon, id);
        if found["response"].is_object() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{found}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_key_gets_its_reply_again_and_none_for_another_body() {
    let mut daemon = Daemon::builder().start().unwrap();
    let key = [("idempotency-key", "order-7")];
    let first = post(&daemon, CHAT, &key, &question(8));
    assert_eq!(first.status, 200, "{}", first.text());
    assert!(!first.headers.contains_key("idempotent-replayed"));
    daemon.restart().unwrap();
    let again = post(&daemon, CHAT, &key, &question(8));
    assert_eq!(again.text(), first.text());
    assert_eq!(again.headers["idempotent-replayed"], "true");
    let other = post(&daemon, CHAT, &key, &question(9));
    assert_eq!(other.status, 422);
    assert_eq!(
        other.json().unwrap()["error"]["code"],
        "idempotency_key_reused"
    );
    // Drawn anew, answers differ; so the one above was not.
    let fresh = post(&daemon, CHAT, &[], &question(8)).json().unwrap();
    let text = |value: &Value| value["choices"][0]["message"]["content"].clone();
    assert_ne!(text(&fresh), text(&first.json().unwrap()));
    let bad = post(&daemon, CHAT, &[("idempotency-key", "a/b")], &question(8));
    assert_eq!(bad.status, 400);

    let mut streamed = question(8);
    streamed["stream"] = json!(true);
    for path in [CHAT, "/v1/responses"] {
        let body = if path == CHAT {
            streamed.clone()
        } else {
            json!({"input": "hello", "stream": true, "max_output_tokens": 20})
        };
        let key = [("idempotency-key", path.trim_start_matches("/v1/"))];
        let key = [(key[0].0, key[0].1.split('/').next().unwrap())];
        let first = post(&daemon, path, &key, &body);
        assert!(
            first.headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with("text/event-stream")
        );
        let again = post(&daemon, path, &key, &body);
        assert_eq!(again.text(), first.text());
    }
}

#[test]
fn a_request_for_later_is_answered_by_the_next_daemon() {
    let mut daemon = Daemon::builder().start().unwrap();
    let later = [("prefer", "respond-async"), ("idempotency-key", "night-1")];
    let taken = post(&daemon, CHAT, &later, &question(400));
    assert_eq!(taken.status, 202, "{}", taken.text());
    assert_eq!(taken.headers["location"], "/v1/requests/night-1");
    assert_eq!(taken.headers["preference-applied"], "respond-async");
    daemon.restart().unwrap();
    let found = wait_for(&daemon, "night-1");
    assert_eq!(found["attempt"], 2);
    assert_eq!(found["status"], 200);
    // Whole: what is drawn may also end before.
    let finish = &found["response"]["choices"][0]["finish_reason"];
    assert!(finish == "length" || finish == "stop", "{found}");
    // The same through the key, and once it is read it is delivered.
    let again = post(&daemon, CHAT, &[later[1]], &question(400));
    assert_eq!(again.json().unwrap(), found["response"]);
    assert_eq!(kept(&daemon, "night-1")["state"], "delivered");

    let unnamed = post(
        &daemon,
        "/v1/completions",
        &[later[0]],
        &json!({"prompt": "a", "max_tokens": 2}),
    );
    let id = unnamed.json().unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(
        wait_for(&daemon, &id)["response"]["object"],
        "text_completion"
    );
    let path = format!("/v1/requests/{id}");
    let gone = daemon
        .http()
        .send(Method::DELETE, &path, &[], String::new());
    assert_eq!(gone.unwrap().json().unwrap()["deleted"], true);
    assert_eq!(daemon.http().get(&path).unwrap().status, 404);
}

#[test]
fn what_was_accepted_is_computed_whoever_stays_and_however_busy_it_is() {
    let daemon = Daemon::builder()
        .config("[limits]\nclient-requests-max = 1\n")
        .start()
        .unwrap();
    // Clients that close at once, most of them before the disk has synced; and no place for more than one at a time.
    let body = question(2).to_string();
    for number in 0..8 {
        let mut stream = UnixStream::connect(daemon.http_socket()).unwrap();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nidempotency-key: gone-{number}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    }
    for number in 0..8 {
        let id = format!("later-{number}");
        let later = [
            ("prefer", "respond-async"),
            ("idempotency-key", id.as_str()),
        ];
        assert_eq!(post(&daemon, CHAT, &later, &question(2)).status, 202);
    }
    for number in 0..8 {
        assert_eq!(wait_for(&daemon, &format!("later-{number}"))["status"], 200);
        let key = format!("gone-{number}");
        let reply = post(&daemon, CHAT, &[("idempotency-key", &key)], &question(2));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

#[test]
fn a_request_that_ends_the_daemon_again_and_again_is_found_and_no_other_is_blamed() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("slow.gguf");
    // Slow enough that both are seen to run, however seldom it is looked.
    let slow = TinyModel {
        idle_layer_count: 60,
        ..TinyModel::default()
    };
    slow.write(&model).unwrap();
    let mut daemon = Daemon::builder().model(&model).start().unwrap();
    let later = |id| [("prefer", "respond-async"), ("idempotency-key", id)];
    let short = |daemon: &Daemon| post(daemon, CHAT, &[("idempotency-key", "short")], &question(1));
    assert_eq!(short(&daemon).status, 200);
    for id in ["a", "b"] {
        let reply = post(&daemon, CHAT, &later(id), &question(200));
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    let began = Instant::now();
    while ["a", "b"].map(|id| kept(&daemon, id)["state"].clone()) != ["running", "running"] {
        assert!(began.elapsed() < Duration::from_secs(60), "they do not run");
        thread::sleep(Duration::from_millis(1));
    }
    // What is read is read after all that was to be written before.
    assert_eq!(short(&daemon).status, 200);
    daemon.kill().unwrap();
    for _ in 0..3 {
        // Whichever is the first to have an answer.
        daemon
            .relaunch(&[("ANDOND_KILL_AT", "before-answered")])
            .unwrap();
        daemon.wait(Duration::from_secs(60)).unwrap();
    }
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    let mut statuses = ["a", "b"].map(|id| wait_for(&daemon, id)["status"].as_u64());
    statuses.sort();
    assert_eq!(statuses, [Some(200), Some(500)]);
}
