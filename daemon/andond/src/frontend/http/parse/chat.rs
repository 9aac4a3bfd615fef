//! A body of `/v1/chat/completions`.

use serde_json::Value;

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::{
    Parsed, common, format, message, refuse_store, refuse_unsupported, template_variables, tools,
};
use crate::request::{Input, LOGPROBS_MAX, Origin, Request};

/// Parses a body of `/v1/chat/completions`.
pub(in super::super) fn chat(body: &[u8], id: &str, client: &str) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    refuse_store(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    let (tools, tool_choice) = tools::take(&mut fields)?;
    let format = format(fields.take("response_format"), "response_format", true)?;
    fields.refuse_unless(
        "modalities",
        |value| *value == serde_json::json!(["text"]),
        "only text is supported",
    )?;
    // What a template does with it is the template's to know.
    fields.refuse_unless(
        "reasoning_effort",
        |_| false,
        "is not supported; say what the model's template knows in chat_template_kwargs",
    )?;
    let messages = message::take(&mut fields)?;
    let logprobs = logprobs(&mut fields)?;
    let tokens_max = tokens_max(&mut fields)?;
    let prediction = prediction(&mut fields)?;

    let mut request = Request::new(id, client, Origin::Http, Input::Messages(messages));
    request.tokens_max = tokens_max.map(|tokens| tokens as usize);
    request.logprobs = logprobs;
    request.tools = tools;
    request.tool_choice = tool_choice;
    request.format = format;
    request.prediction = prediction;
    request.template_variables = template_variables(&mut fields)?;
    let include_usage = common(&mut fields, &mut request)?;
    fields.finish("")?;
    Ok(Parsed {
        requests: vec![request],
        include_usage,
        echo: false,
    })
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    match (wanted, fields.count("top_logprobs")?) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs: true",
        )),
        (true, top) => u8::try_from(top.unwrap_or(0))
            .ok()
            .filter(|top| *top <= LOGPROBS_MAX)
            .map(Some)
            .ok_or_else(|| {
                ApiError::invalid(
                    "top_logprobs",
                    format!("top_logprobs is at most {LOGPROBS_MAX}"),
                )
            }),
    }
}

/// What the answer is taken to be: a text, or parts of one.
fn prediction(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let name = "prediction";
    let value = match fields.take(name) {
        None => return Ok(None),
        Some(Value::Object(value)) => value,
        Some(_) => return Err(ApiError::invalid(name, "prediction must be an object")),
    };
    let mut value = Fields::of(value);
    if value.string("type")?.as_deref() != Some("content") {
        let message = "the type of a prediction must be content";
        return Err(ApiError::invalid("prediction.type", message));
    }
    let text_of = |part: &Value| {
        let kind = part.get("type")?.as_str()?;
        let text = part.get("text")?.as_str()?;
        (kind == "text").then(|| text.to_owned())
    };
    let text = match value.take("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => parts.iter().map(text_of).collect(),
        _ => None,
    };
    let text = text.ok_or_else(|| {
        let message = "the content of a prediction must be a text, or parts of the type text";
        ApiError::invalid("prediction.content", message)
    })?;
    value.finish("prediction.")?;
    Ok(Some(text))
}

fn tokens_max(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
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
    Ok(tokens_max)
}
