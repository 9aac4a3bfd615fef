use serde_json::json;

use super::*;
use crate::config::limits::LimitsConfig;
use crate::request::{CHOICES_MAX, Calling, Input, ToolChoice};

fn chat_of(value: &Value) -> Result<Parsed, ApiError> {
    chat(value.to_string().as_bytes(), "id", "client")
}

fn hello(extra: Value) -> Result<Parsed, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra);
    }
    chat_of(&body)
}

/// As the worker takes it in.
fn checked(extra: Value) -> Result<Parsed, ApiError> {
    let parsed = hello(extra)?;
    let limits = LimitsConfig::default();
    parsed
        .requests
        .iter()
        .try_for_each(|request| request.check(&limits))?;
    Ok(parsed)
}

fn param_of(result: Result<Parsed, ApiError>) -> String {
    result
        .expect_err("must be refused")
        .param
        .expect("a parameter is named")
}

#[test]
fn everything_a_client_may_say_is_taken() {
    let parsed = hello(json!({
        "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "repeat_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25, "seed": -1,
        "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true},
        "logprobs": true, "top_logprobs": 3, "n": 3, "user": "panel 4", "tools": [],
        "response_format": {"type": "text"}, "logit_bias": {"5": -100, "17": 2.5},
        "typical_p": 0.9, "ignore_eos": true, "prediction": {"type": "content", "content": "It is"}, "chat_template_kwargs": {"enable_thinking": false}, "priority": "alarm", "deadline_ms": 1000,
    }))
    .expect("a valid request");
    assert!(parsed.include_usage);
    let request = &parsed.requests[0];
    assert_eq!(request.tokens_max, Some(7));
    assert_eq!(request.sampling.top_k, Some(40));
    assert_eq!(request.sampling.typical_p, Some(0.9));
    assert_eq!(request.logit_bias, [(5, -100.0), (17, 2.5)]);
    assert_eq!(request.choices, 3);
    assert!(request.ignore_end);
    assert_eq!(request.prediction.as_deref(), Some("It is"));
    assert_eq!(request.template_variables["enable_thinking"], false);
    assert_eq!(request.sampling.presence_penalty, Some(-0.5));
    assert_eq!(request.sampling.seed, Some(u64::MAX));
    assert_eq!(request.stop, ["a", "b"]);
    assert_eq!(request.logprobs, Some(3));
    assert_eq!(request.priority, Some(Priority::Alarm));
    assert!(request.stream && request.deadline.is_some());
}

#[test]
fn content_may_be_text_parts() {
    let parsed = chat_of(&json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
    ]}))
    .expect("a valid request");
    let Input::Messages(messages) = &parsed.requests[0].input else {
        panic!("messages were sent");
    };
    assert_eq!(messages[0].role, "system");
    assert_eq!(messages[0].content, "be brief");
}

#[test]
fn what_is_not_supported_is_named() {
    assert_eq!(
        param_of(hello(json!({"response_format": {"type": "xml"}}))),
        "response_format"
    );
    assert_eq!(
        param_of(hello(json!({"reasoning_effort": "high"}))),
        "reasoning_effort"
    );
    assert_eq!(param_of(hello(json!({"store": true}))), "store");
    assert_eq!(param_of(hello(json!({"tempratur": 1}))), "tempratur");
    assert_eq!(
        param_of(hello(json!({"stream": true, "stream_options": {"x": 1}}))),
        "stream_options.x"
    );
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]});
    assert_eq!(param_of(chat_of(&image)), "messages[0].content[0]");
    let named = json!({"messages": [{"role": "user", "content": "x", "name": "y"}]});
    assert_eq!(param_of(chat_of(&named)), "messages[0].name");
    let tool = json!({"messages": [{"role": "tool", "content": "x"}]});
    assert_eq!(param_of(chat_of(&tool)), "messages[0].tool_call_id");
    let older = json!({"messages": [{"role": "function", "content": "x"}]});
    assert_eq!(param_of(chat_of(&older)), "messages[0].role");
}

