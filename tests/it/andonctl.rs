//! The command line client against the daemon.

use andon_tests::daemon::Daemon;
use andon_tests::tiny_encoder::TinyEncoder;
use serde_json::Value;

use crate::ctl::{andonctl, good};

#[test]
fn ask_prints_the_answer_that_http_gives() {
    let daemon = Daemon::builder().start().unwrap();
    let body = serde_json::json!({
        "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 12, "temperature": 0,
    });
    let reply = daemon
        .http()
        .post("/v1/chat/completions", &body)
        .unwrap()
        .json()
        .unwrap();
    let expected = reply["choices"][0]["message"]["content"].as_str().unwrap();
    let ask = ["ask", "--temperature", "0", "--tokens-max", "12", "hello"];
    assert_eq!(
        good(&andonctl(&daemon, &ask)).trim_end(),
        expected.trim_end()
    );
}

#[test]
fn status_and_models_name_the_model() {
    let daemon = Daemon::builder()
        .config("[model]\nname = 'press-helper'\n")
        .start()
        .unwrap();
    for command in ["status", "models"] {
        assert!(
            good(&andonctl(&daemon, &[command])).contains("press-helper"),
            "{command}"
        );
        let json: Value =
            serde_json::from_str(&good(&andonctl(&daemon, &[command, "--json"]))).unwrap();
        assert!(
            json.to_string().contains("press-helper"),
            "{command}: {json}"
        );
    }
}

#[test]
fn failures_have_their_own_exit_status() {
    let mut daemon = Daemon::builder().start().unwrap();
    let refused = andonctl(&daemon, &["ask", "--model", "no-such-model", "hello"]);
    let usage = andonctl(&daemon, &["no-such-command"]);
    daemon.kill().unwrap();
    let unreachable = andonctl(&daemon, &["status"]);
    let codes = [&refused, &usage, &unreachable].map(|output| output.status.code().unwrap());
    assert!(codes.iter().all(|code| *code != 0), "{codes:?}");
    assert!(
        codes[0] != codes[1] && codes[1] != codes[2] && codes[0] != codes[2],
        "{codes:?}"
    );
    for output in [refused, unreachable] {
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
}

#[test]
fn embed_prints_what_http_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.gguf");
    // Longer vectors than a frame takes.
    let encoder = TinyEncoder {
        layer_count: 1,
        embedding: 2304,
        feed_forward: 32,
        ..TinyEncoder::default()
    };
    encoder.write(&path).unwrap();
    let daemon = Daemon::builder().model(&path).start().unwrap();
    let texts = ["the belt stops", "sensor 42"];
    let lines = good(&andonctl(&daemon, &["embed", texts[0], texts[1]]));
    let body = serde_json::json!({"input": texts});
    let reply = daemon.http().post("/v1/embeddings", &body).unwrap();
    let reply = reply.json().unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line.as_array().unwrap().len(), 2304);
        assert_eq!(line, &reply["data"][index]["embedding"]);
    }
    let ask = ["embed", "a", "--json", "--dimensions", "8"];
    let report: Value = serde_json::from_str(&good(&andonctl(&daemon, &ask))).unwrap();
    assert_eq!(report["embedding"].as_array().unwrap().len(), 8);
    assert_eq!(report["usage"]["completion_tokens"], 0);
}
