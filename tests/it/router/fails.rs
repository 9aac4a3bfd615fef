//! An upstream that fails: half an answer is never left without a word.

use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, Watcher};
use andon_tests::daemon::Daemon;
use andon_tests::upstream::{Step, events_head, good, status, text};
use serde_json::{Value, json};

use super::{Scripted, ask, body, metric};

/// Half an answer, and the connection is gone.
fn half() -> Vec<Step> {
    let pause = Step::Wait(Duration::from_millis(300));
    let bytes = [events_head(), text("half of "), text("an ")].concat();
    vec![Step::Send(bytes), pause, Step::Reset]
}

#[test]
fn half_an_answer_begins_again_where_that_can_be_said_and_is_an_error_where_not() {
    let above = Scripted::start(vec![half()]);
    let config = above.config() + "[router]\nthreshold = 1.0\n";
    let broker = Broker::start().unwrap();
    let watcher = Watcher::start(broker.port(), "andon/test/response/#", "mqttv311").unwrap();
    let status = Watcher::start(broker.port(), "andon/test/status", "mqttv311").unwrap();
    let daemon = Daemon::builder()
        .config(&(broker.config() + &config))
        .start()
        .unwrap();
    let ready = status
        .wait_for(|seen| seen.json().is_ok_and(|value| value["ready"] == true))
        .unwrap();
    let ready = ready.json().unwrap();
    assert_eq!(ready["upstream"]["up"], true, "{ready}");
    assert_eq!(ready["upstream"]["servers"][0]["name"], "fake", "{ready}");

    // A whole reply is as if nothing had been.
    let (route, answer, value) = ask(&daemon, &body("why?", &json!({})));
    assert_eq!(route, "local-fallback");
    assert!(!answer.contains("half"), "{answer}");
    assert_eq!(value["model"], "tiny");

    // A stream over HTTP has no word for it.
    let stream = body("why?", &json!({"stream": true}));
    let events = daemon
        .http()
        .events("/v1/chat/completions", &stream)
        .unwrap();
    let events = events.rest().unwrap();
    assert!(events.contains("half of "), "{events}");
    assert!(events.contains("\"upstream_unavailable\""), "{events}");
    assert!(!events.contains("[DONE]"), "{events}");

    // Over MQTT a higher attempt replaces what came before.
    let request = json!({
        "id": "1", "egress": "any", "stream": true, "tokens_max": 3,
        "messages": [{"role": "user", "content": "why?"}],
    });
    broker
        .publish("andon/test/request/plc", &request.to_string())
        .unwrap();
    let mut chunks: Vec<(u64, String)> = Vec::new();
    let answer = watcher
        .wait_for(|seen| {
            let value = seen.json().unwrap();
            if value["type"] == "chunk" {
                let text = value["text"].as_str().unwrap().to_owned();
                chunks.push((value["attempt"].as_u64().unwrap(), text));
            }
            value["type"] == "answer"
        })
        .unwrap();
    let answer = answer.json().unwrap();
    let of = |attempt| -> String {
        let texts = chunks.iter().filter(|(of, _)| *of == attempt);
        texts.map(|(_, text)| text.as_str()).collect()
    };
    assert_eq!(of(1), "half of an ");
    assert_eq!(
        (&answer["attempt"], &answer["origin"]),
        (&json!(2), &json!("local-fallback"))
    );
    assert_eq!(of(2), answer["answer"].as_str().unwrap());
    // That one, and the whole reply, of whose beginning nobody was told.
    assert_eq!(metric(&daemon, "andon_route_restarted_total"), 2);
}