#[test]
fn tools_may_be_called_as_the_client_chooses() {
    let of = |name: &str| {
        json!({"type": "function", "function": {
            "name": name, "description": "State of a line", "parameters": {"type": "object"}, "strict": true,
        }})
    };
    let tools = json!([of("line_status"), of("stop_line")]);
    let chosen = |body: Value| {
        let mut body = body;
        body["tools"] = tools.clone();
        let parsed = hello(body).expect("valid");
        assert_eq!(json!(parsed.requests[0].tools), tools);
        parsed.requests[0].tool_choice.clone()
    };
    let choice = |calling, only: &[&str], single| ToolChoice {
        calling,
        only: (!only.is_empty()).then(|| only.iter().map(|&name| name.to_owned()).collect()),
        single,
    };
    let named = json!({"type": "function", "function": {"name": "stop_line"}});
    let allowed =
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}});
    for (body, expected) in [
        (json!({}), choice(Calling::Maybe, &[], false)),
        (
            json!({"tool_choice": "none"}),
            choice(Calling::Never, &[], false),
        ),
        (
            json!({"tool_choice": "auto", "parallel_tool_calls": false}),
            choice(Calling::Maybe, &[], true),
        ),
        (
            json!({"tool_choice": "required", "parallel_tool_calls": true}),
            choice(Calling::Must, &[], false),
        ),
        (
            json!({"tool_choice": named}),
            choice(Calling::Must, &["stop_line"], true),
        ),
        (
            json!({"tool_choice": allowed}),
            choice(Calling::Must, &["stop_line"], false),
        ),
    ] {
        assert_eq!(chosen(body.clone()), expected, "{body}");
    }
    for wrong in [
        json!("any"),
        json!(3),
        json!({"type": "function"}),
        json!({"type": "function", "function": {"name": "start_line"}}),
        json!({"type": "custom", "custom": {"name": "stop_line"}}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": 1, "tools": [named]}}),
        json!({"type": "allowed_tools", "allowed_tools": [named]}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
    ] {
        let body = json!({"tools": tools, "tool_choice": wrong});
        assert_eq!(param_of(checked(body)), "tool_choice");
        let body = json!({"tool_choice": wrong});
        assert_eq!(param_of(checked(body)), "tool_choice");
    }
    for (surplus, param) in [
        (
            json!({"type": "function", "function": {"name": "stop_line"}, "name": "x"}),
            "tool_choice.name",
        ),
        (
            json!({"type": "function", "function": {"name": "stop_line", "strict": true}}),
            "tool_choice.function.strict",
        ),
        (
            json!({"type": "function", "name": "stop_line", "disable_parallel_tool_use": true}),
            "tool_choice.disable_parallel_tool_use",
        ),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named], "more": 1}}),
            "tool_choice.allowed_tools.more",
        ),
        (
            json!({"type": "allowed_tools", "mode": "auto",
                "tools": [{"type": "function", "name": "stop_line", "description": "d"}]}),
            "tool_choice.tools[0].description",
        ),
    ] {
        let body = json!({"tools": tools, "tool_choice": surplus});
        assert_eq!(param_of(hello(body)), param);
    }
    for none in [
        json!({}),
        json!({"tools": []}),
        json!({"tool_choice": "auto"}),
    ] {
        let parsed = hello(none).expect("valid");
        assert_eq!(parsed.requests[0].tool_choice, ToolChoice::default());
    }
    assert_eq!(
        param_of(checked(json!({"tool_choice": "required"}))),
        "tool_choice"
    );
    let twice = json!({"tools": [of("a"), of("b"), of("a")]});
    assert_eq!(param_of(hello(twice)), "tools[2].function.name");
    let body = json!({"tools": tools, "parallel_tool_calls": 1});
    assert_eq!(param_of(hello(body)), "parallel_tool_calls");
    assert_eq!(
        param_of(hello(json!({"functions": [{"name": "f"}]}))),
        "functions"
    );
    let of = |function: Value| json!({"type": "function", "function": function});
    for (tools, param) in [
        (json!({}), "tools"),
        (json!(vec![of(json!({"name": "f"})); 129]), "tools"),
        (json!([1]), "tools[0]"),
        (json!([{"type": "web_search"}]), "tools[0].type"),
        (json!([{"type": "function"}]), "tools[0].function"),
        (
            json!([of(json!({"name": "a b"}))]),
            "tools[0].function.name",
        ),
        (
            json!([of(json!({"name": "f", "parameters": 1}))]),
            "tools[0].function.parameters",
        ),
        (
            json!([of(json!({"name": "f", "more": 1}))]),
            "tools[0].function.more",
        ),
    ] {
        let body = json!({"tools": tools, "tool_choice": "none"});
        assert_eq!(param_of(hello(body)), param);
    }
}

