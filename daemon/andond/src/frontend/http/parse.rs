//! From a JSON body to a [`Request`]: what both answering endpoints have in common, and each one's own.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use crate::request::{Input, LOGPROBS_MAX, Message, Origin, Priority, Request, Sampling};

/// Most alternatives a token in the older completions endpoint.
const COMPLETION_LOGPROBS_MAX: u32 = 5;
/// Longest deadline that can be asked for: a day.
const DEADLINE_MS_MAX: u32 = 86_400_000;

/// A parsed body.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The request to submit.
    pub(super) request: Request,
    /// `stream_options.include_usage`
    pub(super) include_usage: bool,
}

/// Parses a body of `/v1/chat/completions`.
pub(super) fn chat(body: &[u8], id: &str, client: &str) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    refuse_unsupported(&mut fields)?;
    for name in ["functions", "function_call", "tools", "tool_choice"] {
        fields.refuse_unless(name, is_empty_or_none, "tools are not supported")?;
    }
    let response_format = fields.take("response_format");
    if let Some(format) = response_format
        && format.get("type").and_then(Value::as_str) != Some("text")
    {
        return Err(ApiError::unsupported(
            "response_format",
            "response_format: only {\"type\": \"text\"} is supported",
        ));
    }
    fields.refuse_unless(
        "parallel_tool_calls",
        Value::is_boolean,
        "must be true or false",
    )?;
    fields.refuse_unless(
        "modalities",
        |value| *value == serde_json::json!(["text"]),
        "only text is supported",
    )?;

    let messages = match fields.take("messages") {
        None => return Err(ApiError::invalid("messages", "messages is missing")),
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(ApiError::invalid("messages", "messages must be an array")),
    };
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, value)| message(index, value))
        .collect::<Result<Vec<Message>, ApiError>>()?;

    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs")?;
    let logprobs = match (wanted, top) {
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs needs logprobs: true",
            ));
        }
        (true, top) => {
            let top = u8::try_from(top.unwrap_or(0))
                .ok()
                .filter(|top| *top <= LOGPROBS_MAX)
                .ok_or_else(|| {
                    ApiError::invalid(
                        "top_logprobs",
                        format!("top_logprobs is at most {LOGPROBS_MAX}"),
                    )
                })?;
            Some(top)
        }
    };

    let older = fields.count("max_tokens")?;
    let newer = fields.count("max_completion_tokens")?;
    let tokens_max = match (older, newer) {
        (Some(older), Some(newer)) if older != newer => {
            return Err(ApiError::invalid(
                "max_completion_tokens",
                "max_tokens and max_completion_tokens differ; send one of them",
            ));
        }
        (older, newer) => newer.or(older),
    };
    if tokens_max == Some(0) {
        let name = if newer.is_some() {
            "max_completion_tokens"
        } else {
            "max_tokens"
        };
        return Err(ApiError::invalid(
            name,
            format!("{name} must be at least 1"),
        ));
    }

    let mut request = Request::new(id, client, Origin::Http, Input::Messages(messages));
    request.tokens_max = tokens_max.map(|tokens| tokens as usize);
    request.logprobs = logprobs;
    let include_usage = common(&mut fields, &mut request)?;
    fields.finish("")?;
    Ok(Parsed {
        request,
        include_usage,
    })
}

