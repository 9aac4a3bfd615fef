//! Secrets that stay here, looked for in what arrives above, and put back into what comes of it.

use andon_tests::daemon::Daemon;
use andon_tests::upstream::{Step, end, event, events_head, good};
use serde_json::{Value, json};

use super::{Scripted, ask, body};

const CONFIG: &str = "[router]\nthreshold = 1.0\n\
    [[redact]]\nname = \"serial\"\npattern = 'SN-[0-9]{4,}'\n\
    [[redact]]\nname = \"lot\"\npattern = '[0-9]{4}-[a-z]{4}'\n\
    [[redact]]\nname = \"quote\"\npattern = '<[^>]*>'\n";

fn stop(parameters: &Value) -> Value {
    let function = json!({"name": "stop", "description": "of SN-1001", "parameters": parameters});
    json!({"type": "function", "function": function})
}

/// A stream with one call of a tool.
fn calling(name: &str, arguments: &str) -> Vec<Step> {
    let function = json!({"name": name, "arguments": arguments});
    let call = json!({"index": 0, "id": "c1", "type": "function", "function": function});
    let chunk = json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
    [events_head(), event(&chunk), end("tool_calls")]
        .into_iter()
        .map(Step::Send)
        .collect()
}

#[test]
fn no_secret_is_in_what_arrives_wherever_it_stood() {
    let above = Scripted::start(vec![good(&["Is it [seri", "al_1], or SERIAL\\_2?"])]);
    let daemon = Daemon::builder()
        .config(&(above.config() + CONFIG))
        .start()
        .unwrap();
    let parameters = json!({
        "type": "object",
        "properties": {
            "SN-1002": {"type": "string", "enum": ["SN-1003"], "default": {"SN-1004": "SN-1005"}},
            "default": {"type": "string", "x-note": ["SN-1006"], "description": "ＳＮ－1007"},
        },
        "required": ["SN-1002"],
        "$comment": "SN-1008-abcd",
    });
    let arguments =
        r#"{"SN-1002":"\u0053N-1009","SN-1002":"SN\u002d1010","in":"{\"of\":\"SN-\\u0031011\"}"}"#;
    let call = json!({"id": "SN-1012", "type": "function", "function": {"name": "stop", "arguments": arguments}});
    let asked = json!({
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "You know SN-"}, {"type": "text", "text": "1013."}]},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "SN-1012", "content": "{\"is\":\"SN\\u002d1014-abcd\"}"},
            {"role": "user", "content": "Which is SN\u{2011}1015, SN-10\u{200b}16 or 1017-abcd?"},
        ],
        "tools": [stop(&parameters)],
        "tool_choice": "none",
        "stop": ["SN-1018"],
        "max_tokens": 4,
        "egress": "any",
    });
    let (route, said, _) = ask(&daemon, &asked);
    assert_eq!(
        (route.as_str(), said.as_str()),
        ("cloud", "Is it SN-1013, or SN-1012?")
    );
    let sent = above.asked();
    let text = Value::from(sent.clone()).to_string();
    for number in 1001..=1018 {
        assert!(!text.contains(&number.to_string()), "{number} in {text}");
    }
    for part in ["SN", "ＳＮ", "0053", "abcd"] {
        assert!(!text.contains(part), "{part} in {text}");
    }
    // What belongs together still does.
    let messages = &sent[0]["messages"];
    assert_eq!(
        messages[1]["tool_calls"][0]["id"],
        messages[2]["tool_call_id"]
    );
    let parameters = &sent[0]["tools"][0]["function"]["parameters"];
    let name = parameters["required"][0].as_str().unwrap();
    assert_eq!(parameters["properties"][name]["type"], "string");
}

#[test]
fn calls_come_back_with_their_secrets_and_are_still_json() {
    let above = Scripted::start(vec![calling(
        "stop",
        r#"{"why":"as \"QUOTE_1\" says\nserial_1"}"#,
    )]);
    let daemon = Daemon::builder()
        .config(&(above.config() + CONFIG))
        .start()
        .unwrap();
    let quote = "<a \"b\" \\ c\n>";
    let parameters = json!({"type": "object", "properties": {"why": {"type": "string"}}});
    let tools = json!({"tools": [stop(&parameters)]});
    let asked = body(&format!("Stop SN-1234, for {quote}"), &tools);
    let (route, _, reply) = ask(&daemon, &asked);
    assert_eq!(route, "cloud");
    let call = &reply["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    let why = format!("as \"{quote}\" says\nSN-1234");
    assert_eq!(arguments, json!({ "why": why }));
}

#[test]
fn what_cannot_be_taken_out_stays_and_what_cannot_be_put_back_fails() {
    let above = Scripted::start(vec![good(&["[QUOTE_1] ".repeat(100).as_str()])]);
    let daemon = Daemon::builder()
        .config(&(above.config() + CONFIG))
        .start()
        .unwrap();
    let mut tool = stop(&json!({"type": "object"}));
    tool["function"]["name"] = json!("stop_SN-1234");
    let asked = body("Stop.", &json!({"tools": [tool], "tool_choice": "none"}));
    assert_eq!(ask(&daemon, &asked).0, "local-fallback");
    let dense = format!("<{}", "a<".repeat(40_000));
    let asked = body(&format!("{dense}>"), &json!({"policy": "cloud"}));
    let reply = daemon.http().post("/v1/chat/completions", &asked).unwrap();
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert!(above.asked().is_empty());
    let long = format!("<{}>", "x".repeat(4000));
    let asked = body(&long, &json!({"policy": "cloud"}));
    let reply = daemon.http().post("/v1/chat/completions", &asked).unwrap();
    let text = reply.text();
    assert!(reply.status >= 400 && !text.contains("xxxx"), "{text}");
    assert_eq!(above.asked().len(), 1);
    // With a few of them it is an answer.
    above.fake.now(good(&["[QUOTE_1] or [quote 1]"]));
    let (_, said, _) = ask(&daemon, &asked);
    assert_eq!(said, format!("{long} or {long}"));
}
