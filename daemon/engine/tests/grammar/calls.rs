//! Answers that may call tools: which texts are reached, that whole answers are read back as calls of the tools' schemas,
//! and that they close.

use std::sync::Arc;

use andon_engine::calls::{CallEvent, CallFormat, CallReader, Opener, ToolStyle};
use andon_engine::generate::{FinishReason, GenerationRequest};
use andon_engine::grammar::{
    Allowed, Calls, Constraint, Grammar, GrammarError, State, Tool, Vocabulary,
};
use andon_engine::speculate::{Corpus, Sources};
use andon_engine::tokenizer::ChatTemplate;
use serde_json::{Value, json};

use crate::answers::{request, run};
use crate::{reached, vocabulary};

/// Templates that write each message as its role, `:` and its content, and calls between these.
fn template(open: &str, call: &str, between: &str, close: &str) -> String {
    format!(
        "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}\
         {{% for m in messages %}}<{{{{ m.role }}}}>{{{{ m.content }}}}\
         {{% if m.tool_calls %}}{open}{{% for c in m.tool_calls %}}{call}\
         {{% if not loop.last %}}{between}{{% endif %}}{{% endfor %}}{close}{{% endif %}}<|end|>\
         {{% endfor %}}"
    )
}

/// The name and the arguments as parts of one object.
const OBJECT: &str =
    "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}";

fn formats() -> Vec<(&'static str, CallFormat)> {
    let of = |template: &str| {
        let template = ChatTemplate::from_source(template, "", "").expect("a template");
        let style = ToolStyle::of(&template, Some(vocabulary::tokenizer()));
        assert!(style.is_native() && style.tells(), "{style:?}");
        style.format().clone()
    };
    let with_id = OBJECT.replace("}}}", "}}, \"id\": \"{{ c.id }}\"}");
    vec![
        ("plain", CallFormat::plain(None)),
        (
            "tags",
            of(&template(
                "",
                &format!("<call>\n{OBJECT}\n</call>"),
                "\n",
                "",
            )),
        ),
        ("list", of(&template("CALLS[", &with_id, ", ", "]"))),
        ("bare", of(&template("", OBJECT, ";", ""))),
        (
            "control",
            of(&template(
                "",
                "<|start|>{{ c.function.name }}<|start|>{{ c.function.arguments | tojson }}",
                "",
                "",
            )),
        ),
        (
            "fenced",
            of(&template(
                "<calls>",
                "<call>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```",
                "",
                "~done",
            )),
        ),
    ]
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        parameters: Some(parameters),
    };
    vec![
        tool(
            "get",
            json!({"type": "object", "properties": {
                "line": {"type": "integer", "minimum": 1, "maximum": 9},
                "why": {"type": "string", "enum": ["jam", "wear"]}}, "required": ["line"]}),
        ),
        tool(
            "get_all",
            json!({"type": "object", "properties": {"text": {"type": "string"},
                "more": {"type": "array", "items": {"type": "object"}}}}),
        ),
        Tool {
            name: "stop".to_owned(),
            parameters: None,
        },
    ]
}

fn calls(format: &CallFormat, required: bool, several: bool) -> Constraint {
    Constraint::Calls(Calls {
        format: format.clone(),
        tools: tools(),
        required,
        several,
    })
}

fn compile(constraint: &Constraint, tokens_max: usize) -> Grammar {
    Grammar::compile(vocabulary::shared(), constraint, tokens_max).expect("it compiles")
}

#[test]
fn text_and_calls_are_reached_and_nothing_between() {
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let (one, other) = (call("get", "{\"line\": 3}"), call("stop", "{}"));
    let both = format!("{one}\n{other}");
    let texts = [
        // What is said, and whether it is with no need to call; with a need; and where one call is the most.
        (String::new(), [true, false, true]),
        (
            "Line 3 is fine. <tool> <tool_call ".to_owned(),
            [true, false, true],
        ),
        (one.clone(), [true, true, true]),
        (format!("I look: \"{one}"), [true, false, true]),
        (both.clone(), [true, true, false]),
        (format!("So.\n{both}"), [true, false, false]),
        (format!("{one}."), [false; 3]),
        (call("get", "{\"line\": 10}"), [false; 3]),
        (call("get", "{}"), [false; 3]),
        (call("get", "{\"line\": 3, \"why\": \"wear\"}"), [true; 3]),
        (call("get", "{\"line\": 3, \"other\": 1}"), [false; 3]),
        (call("get_all", "{\"line\": 3}"), [false; 3]),
        (call("get_all", "{\"text\": \"</tool_call>\"}"), [true; 3]),
        (call("start", "{}"), [false; 3]),
        ("<tool_call>".to_owned(), [false; 3]),
        (one.trim_end_matches('>').to_owned(), [false; 3]),
    ];
    let plain = CallFormat::plain(None);
    let kinds = [(false, true), (true, true), (false, false)];
    for (kind, (required, several)) in kinds.into_iter().enumerate() {
        let grammar = compile(&calls(&plain, required, several), 4096);
        for (text, expected) in &texts {
            assert_eq!(reached(&grammar, text), expected[kind], "{kind}: {text}");
        }
    }
    // Where calls begin with JSON, they do only at the start.
    let bare = formats().remove(3).1;
    let grammar = compile(&calls(&bare, false, true), 4096);
    let one = "{\"name\": \"stop\", \"arguments\": {}}";
    for (text, expected) in [
        ("", true),
        ("Fine.", true),
        (one, true),
        ("{\"nam", true),
        ("{\"name\"", false),
        ("{\"name\": \"x\"}", false),
        ("{ \"name\": \"x\"}", true),
        (&format!("See {one}."), true),
        (&format!("{one};{one}"), true),
    ] {
        assert_eq!(reached(&grammar, text), expected, "{text}");
    }
}

