//! Mixed load: questions over both front ends, alarms, batch work, tasks, cancels, clients that go away, and mistakes.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use andon_tests::broker::Broker;
use andon_tests::http::Client;
use andon_tests::mutate::Draw;
use serde_json::{Value, json};

/// What the daemon is told beside its broker.
pub(crate) const CONFIG: &str = "[task.explain]\nsystem = \"You help the operators of a press. Answer in one sentence.\"\n\
    instructions = \"Explain fault {{ code }}.\"\ntokens-max = 24\n";

/// Pauses between two requests of one client, at most, in milliseconds.
const PAUSE_MS: usize = 400;

/// What has been asked and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    answered: AtomicUsize,
    left: AtomicUsize,
    refused: AtomicUsize,
    failed: AtomicUsize,
    published: AtomicUsize,
}

impl Counts {
    pub(crate) fn said(&self) -> Value {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        json!({
            "answered": of(&self.answered), "left": of(&self.left), "refused": of(&self.refused),
            "failed": of(&self.failed), "published": of(&self.published),
        })
    }
}

/// Starts everybody; they end once it is over.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    http: &Client,
    broker: &'scope Broker,
    over: &'scope AtomicBool,
    counts: &'scope Counts,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let mut all = Vec::new();
    for (number, priority) in ["alarm", "interactive", "interactive", "batch", "batch"]
        .into_iter()
        .enumerate()
    {
        let http = http.clone();
        all.push(scope.spawn(move || {
            let mut draw = Draw::new(number as u64 + 1);
            while !over.load(Ordering::Relaxed) {
                ask(&http, priority, &mut draw, counts);
                thread::sleep(Duration::from_millis(draw.below(PAUSE_MS) as u64));
            }
        }));
    }
    all.push(scope.spawn(move || publish(broker, over, counts)));
    all
}

fn words(draw: &mut Draw) -> String {
    let most = if draw.below(8) == 0 { 400 } else { 40 };
    let count = 3 + draw.below(most);
    let words = [
        "belt", "press", "oil", "alarm", "valve", "the", "of", "stops", "reads", "E42", "hot",
        "slow",
    ];
    let some: Vec<&str> = (0..count).map(|_| words[draw.below(words.len())]).collect();
    some.join(" ")
}

/// One request over HTTP: read to its end, left in the middle, or wrong.
fn ask(http: &Client, priority: &str, draw: &mut Draw, counts: &Counts) {
    let add = |count: &AtomicUsize| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let mut body = json!({
        "messages": [{ "role": "user", "content": words(draw) }],
        "max_tokens": 1 + draw.below(if priority == "batch" { 96 } else { 32 }),
        "priority": priority,
        "stream": true,
    });
    let kind = draw.below(12);
    match kind {
        0 => body["temperature"] = json!("hot"),
        1 => body["response_format"] = json!({ "type": "json_object" }),
        2 => body["deadline_ms"] = json!(1 + draw.below(300)),
        _ => {}
    }
    let Ok(events) = http.events("/v1/chat/completions", &body) else {
        return add(&counts.failed);
    };
    if events.status != 200 {
        return add(&counts.refused);
    }
    // Some clients go away.
    let most = if kind > 8 { draw.below(6) } else { usize::MAX };
    let mut ended = false;
    for event in events.take(most) {
        match event {
            Ok(event) => ended |= event.data == "[DONE]",
            Err(_) => return add(&counts.failed),
        }
    }
    add(if ended {
        &counts.answered
    } else {
        &counts.left
    });
}

/// Requests, tasks and cancels over the broker, one message every so often.
fn publish(broker: &Broker, over: &AtomicBool, counts: &Counts) {
    let mut draw = Draw::new(77);
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        // Now and then an id comes again.
        let id = number - usize::from(draw.below(10) == 0);
        let (topic, payload) = match draw.below(6) {
            0 => ("andon/test/cancel/plc", (number - 1).to_string()),
            1 | 2 => (
                "andon/test/request/plc/explain",
                json!({ "id": id.to_string(), "input": { "code": format!("E{}", draw.below(90)) } }).to_string(),
            ),
            _ => (
                "andon/test/request/plc",
                json!({ "id": id.to_string(), "prompt": words(&mut draw), "tokens_max": 1 + draw.below(24), "stream": true })
                    .to_string(),
            ),
        };
        let mut client = broker.client("mosquitto_pub");
        client.args(["-q", "1", "-t", topic, "-m", &payload]);
        let done = client.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if done.is_ok_and(|status| status.success()) {
            counts.published.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(draw.below(2 * PAUSE_MS) as u64));
    }
}
