//! What leaves, and what comes back.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn rule(name: &str, pattern: Option<&str>, fields: &[&str]) -> RedactConfig {
    RedactConfig {
        name: name.to_owned(),
        pattern: pattern.map(str::to_owned),
        fields: fields.iter().map(|field| (*field).to_owned()).collect(),
    }
}

fn of(rules: &[(&str, &str)]) -> Redactor {
    let rules: Vec<RedactConfig> = (rules.iter())
        .map(|(name, pattern)| rule(name, Some(pattern), &[]))
        .collect();
    Redactor::new(&rules).expect("expressions")
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

fn sent_by(redactor: &Redactor, text: &str) -> (String, Secrets) {
    let (mut messages, secrets) = redactor.redact(&user(text)).expect("few");
    (messages.pop().expect("one").content, secrets)
}

fn sent(text: &str) -> (String, Secrets) {
    sent_by(&redactor(), text)
}

fn calling(arguments: &Value) -> Message {
    let function = json!({"name": "stop", "arguments": arguments});
    let call = json!({"id": "c1", "type": "function", "function": function});
    Message {
        extra: json!({ "tool_calls": [call] })
            .as_object()
            .cloned()
            .expect("an object"),
        ..Message::new("assistant", "")
    }
}

/// The arguments of a call as they leave.
fn arguments(redactor: &Redactor, arguments: &str) -> String {
    let (messages, _) = redactor.redact(&[calling(&arguments.into())]).expect("few");
    let left = &messages[0].extra["tool_calls"][0]["function"]["arguments"];
    left.as_str().expect("a text").to_owned()
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
    assert_eq!(secrets.restore(&left, Form::Text).as_deref(), Ok(text));
    assert!(!format!("{secrets:?}").contains("Ada"));
}

#[test]
fn requests_that_differ_in_secrets_only_are_the_same_question() {
    assert_eq!(sent("SN-1234 by SN-5678").0, sent("SN-1111 by SN-2222").0);
    assert_ne!(sent("SN-1234 by SN-1234").0, sent("SN-1111 by SN-2222").0);
}

#[test]
fn no_part_of_a_secret_stays_since_another_took_the_rest() {
    let redactor = of(&[
        ("part", r"AB-\d{4}"),
        ("lot", r"\d{4}-[a-z]{4}"),
        ("pin", r"\d{4}"),
    ]);
    for (text, expected) in [
        ("AB-1234-wxyz!", "[PART_1]!"),
        ("1234-wxyzAB-1234", "[LOT_1]"),
        ("a 12345 b", "a [PIN_1] b"),
        ("PART_1234", "[PART_1]"),
        ("AB-1234 1234", "[PART_1] [PIN_1]"),
        ("(PIN_1)1234-wxyz", "([PIN_1])[LOT_1]"),
    ] {
        let (left, secrets) = sent_by(&redactor, text);
        assert_eq!(left, expected);
        assert_eq!(secrets.restore(&left, Form::Text).as_deref(), Ok(text));
    }
}

#[test]
fn other_ways_to_write_a_secret_hide_nothing() {
    let redactor = redactor();
    for (text, expected) in [
        ("ＳＮ－１２３４", "[SERIAL_1]"),
        (
            "SN\u{2011}1234 and SN-12\u{200b}34.",
            "[SERIAL_1] and [SERIAL_2].",
        ),
        (r#"{"is": "\u0053N-1234"}"#, r#"{"is": "[SERIAL_1]"}"#),
        (
            r#""{\"is\": \"SN\\u002d1234\"}""#,
            r#""{\"is\": \"[SERIAL_1]\"}""#,
        ),
        (r"SN\-1234", "[SERIAL_1]"),
        ("operator A\u{308}da", "operator [PERSON_1]"),
    ] {
        let (left, secrets) = sent_by(&redactor, text);
        assert_eq!(left, expected);
        assert_eq!(secrets.restore(&left, Form::Text).as_deref(), Ok(text));
    }
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
        ("[serial_1] and Serial_2", "SN-1234 and SN-5678"),
        ("[ SERIAL_1 ], [Serial 2]", "SN-1234, SN-5678"),
        ("[SERIAL-1] [ serial\\_2]", "SN-1234 SN-5678"),
        // None of these is one.
        ("serial 1, SERIAL-2", "serial 1, SERIAL-2"),
        ("[SERIAL  1] [SERIAL1]", "[SERIAL  1] [SERIAL1]"),
        ("[SERIAL 1 of 2]", "[SERIAL 1 of 2]"),
        ("SERIAL_0", "SERIAL_0"),
        ("SERIAL_3", "SERIAL_3"),
        ("[PERSON_1]", "[PERSON_1]"),
        ("SERIAL_12", "SERIAL_12"),
        ("SERIAL_01", "SERIAL_01"),
        ("SERIAL_1x", "SERIAL_1x"),
        ("XSERIAL_1", "XSERIAL_1"),
        ("SERIAL_", "SERIAL_"),
        ("SERIAL", "SERIAL"),
        ("SERIAL\\", "SERIAL\\"),
        ("[", "["),
        ("[SER", "[SER"),
        ("[SERIAL_1 ", "[SN-1234 "),
        ("SERIAL_10000000000", "SERIAL_10000000000"),
    ] {
        let restored = secrets.restore(answer, Form::Text);
        assert_eq!(restored.as_deref(), Ok(expected), "{answer}");
    }
}

#[test]
fn what_only_looks_like_a_placeholder_comes_back_as_it_was() {
    let text = "Part SERIAL_1 is not SN-1234, nor is [serial 2] or SERIAL\\_1.";
    let (left, secrets) = sent(text);
    assert_eq!(
        left,
        "Part [SERIAL_1] is not [SERIAL_2], nor is [SERIAL_3] or [SERIAL_4]."
    );
    assert_eq!(secrets.restore(&left, Form::Text).as_deref(), Ok(text));
}

#[test]
fn inside_json_what_is_put_back_is_escaped() {
    let redactor = of(&[("quote", r"<[^>]*>")]);
    let secret = "<a \"b\" \\ c\n>";
    let (left, secrets) = sent_by(&redactor, secret);
    assert_eq!(left, "[QUOTE_1]");
    for (answer, expected) in [
        (
            r#"{"what":"is [QUOTE_1] or \"QUOTE_1\"?"}"#,
            json!({"what": format!("is {secret} or \"{secret}\"?")}),
        ),
        (
            r#"["a\nQUOTE_1","\u0041QUOTE_1\\QUOTE_1","QUOTE\\_1"]"#,
            json!([
                format!("a\n{secret}"),
                format!("A{secret}\\{secret}"),
                secret
            ]),
        ),
        (r#"{"QUOTE_1":null}"#, json!({ secret: null })),
    ] {
        let restored = secrets.restore(answer, Form::Json).expect("short");
        let value: Value = serde_json::from_str(&restored).expect("still JSON");
        assert_eq!(value, expected);
    }
}

#[test]
fn no_answer_grows_without_bounds() {
    let redactor = of(&[("quote", r"<[^>]*>")]);
    let secret = format!("<{}>", "x".repeat(1022));
    let (_, secrets) = sent_by(&redactor, &secret);
    let most = RESTORED_BYTES_MAX / 1024;
    let restored = secrets.restore(&"QUOTE_1 ".repeat(most), Form::Text);
    assert_eq!(restored.map(|text| text.len()), Ok(1025 * most));
    let restored = secrets.restore(&"QUOTE_1 ".repeat(most + 1), Form::Text);
    assert_eq!(restored, Err(TooLarge));
    // Of several texts that come together all count, and in JSON its escapes.
    let mut restorer = secrets.restorer(Form::Json);
    for _ in 0..most {
        assert!(restorer.whole("[\"QUOTE_1\"]").is_ok());
    }
    assert_eq!(restorer.whole("[\"QUOTE_1\"]"), Err(TooLarge));
}

#[test]
fn named_fields_are_taken_out_before_templates_see_them_and_wherever_else_they_stand() {
    let redactor = redactor();
    let mut redaction = redactor.begin();
    let input = json!({
        "machine": [{"serial": 4711123, "line": 7}, {"serial": "press seven"}],
        "name": {"first": "Ada", "last": "Lovelace", "shift": null, "night": true},
        "note": "SERIAL_1: Press Seven stands, says Lovelace (l@plant.example) to Ada, not Adam",
        "order": 4711123,
    });
    let taken = redaction.input(&input).expect("few");
    assert_eq!(
        taken,
        json!({
            "machine": [{"serial": "[SERIAL_1]", "line": 7}, {"serial": "[SERIAL_2]"}],
            "name": {"first": "[PERSON_1]", "last": "[PERSON_2]", "shift": null, "night": true},
            "note": "[SERIAL_3]: [SERIAL_4] stands, says [PERSON_2] ([MAIL_1]) to [PERSON_1], not Adam",
            "order": "[SERIAL_1]",
        })
    );
    // What a template makes of it, of one in small letters too.
    let note = taken["note"].as_str().expect("a text");
    let made = format!("[SERIAL_1], [serial_2]: {note}. SN-4444, 4711123, SERIAL_9");
    let mut messages = user(&made);
    redaction.messages(&mut messages).expect("few");
    let left = &messages[0].content;
    assert_eq!(
        left,
        "[SERIAL_1], [SERIAL_2]: [SERIAL_3]: [SERIAL_4] stands, says [PERSON_2] ([MAIL_1]) to [PERSON_1], not \
         Adam. [SERIAL_5], [SERIAL_1], [SERIAL_6]"
    );
    let restored = redaction.done().restore(left, Form::Text);
    assert_eq!(
        restored.as_deref(),
        Ok(
            "4711123, press seven: SERIAL_1: Press Seven stands, says Lovelace (l@plant.example) to Ada, not Adam. \
            SN-4444, 4711123, SERIAL_9"
        )
    );
}

#[test]
fn what_stands_around_a_placeholder_of_its_own_is_taken_and_that_stays() {
    let redactor = Redactor::new(&[
        rule("serial", None, &["serial"]),
        rule("word", Some(r"\S*_\S*"), &[]),
    ]);
    let redactor = redactor.expect("expressions");
    let mut redaction = redactor.begin();
    let taken = redaction.input(&json!({"serial": "P 7"})).expect("few");
    assert_eq!(taken, json!({"serial": "[SERIAL_1]"}));
    let mut messages = user("a[SERIAL_1]b and SERIAL_1, _");
    redaction.messages(&mut messages).expect("few");
    let left = &messages[0].content;
    assert_eq!(
        left,
        "[WORD_1][SERIAL_1][WORD_2] and [SERIAL_1][WORD_3] [WORD_4]"
    );
    let restored = redaction.done().restore(left, Form::Text);
    assert_eq!(restored.as_deref(), Ok("aP 7b and P 7, _"));
}

#[test]
fn calls_results_and_names_have_nothing_either() {
    let redactor = redactor();
    let mut call = calling(&"{\"who\":\"SN-1234\",\"tell\":[\"a@b.c\",1]}".into());
    call.extra["tool_calls"][0]["id"] = json!("SN-12345");
    call.extra["tool_calls"][0]["note"] = json!({"SN-1234": 1});
    let mut result = Message::new("tool", "of SN-1234");
    result
        .extra
        .insert("tool_call_id".to_owned(), json!("SN-12345"));
    result.extra.insert("name".to_owned(), json!("stop"));
    let (messages, _) = redactor.redact(&[call, result]).expect("few");
    let call = &messages[0].extra["tool_calls"][0];
    assert_eq!(call["id"], "[SERIAL_1]");
    assert_eq!(
        call["function"]["arguments"],
        r#"{"who":"[SERIAL_2]","tell":["[MAIL_1]",1]}"#
    );
    assert_eq!(call["note"], json!({"[SERIAL_2]": 1}));
    assert_eq!(messages[1].content, "of [SERIAL_2]");
    // It is still the one that was called.
    assert_eq!(messages[1].extra["tool_call_id"], call["id"]);
    assert_eq!(messages[1].extra["name"], "stop");
    // Values are taken as texts are.
    let given = json!({"who": "SN-1234", "SN-5555": [1, null]});
    let (messages, _) = redactor.redact(&[calling(&given)]).expect("few");
    assert_eq!(
        messages[0].extra["tool_calls"][0]["function"]["arguments"],
        json!({"who": "[SERIAL_1]", "[SERIAL_2]": [1, null]})
    );
    for message in [
        Message::new("SN-1234", "x"),
        Message {
            extra: json!({"name": "SN-1234"})
                .as_object()
                .cloned()
                .expect("an object"),
            ..Message::new("tool", "x")
        },
    ] {
        let refused = redactor.redact(&[message]).err();
        assert_eq!(refused, Some(Unredactable::Fixed));
    }
}

#[test]
fn arguments_stay_as_they_are_written_but_for_what_is_taken() {
    let redactor = of(&[
        ("order", r"\d{6,}"),
        ("serial", r"SN-\d{4}"),
        ("pair", r#""code": "?(\w+)"?, "\w+"#),
    ]);
    for (text, expected) in [
        // Names that come twice, and numbers that no machine word holds.
        (
            r#"{"a":"SN-1234","a":"x", "b" : 12345}"#,
            r#"{"a":"[SERIAL_1]","a":"x", "b" : 12345}"#,
        ),
        (
            r#"{"a":123456789012345678901234,"b":-1234567.5e1,"c":0.25}"#,
            r#"{"a":"[ORDER_1]","b":"[ORDER_2]","c":0.25}"#,
        ),
        (
            r#"{"SN-1234":"\u0053N\u002d1234 \"SN-1234\""}"#,
            r#"{"[SERIAL_1]":"[SERIAL_1] \"[SERIAL_1]\""}"#,
        ),
        (
            r#"{"in":"{\"a\":\"\\u0053N-1234\"}"}"#,
            r#"{"in":"{\"a\":\"[SERIAL_1]\"}"}"#,
        ),
        // One that fits more than a string.
        (
            r#"{"code": "x1", "to": 5}"#,
            r#"{"code": "[PAIR_1]", "to": 5}"#,
        ),
        (
            r#"{"code": 42, "to": 5}"#,
            r#"{"code": "[PAIR_1]", "to": 5}"#,
        ),
        // What is no JSON is a text.
        (r#"{"a":"SN-\u00312"#, r#"{"a":"SN-\u00312"#),
        (r#"{"a":"SN-\u0031234""#, r#"{"a":"[SERIAL_1]""#),
        ("SN-1234", "[SERIAL_1]"),
        ("", ""),
    ] {
        assert_eq!(arguments(&redactor, text), expected);
    }
}

#[test]
fn tools_and_schemas_have_nothing_whatever_their_words_are() {
    let redactor = redactor();
    let mut redaction = redactor.begin();
    let mut tools = [json!({"type": "function", "x-of": "SN-1234", "function": {
        "name": "stop", "description": "of SN-1234", "strict": true, "parameters": {
            "type": "object",
            "$defs": {"SN-5555": {"$comment": "SN-1234"}},
            "properties": {
                "SN-5555": {"enum": ["SN-1234", 7], "$ref": "#/$defs/SN-5555"},
                "title": {"type": ["string", "null"], "description": "a@b.c", "maxLength": 4},
                "default": {"type": "SN-1234", "default": {"type": "SN-1234", "SN-1234": ["SN-1234"]}},
            },
            "required": ["SN-5555", "title"],
            "patternProperties": {"^x": {"const": {"properties": "SN-1234"}}},
            "additionalProperties": {"anyOf": [{"examples": ["SN-1234"]}, {"x-note": {"SN-1234": "SN-1234"}}]},
            "SN-1234": "x",
        },
    }})];
    redaction.tools(&mut tools).expect("few");
    assert_eq!(
        tools[0],
        json!({"type": "function", "x-of": "[SERIAL_1]", "function": {
            "name": "stop", "description": "of [SERIAL_1]", "strict": true, "parameters": {
                "type": "object",
                "$defs": {"[SERIAL_2]": {"$comment": "[SERIAL_1]"}},
                "properties": {
                    "[SERIAL_2]": {"enum": ["[SERIAL_1]", 7], "$ref": "#/$defs/[SERIAL_2]"},
                    "title": {"type": ["string", "null"], "description": "[MAIL_1]", "maxLength": 4},
                    "default": {"type": "[SERIAL_1]", "default": {"type": "[SERIAL_1]", "[SERIAL_1]": ["[SERIAL_1]"]}},
                },
                "required": ["[SERIAL_2]", "title"],
                "patternProperties": {"^x": {"const": {"properties": "[SERIAL_1]"}}},
                "additionalProperties": {"anyOf": [{"examples": ["[SERIAL_1]"]}, {"x-note": {"[SERIAL_1]": "[SERIAL_1]"}}]},
                "[SERIAL_1]": "x",
            },
        }})
    );
}

#[test]
fn what_cannot_have_a_placeholder_keeps_the_request_here() {
    let redactor = of(&[("serial", r"SN-\d{4,}"), ("order", r"\d{6,}")]);
    let function = |function: Value| json!({"type": "function", "function": function});
    let named = function(json!({"name": "SN-1234"}));
    let refused = redactor.begin().tools(&mut [named]);
    assert_eq!(refused, Err(Unredactable::Fixed));
    for schema in [
        json!({"pattern": "^SN-1234$"}),
        json!({"patternProperties": {"SN-1234": {}}}),
        json!({"maximum": 4711123}),
        json!({"items": [{"multipleOf": 4711123.5}]}),
        json!({"enum": [1, 4711123]}),
        json!({"const": {"a": [4711123]}}),
    ] {
        let refused = redactor.begin().schema(&mut schema.clone());
        assert_eq!(refused, Err(Unredactable::Fixed), "{schema}");
    }
    // Of a large number more digits are known than its exponent shows.
    let mut redaction = redactor.begin();
    let mut schema = json!({"default": [1e30, 4711123, 12345, 1.5]});
    redaction.schema(&mut schema).expect("few");
    assert_eq!(
        schema,
        json!({"default": ["[ORDER_1]", "[ORDER_2]", 12345, 1.5]})
    );
    let restored = redaction.done().restore("ORDER_1 [ORDER_2]", Form::Text);
    assert_eq!(restored.as_deref(), Ok("1e+30 4711123"));
}

#[test]
fn many_secrets_among_escapes_of_arguments_cost_no_more_for_each() {
    let redactor = of(&[("serial", r"SN-\d")]);
    let (line, count) = (r"SN-1\n\n\n\n", 5_000);
    let text = format!("{{\"a\":\"{}\"}}", line.repeat(count));
    let mut redaction = redactor.begin();
    redaction.effort.until = None;
    let before = redaction.effort.left;
    let mut messages = [calling(&text.clone().into())];
    let taken = redaction.messages(&mut messages);
    assert_eq!(taken, Ok(()));
    let left = &messages[0].extra["tool_calls"][0]["function"]["arguments"];
    assert_eq!(left, &Value::from(text.replace("SN-1", "[SERIAL_1]")));
    // A few looks for each, in the text and in its views, and a few at all of it.
    let (spent, looks) = (before - redaction.effort.left, count * find::LOOK);
    assert!(
        (4 * looks..16 * looks + 16 * text.len()).contains(&spent),
        "{spent}"
    );
}

#[test]
fn too_many_secrets_are_refused_and_so_is_what_takes_too_long() {
    let text = |count: usize| -> String {
        (0..count)
            .map(|number| format!("SN-{number:05} "))
            .collect()
    };
    assert!(redactor().redact(&user(&text(SECRETS_MAX))).is_ok());
    let refused = redactor().redact(&user(&text(SECRETS_MAX + 1)));
    assert_eq!(refused.err(), Some(Unredactable::TooMany));
    let dense = of(&[("blob", "[A-Z]{8,}")]);
    let refused = dense.redact(&user(&"A".repeat(1 << 20)));
    assert_eq!(refused.err(), Some(Unredactable::TooHard));
    assert!(dense.redact(&user(&"A".repeat(1 << 10))).is_ok());
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
    let restored = secrets.restore("SERIAL_1 [", Form::Text);
    assert_eq!(restored.as_deref(), Ok("SERIAL_1 ["));
}

/// Rules whose matches overlap, each other's and their own.
const OVERLAPPING: [(&str, &str); 6] = [
    ("a", r"AB-\d{4}"),
    ("ab", r"\d{4}-[a-z]{4}"),
    ("pin", r"\d{4}"),
    ("word", r"[a-z]+@[a-z]+"),
    ("by", r"(?i)by ([a-z]+)"),
    ("long", r"x[^y]*y"),
];

proptest! {
    /// Wherever an answer is cut, what comes back is the same, and no more is held back than a placeholder has.
    #[test]
    fn cuts_make_no_difference(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "[SERIAL_1]", "SERIAL_2", "[mail_1", "]", "[", "SERIAL", "_", "\\_", "1", " ", "-", "x", "é", "S", "\\",
                "PERSON_1,", "\\u00e9", "[ person 1 ]",
            ]),
            0..24,
        ),
        cuts in proptest::collection::vec(1_usize..6, 1..40),
        json in any::<bool>(),
    ) {
        let (_, secrets) = sent("Operator Ada: SN-1234, SN-5678, a@b.c");
        let form = if json { Form::Json } else { Form::Text };
        let answer = words.concat();
        let whole = secrets.restore(&answer, form).expect("short");
        let mut restorer = secrets.restorer(form);
        let (mut pieces, mut rest) = (String::new(), answer.as_str());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let at = rest.char_indices().nth(*cut).map_or(rest.len(), |(at, _)| at);
            pieces.push_str(&restorer.feed(&rest[..at]).expect("short"));
            rest = &rest[at..];
            prop_assert!(restorer.held.len() < "[ SERIAL\\\\_1024 ]".len());
        }
        pieces.push_str(&restorer.finish().expect("short"));
        prop_assert_eq!(pieces, whole);
    }

    /// Whatever is sent has no secret in it nor a part of one, and comes back as it was.
    #[test]
    fn nothing_that_fits_leaves(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "AB-", "1234", "5", "-wxyz", "q", "@", " ", ", ", "by ", "BY", "Ada", "x", "y", "a_1", "[ab 2]", "PIN\\_3",
                "\"", "_", "7", "[", "]", "é", "\\u0041B-", "１", "\u{200b}",
            ]),
            0..24,
        )
    ) {
        let redactor = of(&OVERLAPPING);
        let text = words.concat();
        let (left, secrets) = sent_by(&redactor, &text);
        let restored = secrets.restore(&left, Form::Text);
        prop_assert_eq!(restored.as_deref(), Ok(text.as_str()));
        // What stays is what stands between the placeholders.
        let placeholder = Regex::new(r"\[(?:A|AB|PIN|WORD|BY|LONG)_[0-9]+\]").expect("an expression");
        let mut stays = vec![false; text.len()];
        let mut at = 0;
        let mut end = 0;
        for found in placeholder.find_iter(&left) {
            let between = found.start() - end;
            stays[at..at + between].fill(true);
            prop_assert_eq!(&text[at..at + between], &left[end..found.start()]);
            at += between + secrets.restore(found.as_str(), Form::Text).expect("short").len();
            end = found.end();
        }
        stays[at..].fill(true);
        // Nothing of what any expression fits, from wherever it is looked for.
        for (_, pattern) in OVERLAPPING {
            let pattern = Regex::new(pattern).expect("an expression");
            for (from, _) in text.char_indices() {
                let found = pattern.captures_at(&text, from);
                let found = found.as_ref().and_then(|found| found.get(1).or(found.get(0)));
                if let Some(found) = found {
                    prop_assert!(!stays[found.range()].contains(&true), "{} of {text}: {left}", found.as_str());
                }
            }
        }
    }

    /// Arguments that are JSON are JSON without their secrets, too, and the same JSON with them.
    #[test]
    fn arguments_stay_json(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "1234", "AB-", "\\u0041B-", "-wxyz", "\\n", "\\\"", "q", "@", "by Ada", "x", "y", "\\\\", " ", "\\ud83d\\ude00", "é",
            ]),
            0..24,
        ),
        number in any::<u64>(),
    ) {
        let redactor = of(&OVERLAPPING);
        let (first, second) = words.split_at(words.len() / 2);
        let text = format!(
            "{{\"{}\": [\"{}\", {number}, true], \"a\": -{number}e3}}", first.concat(), second.concat(),
        );
        let before: Value = serde_json::from_str(&text).expect("JSON");
        let (messages, secrets) = redactor.redact(&[calling(&text.as_str().into())]).expect("few");
        let left = messages[0].extra["tool_calls"][0]["function"]["arguments"].as_str().expect("a text");
        serde_json::from_str::<Value>(left).expect("still JSON");
        for bad in ["AB-1234", "1234-wxyz", "q@q"] {
            prop_assert!(!left.contains(bad), "{text}: {left}");
        }
        let restored = secrets.restore(left, Form::Json).expect("short");
        let after: Value = serde_json::from_str(&restored).expect("still JSON");
        // A number comes back as a text.
        prop_assert_eq!(texts(&after).len(), texts(&before).len());
        let strings = |value: &Value| value.as_object().into_iter().flatten().find_map(|(key, value)| {
            Some((key.clone(), value.get(0)?.as_str()?.to_owned()))
        });
        prop_assert_eq!(strings(&after), strings(&before));
    }
}

/// Every text and number of a value, as a text.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Object(fields) => {
            let fields = fields.iter();
            let texts = fields.flat_map(|(key, value)| [vec![key.clone()], texts(value)].concat());
            texts.collect()
        }
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        Value::Null | Value::Bool(_) => Vec::new(),
    }
}