/// The calls in a text; what is not one is text, of which there may be some only before the first.
fn read(format: &CallFormat, text: &str) -> (String, Vec<(String, String, bool)>) {
    let mut reader = CallReader::new(format.clone());
    let mut events = Vec::new();
    for piece in text.split_inclusive(' ') {
        events.extend(reader.push(piece));
    }
    events.extend(reader.finish());
    let (mut said, mut calls) = (String::new(), Vec::<(String, String, bool)>::new());
    for event in events {
        match event {
            CallEvent::Text(piece) => {
                assert!(calls.is_empty(), "{text}");
                said.push_str(&piece);
            }
            CallEvent::Begin(name) => calls.push((name, String::new(), false)),
            CallEvent::Arguments(piece) => calls.last_mut().expect("a call").1.push_str(&piece),
            CallEvent::End => calls.last_mut().expect("a call").2 = true,
        }
    }
    (said, calls)
}

#[test]
fn whole_answers_are_read_back_as_calls_that_are_valid() {
    let validators: Vec<_> = tools()
        .into_iter()
        .map(|tool| {
            let none = json!({"type": "object", "maxProperties": 0});
            let schema = tool.parameters.unwrap_or(none);
            (tool.name, jsonschema::validator_for(&schema).expect("one"))
        })
        .collect();
    let mut all = [0; 3];
    for (name, format) in formats() {
        for (required, several, tokens_max) in [
            (true, true, 400),
            (true, false, 160),
            (false, true, 400),
            (false, true, 90),
        ] {
            let grammar = Arc::new(compile(&calls(&format, required, several), tokens_max));
            let corpus = Arc::new(Corpus::new(1 << 16));
            for seed in 0..12 {
                let base = GenerationRequest {
                    tokens_max: Some(tokens_max),
                    // None of these ends a call.
                    stop: match required {
                        true => vec!["\"".to_owned(), "}".to_owned(), "a".to_owned()],
                        false => vec!["<".to_owned(), "{\"".to_owned(), "]".to_owned()],
                    },
                    ..request(&grammar, seed, [0.0, 1.5][seed as usize % 2])
                };
                let slowly = GenerationRequest {
                    one_by_one: true,
                    ..base.clone()
                };
                let guessing = GenerationRequest {
                    sources: Sources {
                        own: true,
                        corpus: Some(Arc::clone(&corpus)),
                        learns: true,
                        ..Sources::default()
                    },
                    ..base.clone()
                };
                let count = 1 + seed as u32 % 2;
                let (answers, _) = run(64, base, count);
                assert_eq!(answers, run(64, slowly, count).0, "{name} {seed}");
                assert_eq!(answers, run(64, guessing, count).0, "{name} {seed}");
                for answer in answers {
                    let (said, calls) = read(&format, &answer.text);
                    assert!(!required || !calls.is_empty(), "{name}: {}", answer.text);
                    assert!(!required || said.is_empty(), "{name}: {}", answer.text);
                    assert!(several || calls.len() <= 1, "{name}: {}", answer.text);
                    all[0] += usize::from(!said.is_empty());
                    all[1] += usize::from(!calls.is_empty());
                    all[2] += usize::from(calls.len() > 1);
                    if !calls.is_empty() {
                        assert_eq!(
                            answer.end,
                            Some(FinishReason::Stop),
                            "{name}: {}",
                            answer.text
                        );
                    }
                    for (tool, arguments, complete) in calls {
                        assert!(complete, "{name}: {}", answer.text);
                        let value: Value = serde_json::from_str(&arguments).expect("JSON");
                        let known = validators.iter().find(|(name, _)| *name == tool);
                        assert!(known.expect("a tool").1.is_valid(&value), "{arguments}");
                    }
                }
            }
        }
    }
    println!("with text, with calls, with several: {all:?}");
    assert!(all.iter().all(|&count| count > 0), "{all:?}");
}

