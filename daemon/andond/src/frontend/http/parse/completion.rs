//! A body of `/v1/completions`.

use serde_json::Value;

use super::super::error::ApiError;
use super::super::fields::{Fields, token_ids};
use super::{Parsed, common, format, refuse_store, refuse_unsupported};
use crate::request::{Gap, Input, Origin, Request};

/// Most alternatives a token in the older completions endpoint.
const LOGPROBS_MAX: u32 = 5;
/// Most prompts of one body.
pub(super) const PROMPTS_MAX: usize = 32;

/// Parses a body of `/v1/completions`.
pub(in super::super) fn completion(
    body: &[u8],
    id: &str,
    client: &str,
) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    refuse_store(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    let suffix = fields.string("suffix")?;
    let best_of = fields.count("best_of")?;
    let mut prompts = prompts(&mut fields)?;
    // No suffix and an empty one are the same: the prompt is then continued as it stands.
    if let Some(suffix) = suffix.filter(|suffix| !suffix.is_empty()) {
        prompts = vec![around(prompts, suffix)?];
    }
    let logprobs = fields.count("logprobs")?;
    if logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
        return Err(ApiError::invalid(
            "logprobs",
            format!("logprobs is at most {LOGPROBS_MAX}"),
        ));
    }
    let echo = fields.bool("echo")?.unwrap_or(false);
    if echo && logprobs.is_some() {
        return Err(ApiError::unsupported(
            "echo",
            "echo: log probabilities of the prompt are not supported",
        ));
    }
    let tokens_max = fields.count("max_tokens")?;
    let mut common_request = Request::new(id, client, Origin::Http, Input::Tokens(Vec::new()));
    common_request.tokens_max = tokens_max.map(|tokens| tokens as usize);
    common_request.logprobs = logprobs.and_then(|count| u8::try_from(count).ok());
    common_request.format = format(fields.take("response_format"), "response_format", true)?;
    let include_usage = common(&mut fields, &mut common_request)?;
    fields.finish("")?;
    if best_of.is_some_and(|best_of| best_of != common_request.choices) {
        return Err(ApiError::unsupported(
            "best_of",
            "best_of: answers are not compared; it must be absent or equal to n",
        ));
    }
    let several = prompts.len() > 1;
    let requests = prompts
        .into_iter()
        .enumerate()
        .map(|(index, input)| Request {
            id: if several {
                format!("{id}-{index}")
            } else {
                id.to_owned()
            },
            input,
            ..common_request.clone()
        })
        .collect();
    Ok(Parsed {
        requests,
        include_usage,
        echo,
    })
}

/// A gap behind a prompt and before a suffix.
fn around(prompts: Vec<Input>, suffix: String) -> Result<Input, ApiError> {
    // One, so that a long suffix is not there as often as there are prompts.
    match <[Input; 1]>::try_from(prompts) {
        Ok([Input::Prompt(before)]) => Ok(Input::Gap(Gap {
            before,
            after: suffix,
            files: Vec::new(),
            names: ["prompt", "suffix"],
        })),
        _ => Err(ApiError::invalid(
            "suffix",
            "suffix needs a prompt that is one text",
        )),
    }
}

/// One text, one list of tokens, or several of either.
fn prompts(fields: &mut Fields) -> Result<Vec<Input>, ApiError> {
    let wrong = || {
        ApiError::invalid(
            "prompt",
            "prompt must be a string, an array of token ids, or an array of either",
        )
    };
    let values = match fields.take("prompt") {
        None => return Err(ApiError::invalid("prompt", "prompt is missing")),
        Some(Value::String(prompt)) => return Ok(vec![Input::Prompt(prompt)]),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(wrong()),
    };
    if values.is_empty() {
        return Err(ApiError::invalid("prompt", "prompt is empty"));
    }
    if values.first().is_some_and(Value::is_number) {
        return Ok(vec![Input::Tokens(token_ids("prompt", &values)?)]);
    }
    if values.len() > PROMPTS_MAX {
        let message = format!("{} prompts, at most {PROMPTS_MAX} are taken", values.len());
        return Err(ApiError::invalid("prompt", message));
    }
    values
        .into_iter()
        .map(|value| match value {
            Value::String(prompt) => Ok(Input::Prompt(prompt)),
            Value::Array(tokens) => Ok(Input::Tokens(token_ids("prompt", &tokens)?)),
            _ => Err(wrong()),
        })
        .collect()
}
