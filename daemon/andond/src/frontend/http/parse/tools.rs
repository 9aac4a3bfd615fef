//! Tools that a prompt tells of, and calls of them that were made.
//!
//! Until answers can be held to a form, a model is told of tools only where it is told not to call them
//! (`tool_choice` is `none`): a client that waits for a call must not get something that may be none.

use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::is_empty_or_none;
use crate::request::TOOLS_MAX;

/// Longest name of a tool, as OpenAI has it.
const NAME_BYTES_MAX: usize = 64;

/// Takes the fields about tools; the tools that the prompt tells of.
pub(in super::super) fn take(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    for name in ["functions", "function_call"] {
        fields.refuse_unless(name, is_empty_or_none, "is not supported; see tools")?;
    }
    fields.refuse_unless(
        "parallel_tool_calls",
        Value::is_boolean,
        "must be true or false",
    )?;
    let tools = described(fields)?;
    let why = "only none is supported: calls of tools are not enforced";
    match fields.take("tool_choice") {
        None if tools.is_empty() => Ok(tools),
        None => Err(ApiError::unsupported(
            "tools",
            format!("tools need tool_choice; {why}"),
        )),
        Some(choice) if is_empty_or_none(&choice) => Ok(tools),
        Some(_) => Err(ApiError::unsupported(
            "tool_choice",
            format!("tool_choice: {why}"),
        )),
    }
}

/// Takes the field `tools`.
pub(in super::super) fn described(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let tools = match fields.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(ApiError::invalid("tools", "tools must be an array")),
    };
    if tools.len() > TOOLS_MAX {
        let message = format!("{} tools, at most {TOOLS_MAX} are taken", tools.len());
        return Err(ApiError::invalid("tools", message));
    }
    for (index, tool) in tools.iter().enumerate() {
        check(&format!("tools[{index}]"), tool)?;
    }
    Ok(tools)
}

/// Checks a tool's description; it goes to the template as it is.
fn check(path: &str, tool: &Value) -> Result<(), ApiError> {
    let function = function(path, tool, &["type", "function"])?;
    let path = format!("{path}.function");
    let wrong = |name: &str, what: &str| {
        let path = format!("{path}.{name}");
        let message = format!("{path} must be {what}");
        Err(ApiError::invalid(path, message))
    };
    for (name, value) in function {
        match name.as_str() {
            "name" => {}
            "description" if value.is_string() || value.is_null() => {}
            "description" => return wrong(name, "a string"),
            "parameters" if value.is_object() || value.is_null() => {}
            "parameters" => return wrong(name, "an object"),
            "strict" if value.is_boolean() || value.is_null() => {}
            "strict" => return wrong(name, "true or false"),
            _ => return Err(surplus(&path, name)),
        }
    }
    Ok(())
}

/// The calls of an assistant's message.
pub(super) fn calls(path: &str, calls: Value) -> Result<Value, ApiError> {
    let Value::Array(calls) = calls else {
        return Err(ApiError::invalid(path, format!("{path} must be an array")));
    };
    if calls.len() > TOOLS_MAX {
        let message = format!("{} calls, at most {TOOLS_MAX} are taken", calls.len());
        return Err(ApiError::invalid(path, message));
    }
    for (index, call) in calls.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let function = function(&path, call, &["id", "type", "function"])?;
        if !call.get("id").is_some_and(Value::is_string) {
            let path = format!("{path}.id");
            let message = format!("{path} must be a string");
            return Err(ApiError::invalid(path, message));
        }
        let path = format!("{path}.function");
        if !function.get("arguments").is_some_and(Value::is_string) {
            let path = format!("{path}.arguments");
            let message = format!("{path} must be a string");
            return Err(ApiError::invalid(path, message));
        }
        let known = |name: &str| name == "name" || name == "arguments";
        if let Some(name) = function.keys().find(|name| !known(name)) {
            return Err(surplus(&path, name));
        }
    }
    Ok(Value::Array(calls))
}

/// The function of a tool or a call, which has a name.
fn function<'a>(
    path: &str,
    value: &'a Value,
    known: &[&str],
) -> Result<&'a serde_json::Map<String, Value>, ApiError> {
    let Value::Object(whole) = value else {
        return Err(ApiError::invalid(path, format!("{path} must be an object")));
    };
    if whole.get("type") != Some(&json!("function")) {
        let path = format!("{path}.type");
        let message = format!("{path}: only function is supported");
        return Err(ApiError::unsupported(path, message));
    }
    if let Some(name) = whole.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(surplus(path, name));
    }
    let path = format!("{path}.function");
    let Some(Value::Object(function)) = whole.get("function") else {
        let message = format!("{path} must be an object");
        return Err(ApiError::invalid(path, message));
    };
    let named = |name: &str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    };
    if !function
        .get("name")
        .and_then(Value::as_str)
        .is_some_and(named)
    {
        let path = format!("{path}.name");
        let message =
            format!("{path} must be 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, underscore and dash");
        return Err(ApiError::invalid(path, message));
    }
    Ok(function)
}

fn surplus(path: &str, name: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    let path = format!("{path}.{name}");
    let message = format!("{path} is not supported");
    ApiError::unsupported(path, message)
}
