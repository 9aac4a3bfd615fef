//! A text that is sent, and comes back: a byte of settings, a byte of where it is cut, then the text, which also is a task's
//! input if it is an object, and an answer.
//!
//! What is sent has no secret in it; the same text comes back from it, whole and in pieces; whatever an answer is, it is put
//! together the same from any pieces.

use andon_os::heap;
use andond::config::redact::RedactConfig;
use andond::router::redact::{Form, Redactor};
use serde_json::Value;
use std::sync::LazyLock;

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
    // The program of the expressions and what they remember, then pieces of the text and names of what is in it.
    let limit = (16 << 20) + 2000 * text.len();
    heap::measure(limit, text.len() as u64, || {
        let form = if settings & 1 == 0 {
            Form::Text
        } else {
            Form::Json
        };
        sent(text, form, usize::from(*cut));
    });
}

fn is_serial(text: &str) -> bool {
    let mut found = text.match_indices("SN-");
    found.any(|(at, _)| {
        let digits = text[at + 3..].chars().take_while(char::is_ascii_digit);
        digits.count() >= 4
    })
}

fn sent(text: &str, form: Form, cut: usize) {
    let mut redaction = REDACTOR.begin();
    let mut left = text.to_owned();
    if redaction.text(&mut left).is_err() {
        return;
    }
    assert!(!is_serial(&left), "{left}");
    let secrets = redaction.done();
    assert_eq!(secrets.restore(&left, Form::Text), text);
    for answer in [text, &left] {
        let whole = secrets.restore(answer, form);
        let mut restorer = secrets.restorer(form);
        let mut pieces = String::new();
        let mut rest = answer;
        while let Some(first) = rest.chars().next() {
            let mut at = (cut + 1).min(rest.len()).max(first.len_utf8());
            while !rest.is_char_boundary(at) {
                at += 1;
            }
            pieces.push_str(&restorer.feed(&rest[..at]));
            rest = &rest[at..];
        }
        pieces.push_str(&restorer.finish());
        assert_eq!(pieces, whole);
    }
    if let Ok(input @ Value::Object(_)) = serde_json::from_str::<Value>(text) {
        let mut redaction = REDACTOR.begin();
        let Ok(taken) = redaction.input(&input) else {
            return;
        };
        let serial = input.pointer("/machine/serial");
        let taken_serial = taken.pointer("/machine/serial");
        if let (Some(Value::String(was)), Some(Value::String(is))) = (serial, taken_serial) {
            assert!(was.is_empty() || was != is, "{taken}");
        }
    }
}
