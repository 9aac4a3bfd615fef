//! Chat templates against Jinja2, from outside.
//!
//! Cases come from `tests/oracle/chat_template.py`; those in the tree use templates written there. The
//! environment variable `ANDON_CHAT_TEMPLATE_CASES` names further files, separated as in `PATH`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use andon_engine::tokenizer::{ChatInput, ChatMessage, ChatTemplate, TemplateError};
use serde_json::{Value, json};

fn message(value: &Value) -> ChatMessage {
    let mut extra = value.as_object().expect("a message").clone();
    let role = extra.shift_remove("role").expect("a role");
    ChatMessage {
        role: role.as_str().expect("a text").to_owned(),
        content: extra.shift_remove("content").unwrap_or_default(),
        extra,
    }
}

/// Where a prompt is not as expected, with what is around.
fn difference(rendered: &Result<String, TemplateError>, case: &Value) -> String {
    let (Ok(found), Value::String(expected)) = (rendered, &case["prompt"]) else {
        let expected = [&case["prompt"], &case["refuses"], &case["fails"]]
            .map(|value| value.to_string().chars().take(300).collect::<String>());
        return format!("expected {expected:?}\n  got      {rendered:.300?}");
    };
    let same = found
        .chars()
        .zip(expected.chars())
        .take_while(|(a, b)| a == b)
        .count();
    let around = |text: &str| -> String {
        text.chars()
            .skip(same.saturating_sub(40))
            .take(100)
            .collect()
    };
    format!(
        "expected {:?}\n  got      {:?}",
        around(expected),
        around(found)
    )
}

fn check_cases(path: &Path) {
    let text = std::fs::read_to_string(path).expect("a file of cases");
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"));
    let head = lines.next().expect("a first line");
    let mut wrong = 0;
    let mut count = 0;
    let mut broken = BTreeSet::new();
    let mut templates = BTreeMap::new();
    let mut lenient = 0;
    for case in lines {
        let name = case["template"].as_str().expect("a name");
        let source = head["templates"][name].as_str().expect("a template");
        let template = templates.entry(name.to_owned()).or_insert_with(|| {
            ChatTemplate::from_source(source, "<s>", "</s>")
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        });
        let conversation = case["messages"].as_str().expect("a name");
        let messages: Vec<ChatMessage> = head["conversations"][conversation]
            .as_array()
            .expect("messages")
            .iter()
            .map(message)
            .collect();
        let add = case["add_generation_prompt"].as_bool().expect("a boolean");
        let extra = &head["extras"][case["extra"].as_str().expect("a name")];
        let mut extra = extra.as_object().expect("an object").clone();
        let mut list = |name: &str| match extra.shift_remove(name) {
            Some(Value::Array(items)) => items,
            None => Vec::new(),
            other => panic!("{name} is {other:?}"),
        };
        let (tools, documents) = (list("tools"), list("documents"));
        let rendered = template.render(&ChatInput {
            messages: &messages,
            add_generation_prompt: add,
            tools: &tools,
            documents: &documents,
            variables: Some(&extra),
        });
        let agrees = match (&case["prompt"], &case["refuses"]) {
            (Value::String(prompt), _) => rendered.as_ref() == Ok(prompt),
            (_, Value::String(refusal)) => {
                matches!(&rendered, Err(TemplateError::Refused { message }) if message == refusal)
            }
            // Where Python raises an error of its own, there is no prompt to agree with: `minijinja` goes on in some of
            // these cases, as with a loop over none.
            _ => {
                lenient += usize::from(rendered.is_ok());
                !matches!(rendered, Err(TemplateError::Refused { .. }))
            }
        };
        count += 1;
        if !agrees {
            wrong += 1;
            if broken.insert(name.to_owned()) {
                eprintln!("{name}, {conversation}, {}:", case["extra"]);
                eprintln!("  {}", difference(&rendered, &case));
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
    println!(
        "{}: {count} cases agree, {lenient} of them rendered where Python fails",
        path.display()
    );
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

fn input(messages: &[ChatMessage]) -> ChatInput<'_> {
    ChatInput {
        messages,
        add_generation_prompt: true,
        ..ChatInput::default()
    }
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [ChatMessage::new("user", "x".repeat(1000))];
    ChatTemplate::from_source(source, "<s>", "</s>")?.render(&input(&messages))
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
        let prompt = template.render(&input(&messages));
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
fn variables_can_be_added() {
    let template = ChatTemplate::from_source(
        "{{ tools[0].name }} {{ bos_token }} {{ enable_thinking }} {{ messages | length }}",
        "<s>",
        "",
    )
    .expect("a template");
    let variables =
        json!({"tools": 1, "bos_token": "<b>", "enable_thinking": false, "messages": []});
    let prompt = template.render(&ChatInput {
        messages: &[ChatMessage::new("user", "x")],
        tools: &[json!({"name": "status"})],
        variables: variables.as_object(),
        ..ChatInput::default()
    });
    assert_eq!(prompt.as_deref(), Ok("status <b> False 1"));
}

#[test]
fn tools_have_a_template_of_their_own_where_there_is_one() {
    let template = |source| ChatTemplate::from_source(source, "", "").expect("a template");
    assert!(template("{% if tools %}{{ tools | tojson }}{% endif %}").uses_tools());
    assert!(!template("{{ messages | length }} tools").uses_tools());
    let two = template("plain")
        .with_tool_use("with {{ tools | length }}")
        .expect("a template");
    assert!(two.uses_tools());
    let render = |tools: &[Value]| {
        two.render(&ChatInput {
            tools,
            ..ChatInput::default()
        })
    };
    assert_eq!(render(&[]).as_deref(), Ok("plain"));
    assert_eq!(render(&[json!({})]).as_deref(), Ok("with 1"));
}

#[test]
fn input_is_bounded() {
    let template =
        ChatTemplate::from_source("{{ messages | length }}", "", "").expect("a template");
    let long = [ChatMessage::new("user", "x".repeat(1 << 24))];
    assert!(matches!(
        template.render(&input(&long)),
        Err(TemplateError::InputTooLong { .. })
    ));
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!([deep]);
    }
    let deep = [ChatMessage::new("user", deep)];
    assert!(matches!(
        template.render(&input(&deep)),
        Err(TemplateError::InputTooDeep { .. })
    ));
}
