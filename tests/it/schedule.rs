//! Who goes first: places that change hands, and what one client may have.

use std::time::Duration;

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::metrics::metric;

/// Enough tokens that an answer is still being made when the test's next step comes.
const LONG: u32 = 4_000;

fn body(priority: &str, tokens: u32) -> Value {
    json!({
        "prompt": "The machine",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": true,
        "priority": priority,
    })
}

/// A daemon with a model that has room for [`LONG`] answers, whose file is in the folder.
fn long(config: &str) -> (TempDir, Daemon) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.gguf");
    let model = TinyModel {
        context_tokens_max: 65_536,
        ..TinyModel::default()
    };
    model.write(&path).unwrap();
    let daemon = Daemon::builder().model(&path).config(config).start();
    (folder, daemon.unwrap())
}

#[test]
fn batch_work_stands_aside_and_goes_on_with_the_same_text() {
    let (_folder, daemon) = long("[engine]\nparallel-max = 1\n");
    let http = daemon.http();
    let alone = http.post("/v1/completions", &body("batch", LONG)).unwrap();
    let alone = alone.json().unwrap();
    let mut streamed = body("batch", LONG);
    streamed["stream"] = json!(true);
    let mut stream = http.events("/v1/completions", &streamed).unwrap();
    let text_of = |data: &str| -> String {
        let data: Value = serde_json::from_str(data).unwrap();
        data["choices"][0]["text"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut text = text_of(&stream.next().unwrap().unwrap().data);
    for priority in ["interactive", "alarm"] {
        let reply = http.post("/v1/completions", &body(priority, 4)).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        // There is one place: the batch work was put aside, for the second one perhaps before it had its place again.
        assert!(metric::<u64>(&daemon, "andon_parked_total") > 0);
    }
    for event in stream {
        let data = event.unwrap().data;
        if data != "[DONE]" {
            text.push_str(&text_of(&data));
        }
    }
    assert_eq!(json!(text), alone["choices"][0]["text"]);
}

#[test]
fn a_client_that_asks_too_often_is_told_when_to_ask_again() {
    let daemon = Daemon::builder()
        .config("[limits]\nclient-requests-per-minute = 2\nclient-alarms-per-minute = 1\n")
        .start()
        .unwrap();
    let http = daemon.http();
    let ask = |priority| http.post("/v1/completions", &body(priority, 1)).unwrap();
    let statuses = ["batch", "interactive", "interactive", "alarm", "alarm"].map(|priority| {
        let reply = ask(priority);
        if reply.status == 429 {
            let after = reply.headers["retry-after"].to_str().unwrap();
            let after: u64 = after.parse().unwrap();
            assert!((1..=60).contains(&after), "{after}");
        }
        reply.status
    });
    assert_eq!(statuses, [200, 200, 429, 200, 429]);
}

#[test]
fn tokens_beyond_a_clients_rate_are_paid_off_first() {
    let daemon = Daemon::builder()
        .config("[limits]\nclient-tokens-per-minute = 20\n")
        .start()
        .unwrap();
    let http = daemon.http();
    let ask = |priority| http.post("/v1/completions", &body(priority, 40)).unwrap();
    assert_eq!(ask("batch").status, 200);
    let refused = ask("interactive");
    assert_eq!(refused.status, 429);
    assert!(refused.text().contains("tokens"), "{}", refused.text());
    assert_eq!(ask("alarm").status, 200);
}

#[test]
fn an_alarm_has_the_room_of_batch_work_which_is_computed_again() {
    // Room for the batch work, and a page more.
    let (_folder, daemon) = long("[model]\nkv-tokens-max = 4096\n");
    let http = daemon.http();
    let alone = http.post("/v1/completions", &body("batch", LONG)).unwrap();
    let alone = alone.json().unwrap();
    let mut streamed = body("batch", LONG);
    streamed["stream"] = json!(true);
    let mut stream = http.events("/v1/completions", &streamed).unwrap();
    let mut text = String::new();
    let events = stream.by_ref();
    let mut read = |count: usize| {
        for event in events.by_ref().take(count) {
            let data = event.unwrap().data;
            if data != "[DONE]" {
                let data: Value = serde_json::from_str(&data).unwrap();
                text.push_str(data["choices"][0]["text"].as_str().unwrap_or_default());
            }
        }
    };
    read(20);
    std::thread::scope(|scope| {
        // There is no room for this one beside the first, be it that that one reads again what it had.
        let other = scope.spawn(|| {
            let http = daemon.http();
            http.post("/v1/completions", &body("batch", 300)).unwrap()
        });
        while metric::<u64>(&daemon, "andon_waiting") == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let reply = http.post("/v1/completions", &body("alarm", 300)).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(daemon.log().contains("gives its room to an alarm"));
        read(usize::MAX);
        let reply = other.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
    assert_eq!(json!(text), alone["choices"][0]["text"]);
}
