//! A body of `POST /v1/responses`.

use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::parse::{
    common, format, is_empty_or_none, refuse_unsupported, template_variables, tools,
};
use crate::request::{AnswerFormat, Input, Message, Origin, Request};

/// Most entries of `metadata`, and longest key and value, as OpenAI has them.
const METADATA_MAX: usize = 16;
const METADATA_KEY_BYTES_MAX: usize = 64;
const METADATA_VALUE_BYTES_MAX: usize = 512;

/// A parsed body.
#[derive(Debug)]
pub(super) struct Asked {
    /// The request, as yet without input.
    pub(super) request: Request,
    /// What the model is told about its part; of this response alone.
    pub(super) instructions: Option<String>,
    /// What is said after the response before.
    pub(super) input: Vec<Message>,
    /// The response that this one goes on from.
    pub(super) previous: Option<String>,
    /// Whether the response is kept to be read again and gone on from.
    pub(super) store: bool,
    /// Fields that the response repeats.
    pub(super) said: Map<String, Value>,
}

/// Parses a body of `POST /v1/responses`.
pub(super) fn body(body: &[u8], id: &str, client: &str) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let store = fields.bool("store")?.unwrap_or(true);
    let metadata = metadata(&mut fields)?;
    let user = fields.string("user")?;
    refuse_unsupported(&mut fields)?;
    refuse_more(&mut fields)?;
    let repeated = ["tools", "tool_choice", "parallel_tool_calls"].map(|name| {
        let value = fields.get(name).filter(|value| !value.is_null());
        Some((name.to_owned(), value?.clone()))
    });
    let tools = tools::described_flat(&mut fields)?;
    let tool_choice = tools::choice(&mut fields, &tools)?;
    let instructions = fields.string("instructions")?;
    let previous = fields.string("previous_response_id")?;
    let input = input(&mut fields)?;
    let tokens_max = fields.count("max_output_tokens")?;
    if tokens_max == Some(0) {
        return Err(ApiError::invalid(
            "max_output_tokens",
            "max_output_tokens must be at least 1",
        ));
    }
    let mut request = Request::new(id, client, Origin::Http, Input::Messages(Vec::new()));
    request.tokens_max = tokens_max.map(|tokens| tokens as usize);
    request.template_variables = template_variables(&mut fields)?;
    request.format = text_format(&mut fields)?;
    request.tools = tools;
    request.tool_choice = tool_choice;
    common(&mut fields, &mut request)?;
    fields.finish("")?;
    if request.choices != 1 {
        return Err(ApiError::unsupported("n", "n: a response is one answer"));
    }
    let mut said: Map<String, Value> = repeated.into_iter().flatten().collect();
    said.insert("instructions".to_owned(), json!(instructions));
    said.insert("max_output_tokens".to_owned(), json!(tokens_max));
    said.insert("metadata".to_owned(), metadata);
    said.insert("previous_response_id".to_owned(), json!(previous));
    said.insert("store".to_owned(), json!(store));
    said.insert("user".to_owned(), json!(user));
    Ok(Asked {
        request,
        instructions,
        input,
        previous,
        store,
        said,
    })
}

/// Refuses what would change the answer and is not there; takes what says what holds anyway.
fn refuse_more(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse_unless("include", is_empty_or_none, "there is nothing to include")?;
    fields.refuse_unless(
        "background",
        |value| *value == false,
        "only false is supported",
    )?;
    fields.refuse_unless(
        "truncation",
        |value| *value == "disabled",
        "nothing is ever cut; only disabled is supported",
    )?;
    fields.refuse_unless("top_logprobs", |value| *value == 0, "only 0 is supported")?;
    fields.refuse_unless(
        "reasoning",
        |value| {
            let entries = value.as_object();
            entries.is_some_and(|entries| entries.values().all(Value::is_null))
        },
        "is not supported; say what the model's template knows in chat_template_kwargs",
    )?;
    Ok(())
}

/// `text`: the shape of the answer.
fn text_format(fields: &mut Fields) -> Result<Option<AnswerFormat>, ApiError> {
    let Some(text) = fields.take("text") else {
        return Ok(None);
    };
    let Value::Object(text) = text else {
        return Err(ApiError::invalid("text", "text must be an object"));
    };
    let mut text = Fields::of(text);
    let format = format(text.take("format"), "text.format", false)?;
    text.finish("text.")?;
    Ok(format)
}

fn metadata(fields: &mut Fields) -> Result<Value, ApiError> {
    let metadata = match fields.take("metadata") {
        None => return Ok(json!({})),
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return Err(ApiError::invalid("metadata", "metadata must be an object")),
    };
    let short = |(key, value): (&String, &Value)| {
        key.len() <= METADATA_KEY_BYTES_MAX
            && value
                .as_str()
                .is_some_and(|value| value.len() <= METADATA_VALUE_BYTES_MAX)
    };
    if metadata.len() > METADATA_MAX || !metadata.iter().all(short) {
        let message = format!(
            "metadata is at most {METADATA_MAX} strings of up to {METADATA_VALUE_BYTES_MAX} bytes, their \
             names up to {METADATA_KEY_BYTES_MAX}"
        );
        return Err(ApiError::invalid("metadata", message));
    }
    Ok(Value::Object(metadata))
}

