//! The messages of a conversation.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::{is_empty_or_none, tools};
use crate::request::Message;

/// Takes the field `messages`.
pub(in super::super) fn take(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    match fields.take("messages") {
        None => Err(ApiError::invalid("messages", "messages is missing")),
        Some(Value::Array(messages)) => {
            let messages = messages.into_iter().enumerate();
            let messages: Vec<Message> = messages
                .map(|(index, value)| message(index, value))
                .collect::<Result<_, _>>()?;
            check_results("messages", &messages)?;
            Ok(messages)
        }
        Some(_) => Err(ApiError::invalid("messages", "messages must be an array")),
    }
}

/// Every result is one of a call that was made before it.
pub(in super::super) fn check_results(field: &str, messages: &[Message]) -> Result<(), ApiError> {
    let mut made: HashSet<&str> = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        let calls = message.extra.get("tool_calls").and_then(Value::as_array);
        let ids = calls
            .into_iter()
            .flatten()
            .filter_map(|call| call.get("id"));
        made.extend(ids.filter_map(Value::as_str));
        let answered = message.extra.get("tool_call_id").and_then(Value::as_str);
        if answered.is_some_and(|id| !made.contains(id)) {
            let path = format!("{field}[{index}].tool_call_id");
            let message = format!("{path} is not the id of a call made in a message before");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(())
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
        "system" | "user" | "assistant" | "tool" => role,
        _ => {
            let path = format!("{path}.role");
            let message = format!("{path} must be system, developer, user, assistant or tool");
            return Err(ApiError::invalid(&path, message));
        }
    };
    let extra = extra(&path, &role, &mut fields)?;
    let path_content = format!("{path}.content");
    let content = match fields.take("content") {
        Some(Value::String(content)) => content,
        Some(Value::Array(parts)) => text_parts(&path_content, parts)?,
        Some(_) => {
            let message = format!("{path_content} must be a string or an array of text parts");
            return Err(ApiError::invalid(path_content, message));
        }
        // Who calls tools need not say more.
        None if extra.contains_key("tool_calls") => String::new(),
        None => {
            let message = format!("{path_content} is missing");
            return Err(ApiError::invalid(path_content, message));
        }
    };
    fields.finish(&format!("{path}."))?;
    Ok(Message {
        role,
        content,
        extra,
    })
}

/// What a template looks at beside role and content: the calls of tools, and which of them this answers.
fn extra(path: &str, role: &str, fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut extra = Map::new();
    if let Some(annotations) = fields.take("annotations")
        && !is_empty_or_none(&annotations)
    {
        let path = format!("{path}.annotations");
        let message = format!("{path} is not supported");
        return Err(ApiError::unsupported(path, message));
    }
    if let Some(calls) = fields.take("tool_calls")
        && !is_empty_or_none(&calls)
    {
        let path = format!("{path}.tool_calls");
        if role != "assistant" {
            let message = format!("{path}: only an assistant calls tools");
            return Err(ApiError::invalid(path, message));
        }
        extra.insert("tool_calls".to_owned(), tools::calls(&path, calls)?);
    }
    if role != "tool" {
        return Ok(extra);
    }
    for (name, needed) in [("tool_call_id", true), ("name", false)] {
        match fields.take(name) {
            Some(value) if needed && !tools::is_id(&value) => {
                return Err(tools::wrong_id(format!("{path}.{name}")));
            }
            Some(value @ Value::String(_)) => {
                extra.insert(name.to_owned(), value);
            }
            None if !needed => {}
            _ => {
                let path = format!("{path}.{name}");
                let message = format!("{path} must be a string");
                return Err(ApiError::invalid(path, message));
            }
        }
    }
    Ok(extra)
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