/// Says a text byte by byte; which byte is not to come.
fn settled(state: &mut State, text: &str) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        if let Some(&id) = state.forced().first() {
            assert!(
                text.as_bytes()[at..].starts_with(vocabulary::bytes(id)),
                "{text}"
            );
            at += vocabulary::bytes(id).len();
            state.accept(id).expect("it is forced");
            continue;
        }
        let id = u32::from(text.as_bytes()[at]);
        assert_ne!(state.takes(id), Some(false), "{text} at {at}");
        if state.settle(id).expect("it goes on") != Some(id) {
            return Some(at);
        }
        state.accept(id).expect("it may come");
        at += 1;
    }
    None
}

#[test]
fn a_call_that_could_not_close_does_not_begin() {
    let format = CallFormat::plain(None);
    let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"line\": 3}}\n</tool_call>";
    let grammar = compile(&calls(&format, false, true), 160);
    let begun = |text: &str| {
        let mut state = grammar.state();
        state.begin(false, 160).expect("it begins");
        (settled(&mut state, text), state)
    };
    let opener = "<tool_call>";
    for length in [0, 60] {
        let said = format!("{}{call}", "-".repeat(length));
        assert_eq!(begun(&said).0, None, "{length}");
    }
    for length in [116, 140] {
        let said = format!("{}{opener}", "-".repeat(length));
        let (at, mut state) = begun(&said);
        assert_eq!(at, Some(length + opener.len() - 1), "{length}");
        // Other text goes on.
        assert_eq!(state.takes(u32::from(b'>')), Some(false));
        assert_eq!(settled(&mut state, "]-"), None);
        assert!(state.is_accepting());
    }
    // Nor does another one, wherever what is between them leads.
    for (name, format) in formats() {
        let constraint = calls(&format, true, true);
        let grammar = compile(&constraint, 170);
        let mut ends = 0;
        for first in 0..40 {
            let mut state = grammar.state();
            state.begin(false, 170).expect("it begins");
            let mut said = Vec::new();
            // Calls as long as they can be are followed by others as long as that may be.
            while !state.is_finished() && said.len() < 170 {
                let id = match state.allowed().expect("something may come") {
                    Allowed::One(id) => id,
                    Allowed::Any(words) => {
                        let all: Vec<u32> = (0..words.len() as u32 * 32)
                            .filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1)
                            .filter(|&id| id != vocabulary::END)
                            .collect();
                        let pick = (first * 7 + said.len() * first) % all.len().max(1);
                        match all.get(pick) {
                            Some(&id) => match state.settle(id).expect("it goes on") {
                                Some(id) => id,
                                None => continue,
                            },
                            None => vocabulary::END,
                        }
                    }
                };
                said.push(id);
                state.accept(id).expect("it may come");
            }
            ends += usize::from(state.is_finished() || said.last() == Some(&vocabulary::END));
        }
        assert_eq!(ends, 40, "{name}");
    }
}

#[test]
fn schemas_of_libraries_are_taken() {
    let parameters = json!({
        "$defs": {
            "Step": {"type": "object", "title": "Step", "properties": {"line": {"type": "integer"}}, "required": ["line"]},
            "Plan": {"type": "object", "properties": {"first": {"$ref": "#/$defs/Step"},
                "other": {"anyOf": [{"$ref": "#/$defs/Step"}, {"type": "null"}], "default": null}}, "required": ["first"]},
        },
        "$ref": "#/$defs/Plan",
    });
    let constraint = Constraint::Calls(Calls {
        format: CallFormat::plain(None),
        tools: vec![Tool {
            name: "plan".to_owned(),
            parameters: Some(parameters),
        }],
        required: true,
        several: false,
    });
    let grammar = compile(&constraint, 400);
    let call = |arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"plan\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    for (arguments, expected) in [
        ("{\"first\": {\"line\": 3}}", true),
        ("{\"first\": {\"line\": 3}, \"other\": null}", true),
        ("{\"first\": {\"line\": 3}, \"other\": {\"line\": 4}}", true),
        ("{}", false),
        ("[]", false),
        ("{\"first\": {\"line\": 3, \"more\": 1}}", false),
        (
            "{\"first\": {\"line\": 3}, \"other\": {\"line\": 4, \"more\": 1}}",
            false,
        ),
        ("{\"first\": {\"line\": 3}, \"more\": 1}", false),
    ] {
        assert_eq!(reached(&grammar, &call(arguments)), expected, "{arguments}");
    }
}

