//! What leaves, and what comes back.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rule(name: &str, pattern: Option<&str>, fields: &[&str]) -> RedactConfig {
    RedactConfig {
        name: name.to_owned(),
        pattern: pattern.map(str::to_owned),
        fields: fields.iter().map(|field| (*field).to_owned()).collect(),
    }
}

fn redactor() -> Redactor {
    Redactor::new(&[
        rule("serial", Some(r"SN-\d{4,}"), &["machine.serial"]),
        rule("person", Some(r"(?i)operator:? ([A-Z]\w+)"), &["name"]),
        rule("mail", Some(r"[\w.]+@[\w.]+\w"), &[]),
    ])
    .expect("expressions")
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

fn sent(text: &str) -> (String, Secrets) {
    let (mut messages, secrets) = redactor().redact(&user(text)).expect("few");
    (messages.pop().expect("one").content, secrets)
}

#[test]
fn secrets_are_taken_out_and_put_back() {
    let text =
        "Operator: Ada says SN-1234 and SN-99999 fail; SN-1234 first. Ask ada@plant.example.";
    let (left, secrets) = sent(text);
    assert_eq!(
        left,
        "Operator: [PERSON_1] says [SERIAL_1] and [SERIAL_2] fail; [SERIAL_1] first. Ask [MAIL_1]."
    );
    assert_eq!(secrets.count(), 4);
    assert_eq!(secrets.restore(&left, Form::Text), text);
    assert!(!format!("{secrets:?}").contains("Ada"));
}

#[test]
fn requests_that_differ_in_secrets_only_are_the_same_question() {
    assert_eq!(sent("SN-1234 by SN-5678").0, sent("SN-1111 by SN-2222").0);
    assert_ne!(sent("SN-1234 by SN-1234").0, sent("SN-1111 by SN-2222").0);
}

#[test]
fn placeholders_are_known_however_a_model_writes_them() {
    let (_, secrets) = sent("SN-1234 and SN-5678 of a@b.c");
    for (answer, expected) in [
        ("[SERIAL_1]", "SN-1234"),
        ("SERIAL_2", "SN-5678"),
        ("(SERIAL_1)", "(SN-1234)"),
        ("**SERIAL\\_1**", "**SN-1234**"),
        ("[SERIAL_1, SERIAL_2]", "[SN-1234, SN-5678]"),
        ("[[SERIAL_1]]", "[SN-1234]"),
        ("[SERIAL_1][SERIAL_2]", "SN-1234SN-5678"),
        ("[SERIAL_1", "[SN-1234"),
        ("のSERIAL_1は", "のSN-1234は"),
        ("MAIL_1, SERIAL_1.", "a@b.c, SN-1234."),
        // None of these is one.
        ("SERIAL_3", "SERIAL_3"),
        ("SERIAL_12", "SERIAL_12"),
        ("SERIAL_01", "SERIAL_01"),
        ("SERIAL_1x", "SERIAL_1x"),
        ("XSERIAL_1", "XSERIAL_1"),
        ("SERIAL_", "SERIAL_"),
        ("SERIAL", "SERIAL"),
        ("SERIAL\\", "SERIAL\\"),
        ("[", "["),
        ("[SER", "[SER"),
        ("SERIAL_10000000000", "SERIAL_10000000000"),
    ] {
        assert_eq!(secrets.restore(answer, Form::Text), expected, "{answer}");
    }
}

#[test]
fn what_only_looks_like_a_placeholder_comes_back_as_it_was() {
    let text = "Part SERIAL_1 is not SN-1234, nor is [SERIAL_2] or SERIAL\\_1.";
    let (left, secrets) = sent(text);
    assert_eq!(
        left,
        "Part [SERIAL_1] is not [SERIAL_4], nor is [[SERIAL_2]] or [SERIAL_3]."
    );
    assert_eq!(secrets.restore(&left, Form::Text), text);
}

#[test]
fn inside_json_what_is_put_back_is_escaped() {
    let redactor = Redactor::new(&[rule("quote", Some(r"<[^>]*>"), &[])]).expect("one");
    let (messages, secrets) = redactor.redact(&user("<a \"b\" \\ c\n>")).expect("few");
    assert_eq!(messages[0].content, "[QUOTE_1]");
    let answer = r#"{"what":"is [QUOTE_1] or \"QUOTE_1\"?"}"#;
    let restored = secrets.restore(answer, Form::Json);
    let value: Value = serde_json::from_str(&restored).expect("still JSON");
    let secret = "<a \"b\" \\ c\n>";
    assert_eq!(
        value,
        json!({"what": format!("is {secret} or \"{secret}\"?")})
    );
}

#[test]
fn named_fields_are_taken_out_before_templates_see_them_and_wherever_else_they_stand() {
    let redactor = redactor();
    let mut redaction = redactor.begin();
    let input = json!({
        "machine": [{"serial": 4711123, "line": 7}, {"serial": "press seven"}],
        "name": {"first": "Ada", "last": "Lovelace", "shift": null, "night": true},
        "note": "SERIAL_1: press seven stands, says Lovelace (l@plant.example)",
    });
    let taken = redaction.input(&input).expect("few");
    assert_eq!(
        taken,
        json!({
            "machine": [{"serial": "[SERIAL_2]", "line": 7}, {"serial": "[SERIAL_3]"}],
            "name": {"first": "[PERSON_1]", "last": "[PERSON_2]", "shift": null, "night": true},
            "note": "[SERIAL_1]: press seven stands, says Lovelace ([MAIL_1])",
        })
    );
    // What a template makes of it.
    let note = taken["note"].as_str().expect("a text");
    let mut messages = user(&format!("[SERIAL_2], [SERIAL_3]: {note}. SN-4444, 4711123"));
    redaction.messages(&mut messages).expect("few");
    let left = &messages[0].content;
    assert_eq!(
        left,
        "[SERIAL_2], [SERIAL_3]: [SERIAL_1]: [SERIAL_3] stands, says [PERSON_2] ([MAIL_1]). [SERIAL_4], [SERIAL_2]"
    );
    let restored = redaction.done().restore(left, Form::Text);
    assert_eq!(
        restored,
        "4711123, press seven: SERIAL_1: press seven stands, says Lovelace (l@plant.example). SN-4444, 4711123"
    );
}

#[test]
fn calls_results_and_schemas_have_nothing_either() {
    let redactor = redactor();
    let mut redaction = redactor.begin();
    let mut messages = vec![Message {
        extra: json!({"tool_calls": [{"id": "SN-12345", "type": "function", "function": {
            "name": "stop", "arguments": "{\"who\":\"SN-1234\",\"tell\":[\"a@b.c\",1]}"}}]})
        .as_object()
        .cloned()
        .expect("an object"),
        ..Message::new("assistant", "")
    }];
    redaction.messages(&mut messages).expect("few");
    let calls = &messages[0].extra["tool_calls"][0];
    assert_eq!(
        calls["function"]["arguments"],
        r#"{"who":"[SERIAL_1]","tell":["[MAIL_1]",1]}"#
    );
    // Results name it.
    assert_eq!(calls["id"], "SN-12345");
    let mut schema = json!({
        "description": "of SN-1234",
        "properties": {
            "SN-5555": {"enum": ["SN-1234", 7], "pattern": "SN-1234"},
            "title": {"type": "string", "description": "a@b.c"},
        },
    });
    redaction.schema(&mut schema).expect("few");
    assert_eq!(
        schema,
        json!({
            "description": "of [SERIAL_1]",
            "properties": {
                "SN-5555": {"enum": ["[SERIAL_1]", 7], "pattern": "SN-1234"},
                "title": {"type": "string", "description": "[MAIL_1]"},
            },
        })
    );
}

#[test]
fn too_many_secrets_are_refused() {
    let text = |count: usize| -> String {
        (0..count)
            .map(|number| format!("SN-{number:05} "))
            .collect()
    };
    assert!(redactor().redact(&user(&text(SECRETS_MAX))).is_ok());
    let refused = redactor().redact(&user(&text(SECRETS_MAX + 1)));
    assert_eq!(refused.err(), Some(TooMany));
}

#[test]
fn expressions_are_bounded_and_fit_something() {
    for (pattern, word) in [
        ("(", "unclosed group"),
        (r"(\w{1000}){1000}", "program"),
        ("a*", "nothing"),
        (&"(".repeat(100), "is not a regular expression"),
    ] {
        let error = Redactor::check_pattern(pattern).expect_err("refused");
        assert!(error.contains(word), "{pattern}: {error}");
    }
    Redactor::check_pattern(r"\p{L}+-\d{2,8}").expect("an expression");
    let empty = Redactor::new(&[]).expect("no rules");
    let (messages, secrets) = empty.redact(&user("SN-1234")).expect("nothing");
    assert!(empty.is_empty() && secrets.is_empty());
    assert_eq!(messages, user("SN-1234"));
    assert_eq!(secrets.restore("SERIAL_1 [", Form::Text), "SERIAL_1 [");
}

proptest! {
    /// Wherever an answer is cut, what comes back is the same, and no more is held back than a placeholder has.
    #[test]
    fn cuts_make_no_difference(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "[SERIAL_1]", "SERIAL_2", "[MAIL_1", "]", "[", "SERIAL", "_", "\\_", "1", " ", "x", "é", "S", "\\", "PERSON_1,",
            ]),
            0..24,
        ),
        cuts in proptest::collection::vec(1_usize..6, 1..40),
        json in any::<bool>(),
    ) {
        let (_, secrets) = sent("Operator Ada: SN-1234, SN-5678, a@b.c");
        let form = if json { Form::Json } else { Form::Text };
        let answer = words.concat();
        let whole = secrets.restore(&answer, form);
        let mut restorer = secrets.restorer(form);
        let (mut pieces, mut rest) = (String::new(), answer.as_str());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let at = rest.char_indices().nth(*cut).map_or(rest.len(), |(at, _)| at);
            pieces.push_str(&restorer.feed(&rest[..at]));
            rest = &rest[at..];
            prop_assert!(restorer.held.len() < "[SERIAL\\_1024]".len());
        }
        pieces.push_str(&restorer.finish());
        prop_assert_eq!(pieces, whole);
    }

    /// Whatever is sent has no secret in it, and comes back as it was.
    #[test]
    fn nothing_that_fits_leaves(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "SN-1234", "SN-99999", " ", ", ", "a@b.c", "operator Ada", "SERIAL_1", "[MAIL_2]", "PERSON\\_3", "x", "\"", "_", "7",
            ]),
            0..24,
        )
    ) {
        let text = words.concat();
        let (left, secrets) = sent(&text);
        for secret in secrets.0.iter() {
            prop_assert!(!secret.value.contains("SN-") || !left.contains(&secret.value));
        }
        let (again, none) = sent(&left.replace(['[', ']', '_'], ""));
        prop_assert!(none.is_empty() || !again.contains("SN-1234"));
        prop_assert_eq!(secrets.restore(&left, Form::Text), text);
    }
}
