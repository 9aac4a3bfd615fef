//! Mixed load: questions over both front ends, alarms, batch work, tasks, cancels, clients that go away, and mistakes.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, Watcher};
use andon_tests::http::Client;
use andon_tests::mutate::Draw;
use anyhow::{Result, bail};
use serde_json::json;

use crate::record::Load;

/// Tokens of the KV cache: few, so that it is full before the looks count.
pub(crate) const KV_TOKENS: u64 = 4096;

/// What the daemon is told beside its broker.
pub(crate) fn config() -> String {
    format!(
        "[model]\nkv-tokens-max = {KV_TOKENS}\n[task.explain]\nsystem = \"You help the operators of a press. Answer in one sentence.\"\n\
         instructions = \"Explain fault {{{{ code }}}}.\"\ntokens-max = 24\n"
    )
}

/// Pauses between two requests of one client, at most, in milliseconds.
const PAUSE_MS: usize = 400;

/// Longest wait for the words that are still missing at the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What has been asked and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    answered: AtomicU64,
    left: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    published: AtomicU64,
    ended: AtomicU64,
    /// Ids over the broker that have no last word.
    open: Mutex<BTreeSet<String>>,
}

impl Counts {
    pub(crate) fn now(&self) -> Load {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Load {
            answered: of(&self.answered),
            left: of(&self.left),
            refused: of(&self.refused),
            failed: of(&self.failed),
            published: of(&self.published),
            ended: of(&self.ended),
            open: self.open().len() as u64,
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Starts everybody; they end once it is over.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    http: &Client,
    broker: &'scope Broker,
    over: &'scope AtomicBool,
    counts: &'scope Counts,
) -> Result<Vec<ScopedJoinHandle<'scope, Result<()>>>> {
    let watcher = broker.watch("andon/test/response/plc/#", "mqttv5")?;
    let mut all = vec![scope.spawn(move || listen(&watcher, over, counts))];
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
            Ok(())
        }));
    }
    all.push(scope.spawn(move || {
        publish(broker, over, counts);
        Ok(())
    }));
    Ok(all)
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
        let is_request = !topic.contains("cancel");
        if is_request {
            counts.open().insert(id.to_string());
        }
        let mut client = broker.client("mosquitto_pub");
        client.args(["-q", "1", "-t", topic, "-m", &payload]);
        let done = client.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            add(&counts.failed);
        } else if is_request {
            add(&counts.published);
        }
        thread::sleep(Duration::from_millis(draw.below(2 * PAUSE_MS) as u64));
    }
}

/// Counts last words, until each request has one.
fn listen(watcher: &Watcher, over: &AtomicBool, counts: &Counts) -> Result<()> {
    let mut ending = None;
    loop {
        if let Ok(seen) = watcher.next(Duration::from_secs(1)) {
            let value = seen.json()?;
            if value["type"] != "chunk" {
                add(&counts.ended);
                counts
                    .open()
                    .remove(value["id"].as_str().unwrap_or_default());
            }
        }
        if over.load(Ordering::Relaxed) {
            let began = ending.get_or_insert_with(Instant::now);
            let open = counts.open();
            if open.is_empty() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("no last word on {open:?}");
            }
        }
    }
}