#[test]
fn tags_that_are_control_tokens_are_those_tokens() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}";
    let template = ChatTemplate::from_source(source, "", "").expect("a template");
    let (tags, tokenizer) = vocabulary::with_tags();
    let style = ToolStyle::of(&template, Some(tokenizer));
    assert!(!style.is_native());
    let format = style.format();
    let opener = Opener::Control {
        id: tags[0],
        text: "<tool_call>".to_owned(),
    };
    assert_eq!(format.opener(), &opener);
    let shared = Arc::new(Vocabulary::new(tokenizer).expect("a vocabulary"));
    let grammar = Grammar::compile(&shared, &calls(format, true, true), 400).expect("it compiles");
    let mut state = grammar.state();
    state.begin(false, 400).expect("it begins");
    let mut text = String::new();
    while !state.is_finished() {
        let id = match state.forced().first() {
            Some(&id) => id,
            None => {
                // What calls `stop`, and ends.
                let words = match state.allowed().expect("something may come") {
                    Allowed::One(id) => panic!("{id} is forced"),
                    Allowed::Any(words) => words.to_vec(),
                };
                let mut next = [tags[2], u32::from(b's')].into_iter();
                let found = next.find(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1);
                found.expect("one of them")
            }
        };
        state.accept(id).expect("it may come");
        if id == tags[2] {
            break;
        }
        text.push_str(std::str::from_utf8(tokenizer.token_bytes(id)).expect("ASCII"));
        assert!(text.len() < 200, "{text}");
    }
    let expected = "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>";
    assert_eq!(text, expected);
    assert_eq!(
        read(format, &text).1,
        [("stop".to_owned(), "{}".to_owned(), true)]
    );
}

#[test]
fn what_is_wrong_with_a_tool_names_it() {
    let with = |tools: Vec<Tool>| {
        let constraint = Constraint::Calls(Calls {
            format: CallFormat::plain(None),
            tools,
            required: true,
            several: true,
        });
        let compiled = Grammar::compile(vocabulary::shared(), &constraint, 256);
        compiled.expect_err("it is refused")
    };
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        parameters: Some(parameters),
    };
    let error = with(vec![
        tool("fine", json!({})),
        tool(
            "odd",
            json!({"type": "object", "properties": {"a": {"not": {}}}}),
        ),
    ]);
    let message = error.to_string();
    assert!(
        message.contains("`odd`") && message.contains("`not`") && message.contains("/properties/a"),
        "{message}"
    );
    for parameters in [
        json!({"type": "array"}),
        json!({"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}}),
        json!({"$ref": "#/$defs/x"}),
        json!("x"),
        json!({"type": "object", "required": ["a"], "properties": {"a": false}}),
        json!({"type": "object", "minProperties": 9, "maxProperties": 1}),
    ] {
        let error = with(vec![tool("odd", parameters)]);
        assert!(
            matches!(&error, GrammarError::Tool { name, .. } if name == "odd"),
            "{error}"
        );
    }
    assert!(matches!(with(Vec::new()), GrammarError::Invalid { .. }));
    let twice = vec![tool("a", json!({})), tool("a", json!({}))];
    assert!(matches!(with(twice), GrammarError::Invalid { .. }));
    let many = (0..129).map(|index| tool(&format!("t{index}"), json!({})));
    assert!(matches!(
        with(many.collect()),
        GrammarError::TooLarge { .. }
    ));
    let wide = |index: usize| {
        let names = (0..200).map(|at| {
            (
                format!("{index}_{at}_{}", "x".repeat(40)),
                json!({"type": "null"}),
            )
        });
        tool(
            &format!("t{index}"),
            json!({"type": "object", "properties": names.collect::<serde_json::Map<_, _>>()}),
        )
    };
    let error = with((0..120).map(wide).collect());
    assert!(
        matches!(
            error,
            GrammarError::TooLarge { .. } | GrammarError::TooComplex { .. }
        ),
        "{error}"
    );
}

#[test]
fn many_tools_compile() {
    let tools = (0..128).map(|index| Tool {
        name: format!("tool_{index}"),
        parameters: Some(json!({"type": "object", "properties": {
            "line": {"type": "integer"}, "text": {"type": "string"},
            "kind": {"type": "string", "enum": ["a", "b", format!("c{index}")]}},
            "required": ["line"]})),
    });
    let constraint = Constraint::Calls(Calls {
        format: CallFormat::plain(None),
        tools: tools.collect(),
        required: false,
        several: true,
    });
    let grammar = compile(&constraint, 1024);
    let call = "<tool_call>\n{\"name\": \"tool_77\", \"arguments\": {\"line\": 3, \"kind\": \"c77\"}}\n</tool_call>";
    assert!(reached(&grammar, call));
    assert!(!reached(&grammar, &call.replace("c77", "c78")));
}
