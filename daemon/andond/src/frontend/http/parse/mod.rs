//! From a JSON body to [`Request`]s: what the answering endpoints have in common, and each one's own in a file.

mod chat;
mod completion;
mod format;
pub(super) mod message;
#[cfg(test)]
mod tests;
pub(super) mod tools;

pub(super) use chat::chat;
pub(super) use completion::completion;
pub(super) use format::format;

use std::time::{Duration, Instant};

use andon_policy::route::Policy;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::Fields;
use crate::request::{
    Egress, LOGIT_BIAS_COUNT_MAX, Priority, Request, Sampling, TEMPLATE_VARIABLES_MAX,
};

/// Longest deadline that can be asked for: a day.
const DEADLINE_MS_MAX: u32 = 86_400_000;
/// Largest bias of a token, as OpenAI defines it.
const LOGIT_BIAS_MAX: f64 = 100.0;
/// What every template is given, which a client must not replace.
const TEMPLATE_OWN: [&str; 5] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
];

/// A parsed body.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The requests to submit, one for each prompt; at least one.
    pub(super) requests: Vec<Request>,
    /// `stream_options.include_usage`
    pub(super) include_usage: bool,
    /// Whether answers begin with their prompt.
    pub(super) echo: bool,
}

/// Answers of the older endpoints are not stored.
fn refuse_store(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse_unless(
        "store",
        |value| *value == false,
        "answers are not stored; see /v1/responses",
    )
}

/// `chat_template_kwargs`, as llama-server has it: variables for the model's chat template.
pub(super) fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let name = "chat_template_kwargs";
    let variables = match fields.take(name) {
        None => return Ok(Map::new()),
        Some(Value::Object(variables)) => variables,
        Some(_) => {
            return Err(ApiError::invalid(
                name,
                "chat_template_kwargs must be an object",
            ));
        }
    };
    if variables.len() > TEMPLATE_VARIABLES_MAX {
        let message = format!("at most {TEMPLATE_VARIABLES_MAX} variables are taken");
        return Err(ApiError::invalid(name, message));
    }
    if variables.get("documents").is_some_and(|documents| {
        !documents
            .as_array()
            .is_some_and(|all| all.iter().all(Value::is_object))
    }) {
        let message = "chat_template_kwargs.documents must be an array of objects";
        return Err(ApiError::invalid(format!("{name}.documents"), message));
    }
    if let Some(own) = TEMPLATE_OWN
        .iter()
        .find(|own| variables.contains_key(**own))
    {
        let message = format!("chat_template_kwargs must not set {own}");
        return Err(ApiError::invalid(format!("{name}.{own}"), message));
    }
    Ok(variables)
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let name = "logit_bias";
    let values = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Object(values)) => values,
        Some(_) => {
            return Err(ApiError::invalid(
                name,
                "logit_bias must be an object of token ids and numbers",
            ));
        }
    };
    if values.len() > LOGIT_BIAS_COUNT_MAX {
        let message = format!("at most {LOGIT_BIAS_COUNT_MAX} tokens may have a bias");
        return Err(ApiError::invalid(name, message));
    }
    values
        .iter()
        .map(|(token, value)| {
            let id = token
                .parse::<u32>()
                .map_err(|_| ApiError::invalid(name, "the keys of logit_bias must be token ids"))?;
            let value = value
                .as_f64()
                .filter(|value| (-LOGIT_BIAS_MAX..=LOGIT_BIAS_MAX).contains(value))
                .ok_or_else(|| {
                    ApiError::invalid(
                        format!("{name}.{id}"),
                        format!("the bias of token {id} must be a number from -100 to 100"),
                    )
                })?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the value is far inside the range of f32"
            )]
            Ok((id, value as f32))
        })
        .collect()
}

/// How urgent a request is, and until when its answer is worth something.
pub(super) fn urgency(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
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
    Ok(())
}

/// How far a request may travel, who is to answer, and whether it may wait for that.
pub(super) fn travel(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.egress = match fields.string("egress")?.as_deref() {
        None => None,
        Some("local") => Some(Egress::Local),
        Some("any") => Some(Egress::Any),
        Some(_) => return Err(ApiError::invalid("egress", "egress must be local or any")),
    };
    request.policy = match fields.string("policy")?.as_deref() {
        None => None,
        Some(word) => {
            let known = Policy::ALL
                .into_iter()
                .find(|policy| policy.as_str() == word);
            let wrong = || ApiError::invalid("policy", "policy must be local, auto or cloud");
            Some(known.ok_or_else(wrong)?)
        }
    };
    request.waits = fields.bool("wait")?;
    Ok(())
}

/// The fields that mean the same in every endpoint; answers `include_usage`.
pub(super) fn common(fields: &mut Fields, request: &mut Request) -> Result<bool, ApiError> {
    request.model = fields.string("model")?;
    request.sampling = Sampling {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.count("top_k")?,
        min_p: fields.number("min_p")?,
        typical_p: fields.number("typical_p")?,
        repeat_penalty: fields.number("repeat_penalty")?,
        repeat_last_n: fields.count("repeat_last_n")?,
        presence_penalty: fields.number("presence_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        seed: fields.seed("seed")?,
    };
    request.logit_bias = logit_bias(fields)?;
    request.choices = fields.count("n")?.unwrap_or(1);
    request.ignore_end = fields.bool("ignore_eos")?.unwrap_or(false);
    request.stop = fields.strings("stop")?;
    request.stream = fields.bool("stream")?.unwrap_or(false);
    urgency(fields, request)?;
    travel(fields, request)?;
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

/// Labels of the client's own that change no answer are taken; what would change it is refused.
pub(super) fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "metadata", "safety_identifier", "prompt_cache_key"] {
        fields.label(name);
    }
    fields.refuse_unless(
        "cache_prompt",
        |value| *value == true,
        "only true is supported; see [engine] prefix-cache in the configuration",
    )?;
    fields.refuse_unless(
        "service_tier",
        |value| *value == "auto" || *value == "default",
        "only auto and default are supported; see priority",
    )
}

pub(super) fn is_empty_or_none(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(value) => value == "none",
        _ => false,
    }
}