/// Parses a body of `/v1/completions`.
pub(super) fn completion(body: &[u8], id: &str, client: &str) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    refuse_unsupported(&mut fields)?;
    fields.refuse_unless("echo", |value| *value == false, "only false is supported")?;
    fields.refuse_unless("suffix", |value| *value == "", "is not supported")?;
    fields.refuse_unless("best_of", |value| *value == 1, "only 1 is supported")?;

    let not_one = || {
        ApiError::unsupported(
            "prompt",
            "prompt must be one string; several prompts and token ids are not supported",
        )
    };
    let prompt = match fields.take("prompt") {
        None => return Err(ApiError::invalid("prompt", "prompt is missing")),
        Some(Value::String(prompt)) => prompt,
        Some(Value::Array(mut prompts)) => match (prompts.pop(), prompts.is_empty()) {
            (Some(Value::String(prompt)), true) => prompt,
            _ => return Err(not_one()),
        },
        Some(_) => return Err(not_one()),
    };

    let logprobs = fields.count("logprobs")?;
    if logprobs.is_some_and(|count| count > COMPLETION_LOGPROBS_MAX) {
        return Err(ApiError::invalid(
            "logprobs",
            format!("logprobs is at most {COMPLETION_LOGPROBS_MAX}"),
        ));
    }

    let tokens_max = fields.count("max_tokens")?;
    let mut request = Request::new(id, client, Origin::Http, Input::Prompt(prompt));
    request.tokens_max = tokens_max.map(|tokens| tokens as usize);
    request.logprobs = logprobs.and_then(|count| u8::try_from(count).ok());
    let include_usage = common(&mut fields, &mut request)?;
    fields.finish("")?;
    Ok(Parsed {
        request,
        include_usage,
    })
}

/// The fields that mean the same in both endpoints; answers `include_usage`.
fn common(fields: &mut Fields, request: &mut Request) -> Result<bool, ApiError> {
    request.model = fields.string("model")?;
    request.sampling = Sampling {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.count("top_k")?,
        min_p: fields.number("min_p")?,
        repeat_penalty: fields.number("repeat_penalty")?,
        repeat_last_n: fields.count("repeat_last_n")?,
        presence_penalty: fields.number("presence_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        seed: fields.seed("seed")?,
    };
    request.stop = fields.strings("stop")?;
    request.stream = fields.bool("stream")?.unwrap_or(false);
    request.priority = match fields.string("priority")?.as_deref() {
        None => None,
        Some("alarm") => Some(Priority::Alarm),
        Some("interactive") => Some(Priority::Interactive),
        Some("batch") => Some(Priority::Batch),
        Some(_) => {
            return Err(ApiError::invalid(
                "priority",
                "priority must be alarm, interactive or batch",
            ));
        }
    };
    request.deadline = match fields.count("deadline_ms")? {
        None => None,
        Some(deadline_ms) if (1..=DEADLINE_MS_MAX).contains(&deadline_ms) => {
            Instant::now().checked_add(Duration::from_millis(u64::from(deadline_ms)))
        }
        Some(_) => {
            return Err(ApiError::invalid(
                "deadline_ms",
                format!("deadline_ms must be from 1 to {DEADLINE_MS_MAX}"),
            ));
        }
    };
    let options = match fields.take("stream_options") {
        None => return Ok(false),
        Some(_) if !request.stream => {
            return Err(ApiError::invalid(
                "stream_options",
                "stream_options needs stream: true",
            ));
        }
        Some(Value::Object(options)) => options,
        Some(_) => {
            return Err(ApiError::invalid(
                "stream_options",
                "stream_options must be an object",
            ));
        }
    };
    let mut options = Fields::of(options);
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    // Padding against guessing lengths on the wire: there is no wire, and asking for none is harmless.
    options.refuse_unless(
        "include_obfuscation",
        |value| *value == false,
        "is not supported",
    )?;
    options.finish("stream_options.")?;
    Ok(include_usage)
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "metadata", "safety_identifier", "prompt_cache_key"] {
        fields.label(name);
    }
    fields.refuse_unless("n", |value| *value == 1, "only 1 answer is supported")?;
    fields.refuse_unless("logit_bias", is_empty_or_none, "is not supported")?;
    fields.refuse_unless("store", |value| *value == false, "answers are not stored")?;
    fields.refuse_unless(
        "service_tier",
        |value| *value == "auto" || *value == "default",
        "only auto and default are supported; see priority",
    )
}

fn is_empty_or_none(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(value) => value == "none",
        _ => false,
    }
}

