//! Tools that a prompt tells of, which of them an answer may call, and calls of them that were made.

use andon_engine::calls::{NAME_BYTES_MAX, is_name};
use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::is_empty_or_none;
use crate::request::{Calling, TOOLS_MAX, ToolChoice, check_tool_count, tool_name};

/// Longest id of a call.
const ID_BYTES_MAX: usize = 256;

/// Takes the fields about tools: those that the prompt tells of, and which the answer may call.
pub(in super::super) fn take(fields: &mut Fields) -> Result<(Vec<Value>, ToolChoice), ApiError> {
    for name in ["functions", "function_call"] {
        fields.refuse_unless(name, is_empty_or_none, "is not supported; see tools")?;
    }
    let tools = described(fields)?;
    let choice = choice(fields, &tools)?;
    Ok((tools, choice))
}

/// Takes the fields `tool_choice` and `parallel_tool_calls`.
pub(in super::super) fn choice(
    fields: &mut Fields,
    tools: &[Value],
) -> Result<ToolChoice, ApiError> {
    let mut single = fields.bool("parallel_tool_calls")? == Some(false);
    let (calling, only) = match fields.take("tool_choice") {
        None if tools.is_empty() => (Calling::Never, None),
        None => (Calling::Maybe, None),
        Some(Value::String(mode)) => (mode_of(&mode)?, None),
        Some(Value::Object(choice)) => {
            // Who names a function wants it called, and small models would go on calling it.
            single |= choice.get("type") == Some(&json!("function"));
            let (calling, only) = chosen(Fields::of(choice))?;
            (calling, Some(only))
        }
        Some(_) => return Err(wrong_choice()),
    };
    if calling == Calling::Maybe && only.is_none() && tools.is_empty() {
        return Ok(ToolChoice::default());
    }
    Ok(ToolChoice {
        calling,
        only,
        single,
    })
}

fn wrong_choice() -> ApiError {
    let message =
        "tool_choice must be none, auto, required, a function by its name, or allowed tools";
    ApiError::invalid("tool_choice", message)
}

fn mode_of(mode: &str) -> Result<Calling, ApiError> {
    match mode {
        "none" => Ok(Calling::Never),
        "auto" => Ok(Calling::Maybe),
        "required" => Ok(Calling::Must),
        _ => Err(wrong_choice()),
    }
}

/// The tools that an object chooses, in the form of chat completions or in that of responses.
fn chosen(mut choice: Fields) -> Result<(Calling, Vec<String>), ApiError> {
    const PATH: &str = "tool_choice.";
    if choice.get("type") == Some(&json!("function")) {
        return Ok((Calling::Must, vec![chosen_name(choice, PATH)?]));
    }
    if choice.take("type") != Some(json!("allowed_tools")) {
        return Err(wrong_choice());
    }
    let (mut allowed, path) = within(choice, "allowed_tools", PATH)?;
    let calling = match allowed.take("mode") {
        None => Calling::Maybe,
        Some(Value::String(mode)) => mode_of(&mode)?,
        Some(_) => return Err(wrong_choice()),
    };
    let tools = match allowed.take("tools") {
        Some(Value::Array(tools)) if (1..=TOOLS_MAX).contains(&tools.len()) => tools,
        _ => return Err(wrong_choice()),
    };
    allowed.finish(&path)?;
    let names = tools
        .into_iter()
        .enumerate()
        .map(|(index, tool)| match tool {
            Value::Object(tool) => chosen_name(Fields::of(tool), &format!("{path}tools[{index}].")),
            _ => Err(wrong_choice()),
        });
    Ok((calling, names.collect::<Result<_, _>>()?))
}

/// The name of a function that is chosen, with nothing beside it.
fn chosen_name(mut tool: Fields, path: &str) -> Result<String, ApiError> {
    if tool.take("type") != Some(json!("function")) {
        return Err(wrong_choice());
    }
    let (mut tool, path) = within(tool, "function", path)?;
    let name = tool.take("name");
    tool.finish(&path)?;
    match name {
        Some(Value::String(name)) => Ok(name),
        _ => Err(wrong_choice()),
    }
}

/// What an object has in one of its fields and in nothing beside it, or else what it has itself; and where that is.
fn within(mut fields: Fields, name: &str, path: &str) -> Result<(Fields, String), ApiError> {
    match fields.take(name) {
        None => Ok((fields, path.to_owned())),
        Some(Value::Object(inner)) => {
            fields.finish(path)?;
            Ok((Fields::of(inner), format!("{path}{name}.")))
        }
        Some(_) => Err(wrong_choice()),
    }
}

/// Takes the field `tools`.
pub(in super::super) fn described(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let tools = match fields.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(ApiError::invalid("tools", "tools must be an array")),
    };
    check_tool_count(tools.len())?;
    for (index, tool) in tools.iter().enumerate() {
        check(&format!("tools[{index}]"), tool)?;
        let same = |other: &Value| tool_name(other) == tool_name(tool);
        if tools[..index].iter().any(same) {
            let path = format!("tools[{index}].function.name");
            let message = format!("{path}: another tool has this name");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(tools)
}

/// Takes the field `tools` of a response, whose functions have no object of their own.
pub(in super::super) fn described_flat(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let flat = match fields.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(flat)) => flat,
        Some(_) => return Err(ApiError::invalid("tools", "tools must be an array")),
    };
    let nested = flat.into_iter().map(|tool| match tool {
        Value::Object(mut function) => {
            // The rest stays in order: the template writes it out.
            let kind = function.shift_remove("type");
            json!({"type": kind, "function": function})
        }
        other => other,
    });
    let map = Map::from_iter([("tools".to_owned(), nested.collect())]);
    described(&mut Fields::of(map)).map_err(|error| ApiError {
        param: error.param.map(|param| param.replace(".function", "")),
        message: error.message.replace(".function", ""),
        ..error
    })
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
pub(in super::super) fn calls(path: &str, calls: Value) -> Result<Value, ApiError> {
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
        if !call.get("id").is_some_and(is_id) {
            return Err(wrong_id(format!("{path}.id")));
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

/// Whether a value can be the id of a call.
pub(in super::super) fn is_id(value: &Value) -> bool {
    let id = value.as_str().unwrap_or_default();
    (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

pub(in super::super) fn wrong_id(path: String) -> ApiError {
    let message = format!("{path} must be a text of 1 to {ID_BYTES_MAX} bytes");
    ApiError::invalid(path, message)
}

/// The function of a tool or a call, which has a name.
fn function<'a>(
    path: &str,
    value: &'a Value,
    known: &[&str],
) -> Result<&'a Map<String, Value>, ApiError> {
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
    if !function
        .get("name")
        .and_then(Value::as_str)
        .is_some_and(is_name)
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
