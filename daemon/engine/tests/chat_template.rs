//! Chat templates against Jinja2, from outside.
//!
//! Cases come from `tests/oracle/chat_template.py`; those in the tree use templates written there. The
//! environment variable `ANDON_CHAT_TEMPLATE_CASES` names further files, separated as in `PATH`.

use std::path::Path;

use andon_engine::tokenizer::{ChatMessage, ChatTemplate, TemplateError};
use serde_json::{Map, Value, json};

fn message(value: &Value) -> ChatMessage {
    let mut extra = value.as_object().expect("a message").clone();
    let mut text = |name: &str| match extra.shift_remove(name) {
        Some(Value::String(text)) => text,
        other => panic!("{name} is {other:?}"),
    };
    ChatMessage {
        role: text("role"),
        content: text("content"),
        extra,
    }
}

fn check_cases(path: &Path) {
    let text = std::fs::read_to_string(path).expect("a file of cases");
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"));
    let head = lines.next().expect("a first line");
    let mut wrong = 0;
    let mut count = 0;
    for case in lines {
        let name = case["template"].as_str().expect("a name");
        let source = head["templates"][name].as_str().expect("a template");
        let template = ChatTemplate::from_source(source, "<s>", "</s>")
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let conversation = case["messages"].as_str().expect("a name");
        let messages: Vec<ChatMessage> = head["conversations"][conversation]
            .as_array()
            .expect("messages")
            .iter()
            .map(message)
            .collect();
        let add = case["add_generation_prompt"].as_bool().expect("a boolean");
        let extra = case["extra"].as_object().expect("an object");
        let rendered = template.render(&messages, add, extra);
        let agrees = match (&case["prompt"], &case["refuses"]) {
            (Value::String(prompt), _) => rendered.as_ref() == Ok(prompt),
            (_, Value::String(refusal)) => {
                matches!(&rendered, Err(TemplateError::Refused { message }) if message == refusal)
            }
            _ => matches!(rendered, Err(TemplateError::Render { .. })),
        };
        count += 1;
        if !agrees {
            wrong += 1;
            if wrong <= 10 {
                eprintln!(
                    "{name}, {conversation}:\n  expected {} {} {}\n  got      {rendered:?}",
                    case["prompt"], case["refuses"], case["fails"]
                );
            }
        }
    }
    assert_eq!(
        wrong,
        0,
        "{}: {wrong} of {count} cases differ",
        path.display()
    );
    assert!(count > 0);
    println!("{}: {count} cases agree", path.display());
}

#[test]
fn cases_in_the_tree_agree_with_jinja2() {
    check_cases(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_template/cases.jsonl"));
}

#[test]
fn given_cases_agree_with_jinja2() {
    let Ok(paths) = std::env::var("ANDON_CHAT_TEMPLATE_CASES") else {
        println!("skipped: ANDON_CHAT_TEMPLATE_CASES names no file of cases");
        return;
    };
    for path in std::env::split_paths(&paths) {
        check_cases(&path);
    }
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [ChatMessage::new("user", "x".repeat(1000))];
    ChatTemplate::from_source(source, "<s>", "</s>")?.render(&messages, true, &Map::new())
}

#[test]
fn work_and_memory_are_bounded() {
    for source in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% set ns = namespace(t='xxxxxxxx') %}{% for a in range(100) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t | tojson }}",
        "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t | tojson(sort_keys=true) }}",
        "{% set t = messages[0].content %}{{ t.replace('x', t).replace('x', t) }}",
        "{% set t = messages[0].content * 100 %}{{ t.join(t) }}",
        "{{ [1] * 1000000000 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ [1] | tojson(indent=1000000000) }}",
    ] {
        let error = render(source).expect_err(source);
        assert!(
            matches!(
                error,
                TemplateError::OutOfFuel | TemplateError::Render { .. }
            ),
            "{source}: {error}"
        );
    }
    // Within its fuel, but longer than any prompt.
    let long =
        "{% set t = messages[0].content * 1000 %}{% for a in range(20) %}{{ t }}{% endfor %}";
    assert!(matches!(
        render(long),
        Err(TemplateError::PromptTooLong { .. })
    ));
}

/// A value nested as deeply as the fuel pays for is dropped level by level.
#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let source = "{% set ns = namespace(x=[]) %}{% for i in range(2000) %}{% for j in range(2000) %}\
                  {% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
    assert!(render(source).is_err(), "the fuel ends it");
    let source = "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% for j in range(200) %}\
                  {% set ns.x = [ns.x] %}{% endfor %}{% endfor %}done";
    assert_eq!(render(source).as_deref(), Ok("done"));
}

#[test]
fn long_input_has_the_fuel_it_needs() {
    let messages: Vec<ChatMessage> = (0..2000)
        .map(|index| {
            let role = if index % 2 == 0 { "user" } else { "assistant" };
            ChatMessage::new(
                role,
                format!("<think>\n{index}\n</think>\n{}", "words ".repeat(300)),
            )
        })
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_template/cases.jsonl");
    let text = std::fs::read_to_string(path).expect("a file of cases");
    let head: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    for name in [
        "plain",
        "first",
        "headers",
        "alternating",
        "thinking",
        "turns",
    ] {
        let source = head["templates"][name].as_str().expect("a template");
        let template = ChatTemplate::from_source(source, "", "").expect("a template");
        let prompt = template.render(&messages, true, &Map::new());
        assert!(
            prompt.is_ok_and(|prompt| prompt.len() > 2_000_000),
            "{name}"
        );
    }
}

#[test]
fn errors_say_what_and_where() {
    let syntax = ChatTemplate::from_source("a\n{% if %}", "", "");
    assert!(
        matches!(syntax, Err(TemplateError::Syntax { line: 2, .. })),
        "{syntax:?}"
    );
    let long = ChatTemplate::from_source(&" ".repeat((1 << 20) + 1), "", "");
    assert!(matches!(long, Err(TemplateError::SourceTooLong { .. })));
    let failed = render("a\n\n{{ messages.nothing.more }}");
    assert!(
        matches!(failed, Err(TemplateError::Render { line: 3, .. })),
        "{failed:?}"
    );
    let refused = render("{% if true %}{{ raise_exception('no ' + messages[0].role) }}{% endif %}");
    let message = "no user".to_owned();
    assert_eq!(refused, Err(TemplateError::Refused { message }));
    let unknown = render("{{ 'a'.nothing() }}");
    assert!(
        matches!(unknown, Err(TemplateError::Render { line: 1, .. })),
        "{unknown:?}"
    );
}

#[test]
fn dates_are_rendered() {
    let year = render("{{ strftime_now('%Y') }}").expect("a year");
    assert!(year.len() == 4 && year.parse::<u32>().is_ok_and(|year| year >= 1970));
}

#[test]
fn chatml_is_the_named_default() {
    let messages = [
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", "Hello\n"),
    ];
    let prompt = ChatTemplate::chatml()
        .expect("a template")
        .render(&messages, true, &Map::new());
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello\n<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt.as_deref(), Ok(expected));
}

#[test]
fn variables_can_be_added() {
    let template = ChatTemplate::from_source("{{ tools[0].name }} {{ bos_token }}", "<s>", "")
        .expect("a template");
    let extra = json!({"tools": [{"name": "status"}], "bos_token": "<b>"});
    let prompt = template.render(&[], false, extra.as_object().expect("an object"));
    assert_eq!(prompt.as_deref(), Ok("status <b>"));
}
