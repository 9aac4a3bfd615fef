//! `/infill`, as llama-server has it: code between what stands before and behind a gap.
//!
//! What is there of the gap's surroundings never becomes a control token, and nothing of it is cut.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::answer::{Ending, broken_off, event_stream};
use super::error::ApiError;
use super::fields::Fields;
use super::parse::{common, refuse_unsupported};
use super::serve::Client;
use super::shape::{timings, whence};
use super::{HttpRequest, Service, json_response};
use crate::request::{GAP_FILES_MAX, Gap, Input, Origin, Request};
use crate::worker::{Done, JobEvent, JobStream};

/// What a file without a name is called.
const FILE_NAME: &str = "tmp";

/// `POST /infill`
pub(super) async fn infill(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    let id = service.next_id("infill-");
    let request = {
        // Held until the body's text is inside the request, whose bounds are checked.
        let malformed = |error: &ApiError| service.malformed(error);
        let (body, _place) = service.read(request).await.inspect_err(malformed)?;
        parse(&body, &id, &client.name).inspect_err(malformed)?
    };
    service.check_model(request.model.as_deref())?;
    let streams = request.stream;
    let model = service.context.workers.name_of(&request);
    let job = service.context.workers.submit(request, &client.caller)?;
    if streams {
        streamed(job, model).await
    } else {
        whole(job, &model).await
    }
}

/// What a body asks for.
pub(super) fn request_of(body: &[u8]) -> Result<Request, ApiError> {
    parse(body, "id", "client")
}

fn parse(body: &[u8], id: &str, client: &str) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    refuse_unsupported(&mut fields)?;
    // They say where the work is done and how much is said of it, not what the answer is.
    for name in ["id_slot", "response_fields"] {
        fields.label(name);
    }
    let mut text = |name| {
        let text = fields.string(name)?;
        text.ok_or_else(|| ApiError::invalid(name, format!("{name} is missing")))
    };
    let (mut before, after) = (text("input_prefix")?, text("input_suffix")?);
    before.push_str(&fields.string("prompt")?.unwrap_or_default());
    let files = files(&mut fields)?;
    let input = Input::Gap(Gap {
        before,
        after,
        files,
        names: ["input_prefix", "input_suffix"],
    });
    let mut request = Request::new(id, client, Origin::Http, input);
    request.tokens_max = tokens_max(&mut fields)?;
    if common(&mut fields, &mut request)? {
        let message = "stream_options: the last event says what was spent anyway";
        return Err(ApiError::unsupported("stream_options", message));
    }
    fields.finish("")?;
    if request.choices != 1 {
        return Err(ApiError::unsupported("n", "n: a gap is filled once"));
    }
    Ok(request)
}

/// `n_predict`; -1 is the same as absent.
fn tokens_max(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let name = "n_predict";
    match fields.take(name) {
        None => Ok(None),
        Some(value) if value == -1 => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|tokens| u32::try_from(tokens).ok())
            .filter(|&tokens| tokens > 0)
            .map(|tokens| Some(tokens as usize))
            .ok_or_else(|| ApiError::invalid(name, "n_predict must be at least 1, or -1")),
    }
}

/// Other files, by name and text.
fn files(fields: &mut Fields) -> Result<Vec<(String, String)>, ApiError> {
    let name = "input_extra";
    let files = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(files)) => files,
        Some(_) => {
            let message = "input_extra must be an array of objects with filename and text";
            return Err(ApiError::invalid(name, message));
        }
    };
    if files.len() > GAP_FILES_MAX {
        let message = format!("{} files, at most {GAP_FILES_MAX} are taken", files.len());
        return Err(ApiError::invalid(name, message));
    }
    let file = |(index, file): (usize, Value)| {
        let path = format!("{name}[{index}]");
        let Value::Object(file) = file else {
            return Err(ApiError::invalid(
                &path,
                format!("{path} must be an object"),
            ));
        };
        let mut file = Fields::of(file);
        let mut text = |field: &str| match file.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => {
                let path = format!("{path}.{field}");
                let message = format!("{path} must be a string");
                Err(ApiError::invalid(path, message))
            }
        };
        let filename = text("filename")?.unwrap_or_else(|| FILE_NAME.to_owned());
        let Some(text) = text("text")? else {
            let path = format!("{path}.text");
            let message = format!("{path} is missing");
            return Err(ApiError::invalid(path, message));
        };
        file.finish(&format!("{path}."))?;
        Ok((filename, text))
    };
    files.into_iter().enumerate().map(file).collect()
}

async fn whole(mut job: JobStream, model: &str) -> Result<Response<Body>, ApiError> {
    let mut text = String::new();
    while let Some(event) = job.next().await {
        match event {
            JobEvent::Accepted { .. }
            | JobEvent::Started
            | JobEvent::ChoiceDone { .. }
            | JobEvent::Vectors(_) => {}
            JobEvent::Restarted => text.clear(),
            JobEvent::Chunk(chunk) => text.push_str(&chunk.text),
            JobEvent::Done(done) => return Ok(json_response(&last(&text, model, &done))),
            JobEvent::Failed(fault) => return Err(fault.into()),
        }
    }
    Err(broken_off().into())
}