fn input(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    match fields.take("input") {
        None => Err(ApiError::invalid("input", "input is missing")),
        Some(Value::String(content)) => Ok(vec![Message::new("user", content)]),
        Some(Value::Array(items)) if items.is_empty() => {
            Err(ApiError::invalid("input", "input is empty"))
        }
        Some(Value::Array(items)) => {
            let mut messages = Vec::with_capacity(items.len());
            for (index, value) in items.into_iter().enumerate() {
                item(&format!("input[{index}]"), value, &mut messages)?;
            }
            Ok(messages)
        }
        Some(_) => Err(ApiError::invalid(
            "input",
            "input must be a string or an array of messages",
        )),
    }
}

/// Takes an item; calls that were made together are one message.
fn item(path: &str, value: Value, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let Value::Object(map) = value else {
        return Err(ApiError::invalid(path, format!("{path} must be an object")));
    };
    let mut fields = Fields::of(map);
    let kind = fields.take("type").unwrap_or_else(|| json!("message"));
    match kind.as_str() {
        Some("message") => {}
        Some("function_call") => return call(path, fields, messages),
        Some("function_call_output") => return result(path, fields, messages),
        _ => {
            let path = format!("{path}.type");
            let message = format!("{path} must be message, function_call or function_call_output");
            return Err(ApiError::unsupported(path, message));
        }
    }
    let role = match fields.take("role") {
        Some(Value::String(role)) => match role.as_str() {
            // The newer name of the same thing; models' templates know the older one.
            "developer" => "system".to_owned(),
            "system" | "user" | "assistant" => role,
            _ => String::new(),
        },
        _ => String::new(),
    };
    if role.is_empty() {
        let path = format!("{path}.role");
        let message = format!("{path} must be system, developer, user or assistant");
        return Err(ApiError::invalid(path, message));
    }
    let content = match fields.take("content") {
        Some(Value::String(content)) => content,
        Some(Value::Array(parts)) => parts_text(&format!("{path}.content"), &parts)?,
        _ => {
            let path = format!("{path}.content");
            let message = format!("{path} must be a string or an array of text parts");
            return Err(ApiError::invalid(path, message));
        }
    };
    // A response's own items carry these; they say nothing that the model reads.
    for name in ["id", "status"] {
        fields.label(name);
    }
    fields.finish(&format!("{path}."))?;
    messages.push(Message::new(role, content));
    Ok(())
}

/// An item that is a call of a tool.
fn call(path: &str, mut fields: Fields, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let call = json!([{
        "id": fields.take("call_id"),
        "type": "function",
        "function": {"name": fields.take("name"), "arguments": fields.take("arguments")},
    }]);
    let named = |name: &str| {
        name.replace("[0].function", "")
            .replace("[0].id", ".call_id")
    };
    let call = tools::calls(path, call).map_err(|error| ApiError {
        param: error.param.as_deref().map(named),
        message: named(&error.message),
        ..error
    })?;
    for name in ["id", "status"] {
        fields.label(name);
    }
    fields.finish(&format!("{path}."))?;
    if messages.last().is_none_or(|last| last.role != "assistant") {
        messages.push(Message::new("assistant", String::new()));
    }
    if let Some(last) = messages.last_mut() {
        let calls = last.extra.entry("tool_calls").or_insert_with(|| json!([]));
        if let (Value::Array(calls), Value::Array(call)) = (calls, call) {
            calls.extend(call);
        }
    }
    Ok(())
}

/// An item that is the result of a call.
fn result(path: &str, mut fields: Fields, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let id = fields.take("call_id").filter(tools::is_id);
    let id = id.ok_or_else(|| tools::wrong_id(format!("{path}.call_id")))?;
    let output = match fields.take("output") {
        Some(Value::String(output)) => output,
        Some(Value::Array(parts)) => parts_text(&format!("{path}.output"), &parts)?,
        _ => {
            let path = format!("{path}.output");
            let message = format!("{path} must be a string or an array of text parts");
            return Err(ApiError::invalid(path, message));
        }
    };
    for name in ["id", "status"] {
        fields.label(name);
    }
    fields.finish(&format!("{path}."))?;
    let mut message = Message::new("tool", output);
    message.extra.insert("tool_call_id".to_owned(), id);
    messages.push(message);
    Ok(())
}

fn parts_text(path: &str, parts: &[Value]) -> Result<String, ApiError> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        text.push_str(part_text(&format!("{path}[{index}]"), part)?);
    }
    Ok(text)
}