#[test]
fn whatever_upstream_does_an_answer_comes_or_a_clear_error() {
    let too_many = status("429 Too Many Requests", "Retry-After: 1\r\n", "{}");
    let scripts = [
        ("429", too_many),
        ("500", status("500 Internal Server Error", "", "{}")),
        (
            "redirects",
            status("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        ),
        (
            "garbage",
            vec![
                Step::Send(b"\x16\x03\x01 no HTTP at all\r\n\r\n".to_vec()),
                Step::Close,
            ],
        ),
        ("empty", good(&[])),
        ("closes", vec![Step::Close]),
        ("hangs", vec![Step::Hang]),
    ];
    for (name, script) in scripts {
        let above = Scripted::start(vec![script]);
        let config = above.config().replace(
            "retries-max = 0",
            "retries-max = 0\nfirst-token-timeout-ms = 500",
        ) + "[router]\nthreshold = 1.0\n";
        let daemon = Daemon::builder().config(&config).start().unwrap();
        let began = Instant::now();
        let (route, text, _) = ask(&daemon, &body("why?", &json!({"deadline_ms": 60_000})));
        // An answer of no words is one.
        let expected = if name == "empty" {
            "cloud"
        } else {
            "local-fallback"
        };
        assert_eq!(route, expected, "{name}");
        assert_eq!(text.is_empty(), name == "empty", "{name}");
        let insists = body("why?", &json!({"policy": "cloud"}));
        let reply = daemon
            .http()
            .post("/v1/chat/completions", &insists)
            .unwrap();
        if name != "empty" {
            let error: Value = reply.json().unwrap();
            assert!(reply.status >= 400, "{name}: {error}");
            let code = error["error"]["code"].as_str().unwrap();
            assert!(
                [
                    "upstream_unavailable",
                    "rate_limit_exceeded",
                    "unsupported_value"
                ]
                .contains(&code),
                "{name}: {error}"
            );
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{name}");
    }
}

#[test]
fn where_upstream_is_late_the_answer_is_made_here_beside_it() {
    let above = Scripted::start(vec![vec![Step::Hang]]);
    let config = above.config() + "[router]\nthreshold = 1.0\nhedge-ms = 50\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let began = Instant::now();
    let (route, text, _) = ask(&daemon, &body("why?", &json!({})));
    assert_eq!(route, "local-fallback");
    assert!(!text.is_empty());
    // Long before the first token's time is over.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(metric(&daemon, "andon_route_hedged_total"), 1);
    // Both are over, not left to themselves.
    assert_eq!(metric(&daemon, "andon_running"), 0);
}

#[test]
fn an_answer_is_made_beside_each_attempt_that_is_late() {
    let above = Scripted::start(vec![half(), vec![Step::Hang]]);
    let config = above.config() + "[router]\nthreshold = 1.0\nhedge-ms = 1000\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let began = Instant::now();
    let (route, _, value) = ask(&daemon, &body("why?", &json!({"wait": true})));
    assert_eq!(route, "local-fallback");
    assert_eq!(value["andon"]["late"], true, "{value}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(above.asked().len(), 2);
}

#[test]
fn calls_of_tools_come_back_as_calls() {
    let call = json!({"choices": [{"index": 0, "delta": {"tool_calls": [{
        "index": 0, "id": "call_1", "type": "function",
        "function": {"name": "stop_belt", "arguments": "{\"belt\": 3}"},
    }]}}]});
    let end = andon_tests::upstream::end("tool_calls");
    let bytes = [events_head(), andon_tests::upstream::event(&call), end].concat();
    let above = Scripted::start(vec![vec![Step::Send(bytes), Step::Close]]);
    let daemon = Daemon::builder().config(&above.config()).start().unwrap();
    let tools = json!([{"type": "function", "function": {
        "name": "stop_belt",
        "parameters": {"type": "object", "properties": {"belt": {"type": "integer"}}, "required": ["belt"]},
    }}]);
    let extra = json!({"policy": "cloud", "tools": tools, "tool_choice": "required"});
    let (route, _, value) = ask(&daemon, &body("stop it", &extra));
    assert_eq!(route, "cloud");
    let choice = &value["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{value}");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function["name"], "stop_belt", "{value}");
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"belt": 3}));
}