#[test]
fn calls_of_tools_are_part_of_what_was_said() {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"line\": 3}"}});
    let said = |calls: &Value| {
        json!({"messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "stopped"}]},
        ]})
    };
    let parsed = chat_of(&said(&json!([call]))).expect("valid");
    let Input::Messages(messages) = &parsed.requests[0].input else {
        panic!("messages were sent");
    };
    assert_eq!(messages[1].extra["tool_calls"], json!([call]));
    assert_eq!(messages[2].extra["tool_call_id"], "c1");
    assert_eq!(
        (messages[1].content.as_str(), messages[2].content.as_str()),
        ("", "stopped")
    );
    let without = |name: &str| {
        let mut call = call.clone();
        let whole = call.as_object_mut().expect("an object");
        whole.remove(name);
        json!([call])
    };
    for id in [json!(""), json!("x".repeat(257)), json!("a\nb"), json!(1)] {
        let mut call = call.clone();
        call["id"] = id.clone();
        let whole = said(&json!([call]));
        assert_eq!(param_of(chat_of(&whole)), "messages[1].tool_calls[0].id");
        let mut whole = said(&json!([call]));
        whole["messages"][1]["tool_calls"][0]["id"] = json!("c1");
        whole["messages"][2]["tool_call_id"] = id;
        assert_eq!(param_of(chat_of(&whole)), "messages[2].tool_call_id");
    }
    let mut other = said(&json!([call]));
    other["messages"][2]["tool_call_id"] = json!("c2");
    assert_eq!(param_of(chat_of(&other)), "messages[2].tool_call_id");
    for (calls, param) in [
        (json!([]), "messages[1].content"),
        (json!("x"), "messages[1].tool_calls"),
        (without("id"), "messages[1].tool_calls[0].id"),
        (without("type"), "messages[1].tool_calls[0].type"),
        (without("function"), "messages[1].tool_calls[0].function"),
        (
            json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}]),
            "messages[1].tool_calls[0].function.arguments",
        ),
    ] {
        assert_eq!(param_of(chat_of(&said(&calls))), param);
    }
    let mut by_user = said(&json!([call]));
    by_user["messages"][1]["role"] = json!("user");
    assert_eq!(param_of(chat_of(&by_user)), "messages[1].tool_calls");
}

#[test]
fn wrong_types_are_named() {
    for (name, value) in [
        ("temperature", json!("hot")),
        ("seed", json!(0.5)),
        ("stop", json!([1])),
        ("stream", json!("yes")),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(5_000_000_000u64)),
        ("top_logprobs", json!(2)),
        ("model", json!(["m"])),
        ("stream_options", json!({"include_usage": true})),
        ("deadline_ms", json!(0)),
        ("priority", json!("high")),
    ] {
        assert_eq!(param_of(hello(json!({ name: value }))), name);
    }
    assert_eq!(
        param_of(hello(json!({"logprobs": true, "top_logprobs": 21}))),
        "top_logprobs"
    );
    assert_eq!(param_of(chat_of(&json!({"messages": "hello"}))), "messages");
    assert_eq!(param_of(chat_of(&json!({"messages": [5]}))), "messages[0]");
    assert_eq!(param_of(chat_of(&json!({}))), "messages");
}

#[test]
fn a_prediction_is_a_text_or_parts_of_one() {
    let parts = json!([{"type": "text", "text": "It "}, {"type": "text", "text": "is"}]);
    let parsed = hello(json!({"prediction": {"type": "content", "content": parts}}));
    let request = &parsed.expect("a valid request").requests[0];
    assert_eq!(request.prediction.as_deref(), Some("It is"));
    for (value, param) in [
        (json!("It is"), "prediction"),
        (json!({"content": "It is"}), "prediction.type"),
        (
            json!({"type": "text", "content": "It is"}),
            "prediction.type",
        ),
        (json!({"type": "content"}), "prediction.content"),
        (
            json!({"type": "content", "content": 5}),
            "prediction.content",
        ),
        (
            json!({"type": "content", "content": [{"type": "image", "text": ""}]}),
            "prediction.content",
        ),
        (
            json!({"type": "content", "content": "", "n": 1}),
            "prediction.n",
        ),
    ] {
        assert_eq!(param_of(hello(json!({ "prediction": value }))), param);
    }
}

#[test]
fn malformed_json_is_an_error_of_the_body() {
    for body in ["", "{", "[]", "null", "{\"messages\": [}", "\u{0}"] {
        let error = chat(body.as_bytes(), "id", "client").expect_err("must be refused");
        assert_eq!(error.status, 400, "{body:?}");
    }
    let deep = "[".repeat(100_000);
    assert!(chat(deep.as_bytes(), "id", "client").is_err());
    assert!(chat(b"\xff\xfe", "id", "client").is_err());
}

