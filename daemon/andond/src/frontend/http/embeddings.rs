//! `/v1/embeddings`: vectors of texts, as OpenAI's clients ask for them.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::answer::broken_off;
use super::error::ApiError;
use super::fields::Fields;
use super::parse;
use super::serve::Client;
use super::text::blocking;
use super::{HttpRequest, Service, json_text};
use crate::fault::Fault;
use crate::request::{EmbeddingInput, Input, Origin, Request};
use crate::worker::{Done, JobEvent, JobStream, Vectors};

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Arrays of numbers.
    Float,
    /// 32-bit floats, little-endian, in base64: what the official client asks for unless told otherwise.
    Base64,
}

pub(super) async fn embeddings(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    let id = service.next_id("embd-");
    let (request, encoding) = {
        // Held until the body's text is inside the request, whose bounds are checked.
        let malformed = |error: &ApiError| service.malformed(error);
        let (body, _place) = service.read(request).await.inspect_err(malformed)?;
        parse_body(&body, &id, &client.name).inspect_err(malformed)?
    };
    service.check_model(request.model.as_deref())?;
    let model = service.context.workers.name_of(&request);
    let job = service.context.workers.submit(request, &client.caller)?;
    let (vectors, done) = wait(job).await?;
    // Millions of numbers take a while to write, and an alarm may be waiting for this thread.
    let text = blocking(move || written(&model, encoding, &vectors, &done)).await?;
    Ok(json_text(text))
}

async fn wait(mut job: JobStream) -> Result<(Vectors, Done), ApiError> {
    let mut vectors = None;
    while let Some(event) = job.next().await {
        match event {
            JobEvent::Vectors(found) => vectors = Some(found),
            JobEvent::Done(done) => return Ok((vectors.ok_or_else(broken_off)?, done)),
            JobEvent::Failed(fault) => return Err(fault.into()),
            _ => {}
        }
    }
    Err(broken_off().into())
}

/// What a body asks for.
pub(super) fn request_of(body: &[u8]) -> Result<Request, ApiError> {
    parse_body(body, "id", "client").map(|(request, _)| request)
}

fn parse_body(body: &[u8], id: &str, client: &str) -> Result<(Request, Encoding), ApiError> {
    let mut fields = Fields::parse(body)?;
    let inputs = match fields.take("input") {
        None => return Err(ApiError::invalid("input", "input is missing")),
        Some(value) => inputs(value)?,
    };
    let encoding = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => {
            let message = "encoding_format must be float or base64";
            return Err(ApiError::invalid("encoding_format", message));
        }
    };
    let dimensions = fields.count("dimensions")?.map(|count| count as usize);
    let input = Input::Embeddings { inputs, dimensions };
    let mut request = Request::new(id, client, Origin::Http, input);
    request.model = fields.string("model")?;
    parse::urgency(&mut fields, &mut request)?;
    fields.label("user");
    fields.finish("")?;
    Ok((request, encoding))
}

/// A text, several, the token ids of one, or those of several.
fn inputs(value: Value) -> Result<Vec<EmbeddingInput>, ApiError> {
    let wrong = || {
        let message = "input must be a string, an array of strings, an array of token ids, or an \
                       array of arrays of token ids";
        ApiError::invalid("input", message)
    };
    let values = match value {
        Value::String(text) => return Ok(vec![EmbeddingInput::Text(text)]),
        Value::Array(values) => values,
        _ => return Err(wrong()),
    };
    let ids = |values: &[Value]| {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        values
            .iter()
            .map(id)
            .collect::<Option<Vec<u32>>>()
            .map(EmbeddingInput::Tokens)
    };
    if values.first().is_some_and(Value::is_number) {
        return ids(&values).map(|input| vec![input]).ok_or_else(wrong);
    }
    values
        .into_iter()
        .map(|value| match value {
            Value::String(text) => Some(EmbeddingInput::Text(text)),
            Value::Array(values) => ids(&values),
            _ => None,
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(wrong)
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// A vector, written as was asked for; text is made one vector at a time.
struct Vector<'a> {
    values: &'a [f32],
    encoding: Encoding,
}

impl Serialize for Vector<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.encoding {
            Encoding::Float => self.values.serialize(serializer),
            Encoding::Base64 => {
                let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
                serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

fn written(
    model: &str,
    encoding: Encoding,
    vectors: &Vectors,
    done: &Done,
) -> Result<String, Fault> {
    let items = vectors.values.chunks(vectors.dimensions.max(1)).enumerate();
    let list = List {
        object: "list",
        data: items
            .map(|(index, values)| Item {
                object: "embedding",
                index,
                embedding: Vector { values, encoding },
            })
            .collect(),
        model,
        usage: Usage {
            prompt_tokens: done.usage.prompt_tokens,
            total_tokens: done.usage.prompt_tokens,
        },
    };
    // Numbers and texts always have a form in JSON.
    serde_json::to_string(&list).map_err(|_| broken_off())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(body: &Value) -> Result<(Request, Encoding), ApiError> {
        parse_body(body.to_string().as_bytes(), "1", "uid-0")
    }

    fn text(text: &str) -> EmbeddingInput {
        EmbeddingInput::Text(text.to_owned())
    }

    #[test]
    fn every_form_of_input_is_taken() {
        for (input, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![EmbeddingInput::Tokens(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![
                    EmbeddingInput::Tokens(vec![1]),
                    EmbeddingInput::Tokens(vec![2, 3]),
                ],
            ),
        ] {
            let (request, encoding) = parsed(&json!({"input": input})).expect("valid");
            let Input::Embeddings { inputs, dimensions } = request.input else {
                panic!("another input");
            };
            assert_eq!(
                (inputs, dimensions, encoding),
                (expected, None, Encoding::Float)
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": 3}), "input"),
            (json!({"input": [1, "a"]}), "input"),
            (json!({"input": [1, -1]}), "input"),
            (json!({"input": [[1.5]]}), "input"),
            (json!({"input": [{}]}), "input"),
            (
                json!({"input": "a", "encoding_format": "hex"}),
                "encoding_format",
            ),
            (json!({"input": "a", "dimensions": -1}), "dimensions"),
            (json!({"input": "a", "stream": true}), "stream"),
        ] {
            let error = parsed(&body).expect_err("it is wrong");
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn vectors_are_written_as_asked() {
        let vectors = Vectors {
            dimensions: 2,
            values: vec![1.0, -0.5, 0.0, 2.0],
        };
        let usage = crate::worker::Usage {
            prompt_tokens: 5,
            ..Default::default()
        };
        let finish = crate::worker::Finish::Stop;
        let done = Done::new(finish, usage, crate::worker::Timings::default());
        for (encoding, first, second) in [
            (Encoding::Float, json!([1.0, -0.5]), json!([0.0, 2.0])),
            (
                Encoding::Base64,
                json!("AACAPwAAAL8="),
                json!("AAAAAAAAAEA="),
            ),
        ] {
            let text = written("m", encoding, &vectors, &done).expect("a response");
            let value: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(
                value,
                json!({
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": 0, "embedding": first},
                        {"object": "embedding", "index": 1, "embedding": second},
                    ],
                    "model": "m",
                    "usage": {"prompt_tokens": 5, "total_tokens": 5},
                })
            );
        }
    }
}
