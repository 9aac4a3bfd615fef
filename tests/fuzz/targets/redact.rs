//! A text that is sent, and comes back: a byte of settings, a byte of where it is cut, then the text, which also is the arguments
//! of a call, a schema and a task's input if it is JSON, and an answer.
//!
//! What is sent has no secret in it and no part of one, wherever one begins; the same text comes back from it, whole and in
//! pieces; JSON stays JSON; whatever an answer is, it is put together the same from any pieces.

use andon_os::heap;
use andond::config::redact::RedactConfig;
use andond::request::Message;
use andond::router::redact::{Form, Redactor, Secrets};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// What placeholders are called here.
const LABELS: [&str; 4] = ["SERIAL", "S", "MAIL", "ORDER"];

static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| {
    let rule = |name: &str, pattern: Option<&str>, field: Option<&str>| RedactConfig {
        name: name.to_owned(),
        pattern: pattern.map(str::to_owned),
        fields: field.into_iter().map(str::to_owned).collect(),
    };
    let rules = [
        rule("serial", Some(r"SN-\d{4,}"), Some("machine.serial")),
        rule("s", Some(r"(?i)operator:? (\w+)"), Some("name")),
        rule("mail", Some(r"[\w.]+@[\w.]+\w"), None),
        rule("order", Some(r"[0-9]{6}"), None),
    ];
    Redactor::new(&rules).expect("expressions")
});

pub(crate) fn run(data: &[u8]) {
    let [settings, cut, text @ ..] = data else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    // The program of the expressions and what they remember, then views and pieces of the text and names of what is in it.
    let limit = (16 << 20) + 2000 * text.len();
    heap::measure(limit, text.len() as u64, || {
        let form = if settings & 1 == 0 {
            Form::Text
        } else {
            Form::Json
        };
        sent(text, form, usize::from(*cut));
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            arguments(text);
            schema(value.clone());
            input(&value);
        }
    });
}

/// Where serial numbers and order numbers are, wherever one begins.
fn secrets_in(text: &str) -> Vec<(usize, usize)> {
    let digits = |at: usize| {
        text.as_bytes()[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    let mut found = Vec::new();
    for (at, _) in text.match_indices("SN-") {
        let count = digits(at + 3);
        if count >= 4 {
            found.push((at, at + 3 + count));
        }
    }
    let mut at = 0;
    while at < text.len() {
        let count = digits(at);
        if count >= 6 {
            found.push((at, at + count));
        }
        at += count.max(1);
    }
    found
}

/// The bytes of a placeholder at the beginning of a text.
fn placeholder(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('[')?;
    let (label, rest) = inner.split_once('_')?;
    let (number, _) = rest.split_once(']')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (LABELS.contains(&label) && is_number).then(|| label.len() + number.len() + 3)
}

/// Which bytes of a text are in what is left of it.
fn staying(text: &str, left: &str, secrets: &Secrets) -> Vec<bool> {
    let mut stays = vec![false; text.len()];
    let (mut at, mut of_left) = (0, 0);
    while of_left < left.len() {
        match placeholder(&left[of_left..]) {
            Some(bytes) => {
                let written = &left[of_left..of_left + bytes];
                at += restored(secrets, written, Form::Text).map_or(0, |secret| secret.len());
                of_left += bytes;
            }
            None => {
                let bytes = left[of_left..].chars().next().map_or(1, char::len_utf8);
                assert_eq!(text.get(at..at + bytes), left.get(of_left..of_left + bytes));
                stays[at..at + bytes].fill(true);
                at += bytes;
                of_left += bytes;
            }
        }
    }
    stays
}

/// `None` if there is too much of it.
fn restored(secrets: &Secrets, text: &str, form: Form) -> Option<String> {
    secrets.restore(text, form).ok()
}

fn sent(text: &str, form: Form, cut: usize) {
    let mut redaction = REDACTOR.begin();
    let mut left = text.to_owned();
    if redaction.text(&mut left).is_err() {
        return;
    }
    assert!(secrets_in(&left).is_empty(), "{left}");
    let secrets = redaction.done();
    if let Some(restored) = restored(&secrets, &left, Form::Text) {
        assert_eq!(restored, text);
        let stays = staying(text, &left, &secrets);
        for (from, to) in secrets_in(text) {
            assert!(!stays[from..to].contains(&true), "{text}: {left}");
        }
    }
    for answer in [text, &left] {
        let whole = restored(&secrets, answer, form);
        let mut restorer = secrets.restorer(form);
        let mut pieces = Some(String::new());
        let mut rest = answer;
        while let Some(first) = rest.chars().next() {
            let mut at = (cut + 1).min(rest.len()).max(first.len_utf8());
            while !rest.is_char_boundary(at) {
                at += 1;
            }
            let piece = restorer.feed(&rest[..at]).ok();
            pieces = pieces.zip(piece).map(|(pieces, piece)| pieces + &piece);
            rest = &rest[at..];
        }
        let piece = restorer.finish().ok();
        pieces = pieces.zip(piece).map(|(pieces, piece)| pieces + &piece);
        assert_eq!(pieces, whole);
    }
}

fn arguments(text: &str) {
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": text}});
    let mut message = Message::new("assistant", "");
    message.extra.insert("tool_calls".to_owned(), json!([call]));
    let mut messages = [message];
    let mut redaction = REDACTOR.begin();
    if redaction.messages(&mut messages).is_err() {
        return;
    }
    let left = &messages[0].extra["tool_calls"][0]["function"]["arguments"];
    let left = left.as_str().expect("a text");
    assert!(secrets_in(left).is_empty(), "{left}");
    let value: Value = serde_json::from_str(left).expect("still JSON");
    clean(&value, left);
    if let Some(restored) = restored(&redaction.done(), left, Form::Json) {
        serde_json::from_str::<Value>(&restored).expect("still JSON");
    }
}

/// No text of a value has a secret in it.
fn clean(value: &Value, whole: &str) {
    match value {
        Value::String(text) => assert!(secrets_in(text).is_empty(), "{whole}"),
        Value::Array(values) => values.iter().for_each(|value| clean(value, whole)),
        Value::Object(fields) => {
            for (key, value) in fields {
                assert!(secrets_in(key).is_empty(), "{whole}");
                clean(value, whole);
            }
        }
        _ => {}
    }
}

fn schema(mut schema: Value) {
    if REDACTOR.begin().schema(&mut schema).is_ok() {
        clean(&schema, &schema.to_string());
    }
}

fn input(input: &Value) {
    let Ok(taken) = REDACTOR.begin().input(input) else {
        return;
    };
    clean(&taken, &taken.to_string());
    let serial = input.pointer("/machine/serial");
    let taken_serial = taken.pointer("/machine/serial");
    if let (Some(Value::String(was)), Some(Value::String(is))) = (serial, taken_serial) {
        assert!(was.is_empty() || was != is, "{taken}");
    }
}