#[test]
fn completions_take_prompts_of_every_kind() {
    let of = |value: Value| completion(value.to_string().as_bytes(), "id", "client");
    let parsed = of(json!({"prompt": ["one"], "logprobs": 5, "max_tokens": 3})).expect("valid");
    assert_eq!(parsed.requests[0].input, Input::Prompt("one".to_owned()));
    assert_eq!(parsed.requests[0].logprobs, Some(5));
    assert_eq!(param_of(of(json!({"prompt": []}))), "prompt");
    assert_eq!(param_of(of(json!({}))), "prompt");
    assert_eq!(
        param_of(of(json!({"prompt": "x", "logprobs": 6}))),
        "logprobs"
    );
    assert_eq!(
        param_of(of(json!({"prompt": "x", "echo": true, "logprobs": 0}))),
        "echo"
    );
    assert_eq!(
        param_of(of(json!({"prompt": "x", "n": 2, "best_of": 3}))),
        "best_of"
    );
    let parsed = of(json!({"prompt": "x", "suffix": "y"})).expect("valid");
    let Input::Gap(gap) = &parsed.requests[0].input else {
        panic!("a gap has a suffix behind it");
    };
    assert_eq!((gap.before.as_str(), gap.after.as_str()), ("x", "y"));
    let parsed = of(json!({"prompt": "x", "suffix": ""})).expect("valid");
    assert_eq!(parsed.requests[0].input, Input::Prompt("x".to_owned()));
    for (prompt, suffix) in [
        (json!([1]), json!("y")),
        (json!(["x", "z"]), json!("y")),
        (json!("x"), json!(["y"])),
    ] {
        let body = json!({"prompt": prompt, "suffix": suffix});
        assert_eq!(param_of(of(body)), "suffix");
    }
}

#[test]
fn prompts_may_be_texts_or_tokens_one_or_several() {
    let of = |prompt: Value| {
        let body = json!({"prompt": prompt, "n": 2, "best_of": 2, "echo": true});
        completion(body.to_string().as_bytes(), "id", "client")
    };
    let inputs = |prompt: Value| -> Vec<Input> {
        let parsed = of(prompt).expect("valid");
        assert!(parsed.echo);
        let requests = parsed.requests.into_iter();
        requests.map(|request| request.input).collect()
    };
    assert_eq!(
        inputs(json!([1, 2])),
        [Input::Tokens(vec![1, 2])],
        "one prompt of two tokens"
    );
    assert_eq!(
        inputs(json!([[1], [2, 3]])),
        [Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]
    );
    let texts = of(json!(["one", "two"])).expect("valid");
    let ids: Vec<&str> = texts
        .requests
        .iter()
        .map(|request| request.id.as_str())
        .collect();
    assert_eq!(ids, ["id-0", "id-1"]);
    assert!(texts.requests.iter().all(|request| request.choices == 2));
    for wrong in [
        json!([1, "x"]),
        json!([true]),
        json!([[1], [-1]]),
        json!([1.5]),
        json!([5_000_000_000_u64]),
        json!(vec!["x"; 33]),
        json!({"text": "x"}),
    ] {
        assert_eq!(param_of(of(wrong)), "prompt");
    }
}

#[test]
fn bounds_of_new_fields_are_held() {
    let many: Map<String, Value> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    for (name, value, param) in [
        ("logit_bias", json!([1]), "logit_bias"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logit_bias", json!({"-1": 1}), "logit_bias"),
        ("logit_bias", json!({"5": "high"}), "logit_bias.5"),
        ("logit_bias", json!({"5": 100.5}), "logit_bias.5"),
        ("logit_bias", json!(many), "logit_bias"),
        ("n", json!("two"), "n"),
        ("typical_p", json!("x"), "typical_p"),
        ("chat_template_kwargs", json!([]), "chat_template_kwargs"),
        (
            "chat_template_kwargs",
            json!({"messages": []}),
            "chat_template_kwargs.messages",
        ),
        (
            "chat_template_kwargs",
            json!({"documents": ["x"]}),
            "chat_template_kwargs.documents",
        ),
        ("cache_prompt", json!(false), "cache_prompt"),
    ] {
        assert_eq!(param_of(hello(json!({ name: value }))), param);
    }
    let parsed = hello(json!({"n": CHOICES_MAX + 1})).expect("bounds are checked on submission");
    assert_eq!(parsed.requests[0].choices, CHOICES_MAX + 1);
}