fn message(index: usize, value: Value) -> Result<Message, ApiError> {
    let path = format!("messages[{index}]");
    let Value::Object(map) = value else {
        return Err(ApiError::invalid(
            &path,
            format!("{path} must be an object"),
        ));
    };
    let mut fields = Fields::of(map);
    let Some(Value::String(role)) = fields.take("role") else {
        let path = format!("{path}.role");
        let message = format!("{path} must be a string");
        return Err(ApiError::invalid(path, message));
    };
    let role = match role.as_str() {
        // The newer name of the same thing; models' templates know the older one.
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" => role,
        "tool" | "function" => {
            let path = format!("{path}.role");
            return Err(ApiError::unsupported(
                &path,
                format!("{path}: tools are not supported"),
            ));
        }
        _ => {
            let path = format!("{path}.role");
            let message = format!("{path} must be system, developer, user or assistant");
            return Err(ApiError::invalid(&path, message));
        }
    };
    let path_content = format!("{path}.content");
    let content = match fields.take("content") {
        Some(Value::String(content)) => content,
        Some(Value::Array(parts)) => text_parts(&path_content, parts)?,
        Some(_) => {
            let message = format!("{path_content} must be a string or an array of text parts");
            return Err(ApiError::invalid(path_content, message));
        }
        None => {
            let message = format!("{path_content} is missing");
            return Err(ApiError::invalid(path_content, message));
        }
    };
    for name in ["tool_calls", "annotations"] {
        if fields
            .take(name)
            .is_some_and(|value| !is_empty_or_none(&value))
        {
            let path = format!("{path}.{name}");
            return Err(ApiError::unsupported(
                &path,
                format!("{path} is not supported"),
            ));
        }
    }
    fields.finish(&format!("{path}."))?;
    Ok(Message { role, content })
}

fn text_parts(path: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        if part.get("type").and_then(Value::as_str) != Some("text") {
            return Err(ApiError::unsupported(
                &path,
                format!("{path}: only parts of type text are supported"),
            ));
        }
        match part.get("text").and_then(Value::as_str) {
            Some(part) => text.push_str(part),
            None => {
                return Err(ApiError::invalid(
                    &path,
                    format!("{path}.text must be a string"),
                ));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
            "logprobs": true, "top_logprobs": 3, "n": 1, "user": "panel 4", "tools": [],
            "response_format": {"type": "text"}, "logit_bias": null, "priority": "alarm", "deadline_ms": 1000,
        }))
        .expect("a valid request");
        assert!(parsed.include_usage);
        let request = parsed.request;
        assert_eq!(request.tokens_max, Some(7));
        assert_eq!(request.sampling.top_k, Some(40));
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
        let Input::Messages(messages) = parsed.request.input else {
            panic!("messages were sent");
        };
        assert_eq!(messages[0].role, "system");
        assert_eq!(messages[0].content, "be brief");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let tool = json!([{"type": "function", "function": {"name": "f"}}]);
        assert_eq!(param_of(hello(json!({"tools": tool}))), "tools");
        assert_eq!(
            param_of(hello(json!({"response_format": {"type": "json_object"}}))),
            "response_format"
        );
        assert_eq!(param_of(hello(json!({"n": 2}))), "n");
        assert_eq!(
            param_of(hello(json!({"logit_bias": {"5": 1}}))),
            "logit_bias"
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
        assert_eq!(param_of(chat_of(&tool)), "messages[0].role");
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
    fn completions_take_one_prompt() {
        let of = |value: Value| completion(value.to_string().as_bytes(), "id", "client");
        let parsed = of(json!({"prompt": ["one"], "logprobs": 5, "max_tokens": 3})).expect("valid");
        assert_eq!(parsed.request.input, Input::Prompt("one".to_owned()));
        assert_eq!(parsed.request.logprobs, Some(5));
        assert_eq!(param_of(of(json!({"prompt": ["one", "two"]}))), "prompt");
        assert_eq!(param_of(of(json!({"prompt": [1, 2]}))), "prompt");
        assert_eq!(param_of(of(json!({"prompt": []}))), "prompt");
        assert_eq!(param_of(of(json!({}))), "prompt");
        assert_eq!(
            param_of(of(json!({"prompt": "x", "logprobs": 6}))),
            "logprobs"
        );
        assert_eq!(param_of(of(json!({"prompt": "x", "echo": true}))), "echo");
    }
}
