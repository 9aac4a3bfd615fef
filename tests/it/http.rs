//! The HTTP socket as a hostile or clumsy program uses it: every answer is typed, the daemon lives on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

/// A request that any running daemon answers.
fn question() -> Value {
    json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 4, "temperature": 0 })
}

fn answer(daemon: &Daemon) -> String {
    let reply = daemon
        .http()
        .post("/v1/chat/completions", &question())
        .unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json().unwrap()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Sends bytes as they are and returns what comes back until the daemon closes or `timeout` passes.
fn raw(daemon: &Daemon, bytes: &[u8], timeout: Duration) -> String {
    let mut stream = UnixStream::connect(daemon.http_socket()).unwrap();
    stream.set_read_timeout(Some(timeout)).unwrap();
    // The daemon may close before it has read everything; that is an answer too.
    drop(stream.write_all(bytes));
    let (mut reply, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        reply.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn probes_and_metrics() {
    let daemon = Daemon::builder().start().unwrap();
    let http = daemon.http();
    assert_eq!(http.get("/healthz").unwrap().status, 200);
    assert_eq!(http.get("/readyz").unwrap().status, 200);
    answer(&daemon);
    let metrics = http.get("/metrics").unwrap();
    assert_eq!(metrics.status, 200);
    let text = metrics.text();
    assert!(text.contains("# TYPE andon_"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("not a sample: {line}"));
        assert!(name.starts_with("andon_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn the_machine_is_measured_while_nothing_is_asked() {
    let daemon = Daemon::builder().start().unwrap();
    let metrics = || daemon.http().get("/metrics").unwrap().text();
    let sample = |name: &str| -> f64 {
        let text = metrics();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name}\n{text}"))
    };
    let began = Instant::now();
    while sample("andon_calibrated") == 0.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", metrics());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(sample("andon_memory_read_bytes_per_second") > 0.0);
    assert!(sample("andon_int8_multiply_adds_per_second") > 0.0);
    assert_eq!(sample("andon_column_cost_ratios{columns=\"1\"}"), 1.0);
    assert!(sample("andon_column_cost_ratios{columns=\"8\"}") > 0.0);
    assert!(sample("andon_spin_seconds") > 0.0);
    assert!(metrics().contains("andon_huge_pages{mode="));
    answer(&daemon);
    assert!(sample("andon_decode_bandwidth_ratios_count") > 0.0);
}

#[test]
fn errors_have_openais_shape() {
    let daemon = Daemon::builder().start().unwrap();
    let http = daemon.http();
    let cases = [
        ("/v1/chat/completions", "", 400),
        ("/v1/chat/completions", "{", 400),
        ("/v1/chat/completions", "[]", 400),
        ("/v1/chat/completions", "{}", 400),
        ("/v1/chat/completions", "\u{feff}{}", 400),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"king","content":"x"}]}"#,
            400,
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user"}]}"#,
            400,
        ),
        ("/v1/completions", r#"{"prompt":["a",1]}"#, 400),
        ("/v1/completions", r#"{"prompt":[]}"#, 400),
        ("/tokenize", "{}", 400),
        ("/v1/responses", "{}", 400),
        ("/v1/responses", r#"{"input":[{"role":"user"}]}"#, 400),
        (
            "/v1/responses",
            r#"{"input":"x","previous_response_id":"resp_none"}"#,
            400,
        ),
        ("/v1/responses/resp_none", "{}", 405),
        ("/detokenize", r#"{"tokens":["a"]}"#, 400),
        ("/apply-template", r#"{"messages":[]}"#, 400),
        ("/v1/completions", r#"{"prompt":"a","max_tokens":-1}"#, 400),
        (
            "/v1/completions",
            r#"{"prompt":"a","max_tokens":1e99}"#,
            400,
        ),
        ("/v1/nothing", "{}", 404),
        ("/healthz", "{}", 405),
    ];
    for (path, body, status) in cases {
        let headers = [("content-type", "application/json")];
        let reply = http
            .send(hyper::Method::POST, path, &headers, body.to_owned())
            .unwrap();
        assert_eq!(reply.status, status, "{path} {body:?}: {}", reply.text());
        let error = reply.json().unwrap()["error"].clone();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{path} {body:?}: {error}"
        );
    }
    // Nested far deeper than any request is.
    let deep = format!(
        "{{\"messages\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let reply = http
        .send(hyper::Method::POST, "/v1/chat/completions", &[], deep)
        .unwrap();
    assert_eq!(reply.status, 400, "{}", reply.text());
    answer(&daemon);
}

#[test]
fn broken_requests_are_refused_and_the_next_one_is_served() {
    let daemon = Daemon::builder()
        .config("[http]\nheader-timeout-ms = 500\nbody-timeout-ms = 500\n")
        .start()
        .unwrap();
    let expected = answer(&daemon);
    let second = Duration::from_secs(5);
    let length = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length:";
    let broken: [Vec<u8>; 8] = [
        b"\0\xff\xfe\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        format!("{length} -5\r\n\r\n").into_bytes(),
        format!("{length} 99999999999999999999999\r\n\r\n").into_bytes(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000)).into_bytes(),
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n"
            .to_vec(),
    ];
    for bytes in &broken {
        let reply = raw(&daemon, bytes, second);
        let status = reply.split(' ').nth(1).unwrap_or_default();
        assert!(
            reply.is_empty() || status.starts_with('4'),
            "{:?}: {reply}",
            String::from_utf8_lossy(&bytes[..20.min(bytes.len())])
        );
    }
    // A head and a body that never come are not waited for.
    for bytes in [
        "GET /healthz HTTP/1.1\r\nho".to_owned(),
        format!("{length} 100\r\n\r\n{{"),
    ] {
        let reply = raw(&daemon, bytes.as_bytes(), Duration::from_secs(30));
        assert!(reply.is_empty() || reply.contains(" 408 "), "{reply}");
    }
    assert_eq!(answer(&daemon), expected);
}

#[test]
fn more_connections_than_are_taken_do_not_lock_the_others_out_for_ever() {
    let daemon = Daemon::builder()
        .config("[http]\nconnections-max = 4\nheader-timeout-ms = 500\n")
        .start()
        .unwrap();
    let idle: Vec<UnixStream> = (0..16)
        .filter_map(|_| UnixStream::connect(daemon.http_socket()).ok())
        .collect();
    answer(&daemon);
    drop(idle);
}

#[test]
fn requests_at_once_beyond_the_queue_are_refused_with_a_hint() {
    let daemon = Daemon::builder()
        .config("[engine]\nparallel-max = 1\n[limits]\nqueue-max = 1\n")
        .start()
        .unwrap();
    let long = json!({ "prompt": "hello", "max_tokens": 400, "temperature": 0 });
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let (http, long) = (daemon.http(), &long);
                scope.spawn(move || {
                    let reply = http.post("/v1/completions", long).unwrap();
                    if reply.status == 429 {
                        assert!(
                            reply.headers.contains_key("retry-after"),
                            "{}",
                            reply.text()
                        );
                    }
                    reply.status
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    assert!(
        statuses.contains(&200) && statuses.contains(&429),
        "{statuses:?}"
    );
    answer(&daemon);
}

#[test]
fn wrong_values_of_every_field_are_named() {
    let daemon = Daemon::builder()
        .config("[model]\nkv-tokens-max = 256\n")
        .start()
        .unwrap();
    let http = daemon.http();
    let cases = [
        ("/v1/chat/completions", "n", json!(0)),
        ("/v1/chat/completions", "n", json!(17)),
        ("/v1/chat/completions", "n", json!(9)),
        ("/v1/chat/completions", "n", json!(-1)),
        ("/v1/chat/completions", "typical_p", json!(1.5)),
        (
            "/v1/chat/completions",
            "logit_bias",
            json!({"4000000000": 1}),
        ),
        ("/v1/chat/completions", "logit_bias", json!({"a": 1})),
        ("/v1/chat/completions", "chat_template_kwargs", json!(1)),
        ("/v1/chat/completions", "ignore_eos", json!("yes")),
        ("/v1/chat/completions", "store", json!(true)),
        ("/v1/completions", "prompt", json!([4_000_000_000_u32])),
        ("/v1/completions", "prompt", json!([[]])),
        ("/v1/completions", "best_of", json!(2)),
        ("/v1/completions", "suffix", json!("x")),
        ("/infill", "input_suffix", json!("x")),
        ("/infill", "input_extra", json!(vec![1; 65])),
        ("/v1/responses", "input", json!([])),
        ("/v1/responses", "max_output_tokens", json!(0)),
        ("/v1/responses", "instructions", json!(1)),
        ("/v1/responses", "tools", json!({ "type": "function" })),
        ("/v1/responses", "conversation", json!("conv_1")),
        ("/v1/responses", "logit_bias", json!({"4000000000": 1})),
        ("/tokenize", "content", json!(["x"])),
        ("/tokenize", "add_special", json!(1)),
        ("/tokenize", "more", json!(true)),
        ("/detokenize", "tokens", json!([4_000_000_000_u32])),
        ("/detokenize", "tokens", json!([-1])),
        ("/apply-template", "messages", json!([])),
    ];
    for (path, param, value) in cases {
        let mut body = match path {
            "/v1/chat/completions" => question(),
            "/v1/completions" => json!({ "prompt": "x", "max_tokens": 4 }),
            "/v1/responses" => json!({ "input": "x", "max_output_tokens": 4 }),
            "/tokenize" => json!({ "content": "x" }),
            "/infill" => json!({ "input_prefix": "x", "input_suffix": "y" }),
            _ => json!({}),
        };
        body[param] = value.clone();
        let reply = http.post(path, &body).unwrap();
        assert_eq!(
            reply.status,
            400,
            "{path} {param} {value}: {}",
            reply.text()
        );
        let error = reply.json().unwrap()["error"].clone();
        assert_eq!(error["param"], param, "{path} {value}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{error}");
    }
    // More answers than the KV cache has room for would never start.
    let mut body = question();
    (body["n"], body["max_tokens"]) = (json!(8), json!(100));
    let reply = http.post("/v1/chat/completions", &body).unwrap();
    assert_eq!(
        reply.json().unwrap()["error"]["param"],
        "n",
        "{}",
        reply.text()
    );
    answer(&daemon);
}

#[test]
fn text_becomes_tokens_and_back() {
    let daemon = Daemon::builder().start().unwrap();
    let http = daemon.http();
    let post = |path: &str, body: Value| {
        let reply = http.post(path, &body).unwrap();
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json().unwrap()
    };
    let text = "The belt — 温度 ok?";
    let ids = post("/tokenize", json!({ "content": text }))["tokens"].clone();
    assert!(ids.as_array().is_some_and(|ids| !ids.is_empty()), "{ids}");
    assert_eq!(
        post("/v1/detokenize", json!({ "tokens": ids }))["content"],
        text
    );
    let pieces = post(
        "/v1/tokenize",
        json!({ "content": text, "with_pieces": true }),
    );
    let pieces = pieces["tokens"].as_array().unwrap();
    assert_eq!(pieces.len(), ids.as_array().unwrap().len());
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| match &piece["piece"] {
            Value::String(text) => text.clone().into_bytes(),
            other => serde_json::from_value(other.clone()).unwrap(),
        })
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let prompt = post("/apply-template", json!({ "messages": messages }))["prompt"].clone();
    assert!(
        prompt
            .as_str()
            .is_some_and(|prompt| prompt.contains("hello"))
    );
    assert_eq!(
        post("/tokenize", json!({ "content": "" }))["tokens"],
        json!([])
    );
    assert_eq!(http.get("/health").unwrap().json().unwrap()["status"], "ok");
    let props = http.get("/props").unwrap().json().unwrap();
    assert_eq!(props["total_slots"], 8, "{props}");
    assert!(
        props["default_generation_settings"]["n_ctx"].is_u64(),
        "{props}"
    );
}

const TOOL_TEMPLATE: &str = "\
{% if tools %}<{{ tools[0].function.name }}>{% endif %}{% if documents %}({{ documents[0].text }}){% endif %}\
{% if mood is defined %}~{{ mood }}~{% endif %}\
{% for m in messages %}[{{ m.role }}]{{ m.content }}\
{% for call in m.tool_calls %}<call>{\"{{ call.function.name }}\": {{ WRITTEN }}}</call>{% endfor %}{% endfor %}";

#[test]
fn templates_see_tools_calls_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let tools = json!([{ "type": "function", "function": { "name": "status" } }]);
    let messages = json!([
        { "role": "user", "content": "Why?" },
        { "role": "assistant", "tool_calls": [
            { "id": "c1", "type": "function", "function": { "name": "status", "arguments": "{\"line\": 3}" } },
        ] },
        { "role": "tool", "tool_call_id": "c1", "content": "stopped" },
    ]);
    let body = json!({
        "messages": messages, "tools": tools,
        "chat_template_kwargs": { "mood": "calm", "documents": [{ "title": "E42", "text": "jam" }] },
    });
    // Some templates write arguments as JSON, some take the text.
    for (place, written, shown) in [
        (
            "tojson",
            "call.function.arguments | tojson(separators=(',', ':'))",
            "{\"line\":3}",
        ),
        ("text", "'' + call.function.arguments", "{\"line\": 3}"),
    ] {
        let path = folder.path().join(place);
        std::fs::write(&path, TOOL_TEMPLATE.replace("WRITTEN", written)).unwrap();
        let config = format!("[model]\nchat-template = \"{}\"\n", path.display());
        let daemon = Daemon::builder().config(&config).start().unwrap();
        let http = daemon.http();
        let reply = http.post("/apply-template", &body).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(
            reply.json().unwrap()["prompt"],
            format!(
                "<status>(jam)~calm~[user]Why?[assistant]<call>{{\"status\": {shown}}}</call>[tool]stopped"
            )
        );
        let mut asked = body.clone();
        (asked["max_tokens"], asked["tool_choice"]) = (json!(2), json!("none"));
        let reply = http.post("/v1/chat/completions", &asked).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        for choice in ["auto", "required"] {
            asked["tool_choice"] = json!(choice);
            asked["max_tokens"] = json!(64);
            asked["parallel_tool_calls"] = json!(false);
            let reply = http.post("/v1/chat/completions", &asked).unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            let choice = &reply.json().unwrap()["choices"][0];
            if asked["tool_choice"] == "required" {
                let call = &choice["message"]["tool_calls"][0];
                assert_eq!(call["function"]["name"], "status", "{choice}");
                assert_eq!(call["function"]["arguments"], "{}", "{choice}");
                assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
                assert_eq!(choice["message"]["content"], Value::Null, "{choice}");
            }
        }
    }
    // Where the template tells of none, what the system says does.
    let daemon = Daemon::builder().start().unwrap();
    let reply = daemon.http().post("/apply-template", &body).unwrap();
    let prompt = reply.json().unwrap()["prompt"].to_string();
    assert!(
        prompt.contains("<tool_call>") && prompt.contains("<tool_response>"),
        "{prompt}"
    );
}

#[test]
fn a_hundred_wrong_ways_to_ask_for_tools() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    // A letter is a token here, and tools take many to tell of.
    let model = TinyModel {
        context_tokens_max: 4096,
        ..TinyModel::default()
    };
    model.write(&path).unwrap();
    let daemon = Daemon::builder().model(&path).start().unwrap();
    let http = daemon.http();
    let tool = |name: &str, parameters: Value| json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let deep = (0..45).fold(
        json!({}),
        |inner, _| json!({ "type": "object", "properties": { "a": inner } }),
    );
    let wide: serde_json::Map<String, Value> = (0..2000)
        .map(|index| (format!("p{index}"), json!({ "type": "null" })))
        .collect();
    let recursive =
        json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] });
    for (tools, status, named) in [
        (
            json!([tool("t", json!({ "type": "string" }))]),
            400,
            "tool `t`",
        ),
        (
            json!([tool(
                "t",
                json!({ "type": "object", "minProperties": 9, "maxProperties": 1 })
            )]),
            400,
            "tool `t`",
        ),
        (json!([tool("t", deep)]), 400, "tool `t`"),
        (
            json!([tool("t", json!({ "type": "object", "properties": wide }))]),
            400,
            "at most",
        ),
        (json!([tool("t", recursive)]), 400, "tool `t`"),
        (
            json!([tool(
                "t",
                json!({ "type": "object", "properties": { "a": { "pattern": "(" } } })
            )]),
            400,
            "tool `t`",
        ),
        (json!(vec![tool("t", json!({})); 1000]), 400, "128"),
        (json!([tool("", json!({}))]), 400, "tools[0].function.name"),
        (
            json!([tool(&"n".repeat(65), json!({}))]),
            400,
            "tools[0].function.name",
        ),
        (
            json!([tool("t", json!({ "type": "object", "x-note": "y" }))]),
            200,
            "",
        ),
    ] {
        for choice in ["auto", "required"] {
            let asked = json!({
                "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 40,
                "tools": tools, "tool_choice": choice, "parallel_tool_calls": false,
            });
            let reply = http.post("/v1/chat/completions", &asked).unwrap();
            let text = reply.text();
            assert_eq!(reply.status, status, "{text}");
            assert!(text.contains(named), "{text}");
        }
    }
    answer(&daemon);
}

#[test]
fn a_model_with_the_tokens_for_it_fills_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gaps.gguf");
    let model = TinyModel {
        fills_gaps: true,
        ..TinyModel::default()
    };
    model.write(&path).unwrap();
    let daemon = Daemon::builder().model(&path).start().unwrap();
    let http = daemon.http();
    let post = |path: &str, body: Value| {
        let reply = http.post(path, &body).unwrap();
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json().unwrap()
    };
    let (before, after) = ("the belt ", " stops<|fim_middle|>");
    let gap = json!({
        "input_prefix": before, "input_suffix": after, "n_predict": 6, "temperature": 0,
    });
    let filled = post("/infill", gap.clone());
    let text = filled["content"].as_str().unwrap();
    assert!(!text.is_empty(), "{filled}");
    assert_eq!(
        (&filled["stop"], &filled["tokens_predicted"]),
        (&json!(true), &json!(6))
    );
    // The same by tokens: text of a control token stays text, and is none where it is a token.
    let ids = |content: &str, special: bool| -> Vec<Value> {
        let body = json!({ "content": content, "parse_special": special });
        let tokens = post("/tokenize", body)["tokens"].clone();
        tokens.as_array().unwrap().clone()
    };
    let prompt = [
        ids("<|fim_prefix|>", true),
        ids(before, false),
        ids("<|fim_suffix|>", true),
        ids(after, false),
        ids("<|fim_middle|>", true),
    ]
    .concat();
    let continued = json!({ "prompt": prompt, "max_tokens": 6, "temperature": 0 });
    let continued = post("/v1/completions", continued);
    assert_eq!(continued["choices"][0]["text"], text);
    assert_eq!(
        continued["usage"]["prompt_tokens"],
        filled["tokens_evaluated"]
    );
    let suffixed = json!({ "prompt": before, "suffix": after, "max_tokens": 6, "temperature": 0, "echo": true });
    let suffixed = post("/v1/completions", suffixed);
    assert_eq!(suffixed["choices"][0]["text"], format!("{before}{text}"));
    let mut streamed = gap.clone();
    streamed["stream"] = json!(true);
    let reply = http.post("/infill", &streamed).unwrap();
    let events: Vec<Value> = reply
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    let pieces = events.iter().filter_map(|event| event["content"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    assert_eq!(events.last().unwrap()["stop"], true);
    let mut with_files = gap;
    with_files["input_extra"] = json!([{ "filename": "belt.rs", "text": "fn stop() {}" }]);
    let with_files = post("/infill", with_files);
    let evaluated = |value: &Value| value["tokens_evaluated"].as_u64();
    assert!(evaluated(&with_files) > evaluated(&filled), "{with_files}");
}

#[test]
fn the_prefix_cache_changes_nothing_but_the_tokens_computed() {
    let ask = |daemon: &Daemon| -> Vec<Value> {
        let http = daemon.http();
        let text = "The press is hot and the belt is slow. ".repeat(12);
        let prompts = [
            text.clone(),
            format!("{text}Why?"),
            text,
            "Short.".to_owned(),
        ];
        let replies = prompts.iter().chain(&prompts).map(|prompt| {
            let body = json!({
                "prompt": prompt, "max_tokens": 12, "temperature": 1.5, "seed": 4, "logprobs": 3, "n": 2,
            });
            let reply = http.post("/v1/completions", &body).unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json().unwrap()
        });
        replies.collect()
    };
    let with = ask(&Daemon::builder().start().unwrap());
    let off = Daemon::builder()
        .config("[engine]\nprefix-cache = false\n")
        .start()
        .unwrap();
    let without = ask(&off);
    let cached = |reply: &Value| {
        reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    for (with, without) in with.iter().zip(&without) {
        assert_eq!(with["choices"], without["choices"]);
        assert_eq!(cached(without), 0);
    }
    assert_eq!(cached(&with[0]), 0);
    for again in [1, 2, 4, 5, 6] {
        assert!(
            cached(&with[again]) >= 64,
            "{again}: {}",
            with[again]["usage"]
        );
    }
    let metrics = off.http().get("/metrics").unwrap().text();
    assert!(metrics.contains("andon_prefix_hits_total 0"), "{metrics}");
    assert!(metrics.contains("andon_cached_tokens_total 0"), "{metrics}");
}

#[test]
fn guesses_change_nothing_but_the_passes() {
    let details = |reply: &Value, what: &str| -> u64 {
        let details = &reply["usage"]["completion_tokens_details"];
        let tokens = &details[format!("{what}_prediction_tokens")];
        tokens.as_u64().unwrap_or_else(|| panic!("{reply}"))
    };
    let ask = |daemon: &Daemon| -> Vec<Value> {
        let mut replies: Vec<Value> = Vec::new();
        for temperature in [0.0, 0.9] {
            let mut body = question();
            body["max_tokens"] = json!(48);
            body["temperature"] = json!(temperature);
            body["seed"] = json!(7);
            body["logprobs"] = json!(true);
            let wrong = json!("Quite another text, which is not the answer.");
            for prediction in [None, Some(wrong), Some(Value::Null)] {
                if let Some(mut text) = prediction {
                    if text.is_null() {
                        text =
                            replies[replies.len() - 1]["choices"][0]["message"]["content"].clone();
                    }
                    body["prediction"] = json!({"type": "content", "content": text});
                }
                let reply = daemon.http().post("/v1/chat/completions", &body).unwrap();
                assert_eq!(reply.status, 200, "{}", reply.text());
                replies.push(reply.json().unwrap());
            }
        }
        replies
    };
    let on = Daemon::builder().start().unwrap();
    let with = ask(&on);
    let off = Daemon::builder()
        .config("[speculation]\nenabled = false\n")
        .start()
        .unwrap();
    let without = ask(&off);
    let with_all = &with;
    for (index, (with, without)) in with.iter().zip(&without).enumerate() {
        // All of one temperature are the same, too.
        assert_eq!(with["choices"], without["choices"], "{index}");
        let first = &with_all[index / 3 * 3];
        assert_eq!(with["choices"], first["choices"]);
        assert_eq!(details(without, "accepted"), 0);
        assert_eq!(details(without, "rejected"), 0);
        let tokens = with["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(details(with, "accepted") < tokens);
    }
    let sum = |name: &str| -> u64 {
        let metrics = on.http().get("/metrics").unwrap().text();
        let samples = metrics.lines().filter(|line| line.starts_with(name));
        let values = samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        values.sum()
    };
    let accepted: u64 = with.iter().map(|reply| details(reply, "accepted")).sum();
    let rejected: u64 = with.iter().map(|reply| details(reply, "rejected")).sum();
    // The last pass is counted after its answer is on its way.
    let counted = || {
        sum("andon_accepted_tokens_total{") == accepted
            && sum("andon_guessed_tokens_total{") == accepted + rejected
    };
    let looked = (0..500).any(|_| {
        counted() || {
            thread::sleep(Duration::from_millis(10));
            false
        }
    });
    assert!(
        looked,
        "{accepted} and {rejected} are not what the metrics say"
    );
    let metrics = off.http().get("/metrics").unwrap().text();
    assert!(
        !metrics.contains("andon_guessed_tokens_total{"),
        "{metrics}"
    );
}