fn part_text<'a>(path: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    let kind = part.get("type").and_then(Value::as_str);
    if !matches!(kind, Some("input_text" | "output_text")) {
        let message =
            format!("{path}: only parts of type input_text and output_text are supported");
        return Err(ApiError::unsupported(path, message));
    }
    part.get("text")
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::invalid(path, format!("{path}.text must be a string")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Calling;

    fn of(extra: Value) -> Result<Asked, ApiError> {
        let mut whole = json!({"model": "m", "input": "hello"});
        if let (Value::Object(whole), Value::Object(extra)) = (&mut whole, extra) {
            whole.extend(extra);
        }
        let asked = body(whole.to_string().as_bytes(), "id", "client")?;
        asked.request.tool_choice.check(&asked.request.tools)?;
        Ok(asked)
    }

    #[test]
    fn what_the_official_client_sends_is_taken() {
        let asked = of(json!({
            "instructions": "Be brief.", "max_output_tokens": 20, "temperature": 0.5, "top_p": 0.9,
            "stream": true, "store": false, "metadata": {"line": "4"}, "tools": [], "tool_choice": "auto",
            "text": {"format": {"type": "text"}}, "truncation": "disabled", "previous_response_id": "resp_1",
            "reasoning": {"effort": null}, "parallel_tool_calls": true, "include": [], "background": false,
            "input": [
                {"role": "developer", "content": "a"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                 "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]},
            ],
        }))
        .expect("a valid body");
        let said: Vec<(&str, &str)> = asked
            .input
            .iter()
            .map(|message| (message.role.as_str(), message.content.as_str()))
            .collect();
        assert_eq!(said, [("system", "a"), ("user", "b"), ("assistant", "c")]);
        assert_eq!(asked.request.tokens_max, Some(20));
        assert_eq!(asked.previous.as_deref(), Some("resp_1"));
        assert!(asked.request.stream && !asked.store);
        assert!(of(json!({})).expect("valid").store, "as OpenAI has it");
    }

    #[test]
    fn calls_that_were_made_together_are_one_message() {
        let call = |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{}"});
        let result =
            |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "x"});
        let asked = of(json!({
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
            "input": [{"role": "user", "content": "a"}, call("1"), call("2"), result("1"), result("2")],
        }))
        .expect("a valid body");
        let roles: Vec<_> = asked
            .input
            .iter()
            .map(|message| message.role.as_str())
            .collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool"]);
        let calls = &asked.input[1].extra["tool_calls"];
        assert_eq!(calls[1]["id"], "2");
        assert_eq!(calls[1]["function"]["name"], "f");
        assert_eq!(asked.request.tools[0]["function"]["strict"], true);
        assert_eq!(asked.request.tool_choice.calling, Calling::Must);
        assert!(asked.request.tool_choice.single);
        assert_eq!(asked.said["parallel_tool_calls"], false);
        assert_eq!(asked.said["tools"][0]["name"], "f");
    }

    #[test]
    fn what_is_wrong_or_not_there_is_named() {
        for (name, value, param) in [
            ("input", Value::Null, "input"),
            ("input", json!([]), "input"),
            ("input", json!(5), "input"),
            ("input", json!([5]), "input[0]"),
            (
                "input",
                json!([{"role": "tool", "content": "x"}]),
                "input[0].role",
            ),
            ("input", json!([{"role": "user"}]), "input[0].content"),
            (
                "input",
                json!([{"type": "function_call_output", "output": "x"}]),
                "input[0].call_id",
            ),
            (
                "input",
                json!([{"type": "function_call_output", "call_id": "1"}]),
                "input[0].output",
            ),
            (
                "input",
                json!([{"type": "function_call", "call_id": "1", "name": "a b", "arguments": "{}"}]),
                "input[0].name",
            ),
            (
                "input",
                json!([{"type": "function_call", "name": "f", "arguments": "{}"}]),
                "input[0].call_id",
            ),
            ("input", json!([{"type": "reasoning"}]), "input[0].type"),
            (
                "input",
                json!([{"role": "user", "content": [{"type": "input_image"}]}]),
                "input[0].content[0]",
            ),
            ("max_output_tokens", json!(0), "max_output_tokens"),
            ("tools", json!([{"type": "web_search"}]), "tools[0].type"),
            (
                "tools",
                json!([{"type": "function", "name": "f", "parameters": 1}]),
                "tools[0].parameters",
            ),
            ("tool_choice", json!("required"), "tool_choice"),
            ("text", json!({"format": {"type": "xml"}}), "text.format"),
            ("text", json!({"verbosity": "low"}), "text.verbosity"),
            ("truncation", json!("auto"), "truncation"),
            ("reasoning", json!({"effort": "high"}), "reasoning"),
            (
                "include",
                json!(["message.output_text.logprobs"]),
                "include",
            ),
            ("background", json!(true), "background"),
            ("conversation", json!("conv_1"), "conversation"),
            ("metadata", json!({"a": 1}), "metadata"),
            ("metadata", json!({"a": "x".repeat(513)}), "metadata"),
            ("store", json!("yes"), "store"),
            ("n", json!(2), "n"),
            ("top_logprobs", json!(3), "top_logprobs"),
        ] {
            let error = of(json!({ name: value })).expect_err("must be refused");
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