/// Waits until the engine begins, then streams. What fails before that still gets a status of its own.
async fn streamed(mut job: JobStream, model: String) -> Result<Response<Body>, ApiError> {
    loop {
        match job.next().await {
            Some(JobEvent::Accepted { .. }) => {}
            Some(JobEvent::Failed(fault)) => return Err(fault.into()),
            Some(JobEvent::Started) => break,
            Some(_) | None => return Err(broken_off().into()),
        }
    }
    let body = stream::unfold((job, model), |(mut job, model)| async move {
        loop {
            let value = match job.next().await? {
                JobEvent::Accepted { .. }
                | JobEvent::Started
                | JobEvent::ChoiceDone { .. }
                | JobEvent::Vectors(_) => continue,
                JobEvent::Chunk(chunk) => {
                    json!({"index": 0, "content": chunk.text, "stop": false})
                }
                JobEvent::Done(done) => last("", &model, &done),
                JobEvent::Restarted => ApiError::from(broken_off()).body(),
                // The status is sent long since; clients look for an error object in the stream.
                JobEvent::Failed(fault) => ApiError::from(fault).body(),
            };
            let frame = Bytes::from(format!("data: {value}\n\n"));
            return Some((Ok::<Bytes, Infallible>(frame), (job, model)));
        }
    });
    Ok(event_stream(Body::from_stream(body), Ending::default()))
}

/// What ends an answer, with what of its text was not said yet.
fn last(text: &str, model: &str, done: &Done) -> Value {
    let usage = &done.usage;
    let mut timings = timings(done);
    timings["prompt_n"] = json!(usage.prompt_tokens.saturating_sub(usage.cached_tokens));
    timings["predicted_n"] = json!(usage.completion_tokens);
    timings["draft_n"] = json!(usage.guessed_tokens);
    timings["draft_n_accepted"] = json!(usage.accepted_tokens);
    timings["predicted_ms"] = timings["decode_ms"].clone();
    json!({
        "index": 0,
        "content": text,
        "stop": true,
        "model": model,
        "finish_reason": done.finish.name(),
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "tokens_predicted": usage.completion_tokens,
        "truncated": false,
        "timings": timings,
        "andon": whence(done),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(extra: Value) -> Result<Request, ApiError> {
        let mut whole = json!({"input_prefix": "a", "input_suffix": "b"});
        if let (Value::Object(whole), Value::Object(extra)) = (&mut whole, extra) {
            whole.extend(extra);
        }
        parse(whole.to_string().as_bytes(), "id", "client")
    }

    #[test]
    fn what_stands_around_the_gap_is_taken() {
        let request = of(json!({
            "prompt": "x", "input_extra": [{"filename": "lib.rs", "text": "y"}, {"text": "z"}],
            "n_predict": 7, "top_k": 40, "stop": ["\n"], "id_slot": 0, "cache_prompt": true,
        }))
        .expect("a valid body");
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let gap = Gap {
            before: "ax".to_owned(),
            after: "b".to_owned(),
            files: vec![file("lib.rs", "y"), file("tmp", "z")],
            names: ["input_prefix", "input_suffix"],
        };
        assert_eq!(request.input, Input::Gap(gap));
        assert_eq!((request.tokens_max, request.stop.len()), (Some(7), 1));
        assert_eq!(
            of(json!({"n_predict": -1})).expect("valid").tokens_max,
            None
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = vec![json!({"text": ""}); GAP_FILES_MAX + 1];
        for (name, value, param) in [
            ("input_prefix", Value::Null, "input_prefix"),
            ("input_suffix", json!(1), "input_suffix"),
            ("prompt", json!([1]), "prompt"),
            ("input_extra", json!("x"), "input_extra"),
            ("input_extra", json!(many), "input_extra"),
            ("input_extra", json!([1]), "input_extra[0]"),
            ("input_extra", json!([{}]), "input_extra[0].text"),
            (
                "input_extra",
                json!([{"text": "", "filename": 1}]),
                "input_extra[0].filename",
            ),
            (
                "input_extra",
                json!([{"text": "", "path": "x"}]),
                "input_extra[0].path",
            ),
            ("n_predict", json!(0), "n_predict"),
            ("n_predict", json!(-2), "n_predict"),
            ("samplers", json!(["infill"]), "samplers"),
            ("n", json!(2), "n"),
        ] {
            let error = of(json!({ name: value })).expect_err("it is wrong");
            assert_eq!(
                error.param.as_deref(),
                Some(param),
                "{name}: {}",
                error.message
            );
        }
    }
}
