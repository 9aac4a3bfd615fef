//! Answers of a given shape over HTTP: they have it, whatever a model of random weights would say.

use andon_tests::daemon::Daemon;
use serde_json::{Value, json};

fn ask(daemon: &Daemon, path: &str, more: &Value) -> (u16, Value) {
    let mut body = match path {
        "/v1/chat/completions" => {
            json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 200 })
        }
        "/v1/completions" => json!({ "prompt": "hello", "max_tokens": 200 }),
        _ => json!({ "input": "hello", "max_output_tokens": 200 }),
    };
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    let reply = daemon.http().post(path, &body).unwrap();
    (reply.status, reply.json().unwrap())
}

/// The text of an answer, and why it ended.
fn said(daemon: &Daemon, path: &str, more: &Value) -> (String, String) {
    let (status, reply) = ask(daemon, path, more);
    assert_eq!(status, 200, "{reply}");
    let (text, reason) = match path {
        "/v1/chat/completions" => ("/choices/0/message/content", "/choices/0/finish_reason"),
        "/v1/completions" => ("/choices/0/text", "/choices/0/finish_reason"),
        _ => ("/output/0/content/0/text", "/status"),
    };
    let at = |pointer: &str| {
        reply
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    (at(text).to_owned(), at(reason).to_owned())
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "severity": { "type": "string", "enum": ["critical", "major", "minor"] },
            "reason": { "type": "string" },
            "stopped": { "type": "boolean" }
        },
        "required": ["severity", "reason", "stopped"],
        "additionalProperties": false
    })
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("not JSON: {text}"));
    let names: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 3, "{text}");
    assert!(["critical", "major", "minor"].contains(&value["severity"].as_str().unwrap()));
    assert!(value["reason"].is_string() && value["stopped"].is_boolean());
    // The order is the schema's, which a map may have lost.
    assert!(text.starts_with("{\"severity\":\""), "{text}");
}

#[test]
fn answers_have_the_shape_that_was_asked_for() {
    let daemon = Daemon::builder().start().unwrap();
    for seed in 0..4 {
        let sampled = |mut fields: Value| {
            fields["seed"] = json!(seed);
            fields["temperature"] = json!(1.5);
            fields
        };
        let nested = json!({ "type": "json_schema",
            "json_schema": { "name": "fault", "strict": true, "schema": schema() } });
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let (text, reason) = said(
                &daemon,
                path,
                &sampled(json!({ "response_format": nested })),
            );
            check(&text);
            assert_eq!(reason, "stop");
        }
        let flat = json!({ "type": "json_schema", "name": "fault", "schema": schema() });
        let fields = sampled(json!({ "text": { "format": flat } }));
        let (text, status) = said(&daemon, "/v1/responses", &fields);
        check(&text);
        assert_eq!(status, "completed");
        let any = sampled(json!({ "response_format": { "type": "json_object" } }));
        let (text, reason) = said(&daemon, "/v1/chat/completions", &any);
        assert!(
            serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()),
            "{text}"
        );
        assert_eq!(reason, "stop");
        let format = json!({ "type": "regex", "regex": "(yes|no), [0-9]{2}" });
        let (text, _) = said(
            &daemon,
            "/v1/completions",
            &sampled(json!({ "response_format": format })),
        );
        assert!(
            text.starts_with("yes, ") || text.starts_with("no, "),
            "{text}"
        );
        let format = json!({ "type": "gbnf", "grammar": "root ::= \"<\" root? \">\"" });
        let fields = sampled(json!({ "response_format": format }));
        let (text, reason) = said(&daemon, "/v1/completions", &fields);
        let half = text.len() / 2;
        assert!(
            reason == "length" || text == "<".repeat(half) + &">".repeat(half),
            "{text}"
        );
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_by_field_name_and_place() {
    let daemon = Daemon::builder().start().unwrap();
    let with = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } });
    for (fields, parts) in [
        (
            with(json!({ "properties": { "a": { "not": {} } } })),
            ["`not`", "/properties/a"],
        ),
        (
            with(json!({ "type": "object", "required": ["a"], "additionalProperties": false })),
            ["nothing satisfies", "schema"],
        ),
        (with(json!({ "enum": vec![0; 2000] })), ["/enum", "at most"]),
        (
            json!({ "response_format": { "type": "regex", "regex": "(" } }),
            ["regular expression", "not valid"],
        ),
        (
            json!({ "response_format": { "type": "xml" } }),
            ["response_format.type", "json_schema"],
        ),
    ] {
        let (status, reply) = ask(&daemon, "/v1/chat/completions", &fields);
        assert_eq!(status, 400, "{reply}");
        assert_eq!(reply["error"]["param"], "response_format", "{reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    // A limit that no answer keeps is refused where that is certain, one that may cut an answer cuts it.
    let mut fields = with(schema());
    fields["max_tokens"] = json!(1);
    let (status, reply) = ask(&daemon, "/v1/chat/completions", &fields);
    assert_eq!(status, 400, "{reply}");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("at most 1 tokens"), "{message}");
    let mut fields = with(json!({ "type": "string", "minLength": 50, "maxLength": 60 }));
    fields["max_tokens"] = json!(3);
    let (_, reason) = said(&daemon, "/v1/chat/completions", &fields);
    assert_eq!(reason, "length");
}

#[test]
fn properties_come_as_each_schema_has_them() {
    let daemon = Daemon::builder().start().unwrap();
    for names in [
        ["first", "second"],
        ["second", "first"],
        ["first", "second"],
    ] {
        let mut schema = json!({ "type": "object", "required": names, "properties": {} });
        for name in names {
            schema["properties"][name] = json!({ "type": "boolean" });
        }
        // Without the order of what is sent, this test would say nothing.
        let sent = schema["properties"].to_string();
        assert!(sent.starts_with(&format!("{{\"{}\"", names[0])), "{sent}");
        let format =
            json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        let asked = json!({ "response_format": format });
        let (text, _) = said(&daemon, "/v1/chat/completions", &asked);
        assert!(text.starts_with(&format!("{{\"{}\"", names[0])), "{text}");
    }
}
