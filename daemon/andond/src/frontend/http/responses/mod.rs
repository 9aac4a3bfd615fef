//! `/v1/responses`: the Responses API, as the official client uses it for text.
//!
//! A response that is stored can be read again, deleted, and gone on from by `previous_response_id`; see [`store`] for how
//! long. Calls of functions are items of their own. What the API has beyond these (other tools, reasoning, files,
//! conversations) is refused by name.

mod parse;
mod shape;
mod store;
mod stream;

pub(super) use store::Store;

use std::sync::{Arc, MutexGuard, PoisonError};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use serde_json::json;

use self::parse::Asked;
use self::shape::{Answer, Reply, Stage};
use super::answer::with_route;
use super::calls::{Reading, gather};
use super::durable::Source;
use super::error::ApiError;
use super::parse::message;
use super::serve::Client;
use super::{Service, json_response, json_text, since_1970};
use crate::fault::Fault;
use crate::request::{Input, Message, Request};
use crate::worker::{JobEvent, JobStream};

/// What a stored response is kept with.
struct Keep {
    client: String,
    conversation: Vec<Message>,
}

impl Keep {
    fn keep(mut self, service: &Service, id: &str, object: String, answer: &Answer) {
        self.conversation.push(answer.message());
        service
            .stored()
            .keep(id, &self.client, object, self.conversation);
    }
}

impl Service {
    fn stored(&self) -> MutexGuard<'_, Store> {
        // Every change leaves the store whole.
        self.responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// `POST /v1/responses`
pub(super) async fn answer(
    service: &Arc<Service>,
    client: &Client,
    source: Source,
) -> Result<Response<Body>, ApiError> {
    let id = source.id(service, "resp_");
    let malformed = |error: &ApiError| service.malformed(error);
    let (asked, settled) = {
        // Held until the body's text is inside the request, whose bounds are checked.
        let ((body, _place), settled) = source.body(service).await.inspect_err(malformed)?;
        let asked = parse::body(&body, &id, &client.name).inspect_err(malformed)?;
        (asked, settled)
    };
    let Asked {
        mut request,
        instructions,
        input,
        previous,
        store,
        said,
    } = asked;
    settled.apply(std::slice::from_mut(&mut request));
    service.check_model(request.model.as_deref())?;
    let mut conversation = match &previous {
        None => Vec::new(),
        Some(previous) => service
            .stored()
            .conversation(previous, &client.name)
            .ok_or_else(|| not_stored(previous))?,
    };
    conversation.extend(input);
    message::check_results("input", &conversation).map_err(|error| ApiError {
        // Messages of earlier responses are counted, too: a place among them says nothing to the client.
        param: Some("input".to_owned()),
        message: "input: a function_call_output has the call_id of no call made before".to_owned(),
        ..error
    })?;
    let system = instructions.map(|content| Message::new("system", content));
    let messages = system.into_iter().chain(conversation.iter().cloned());
    request.input = Input::Messages(messages.collect());
    let config = service.context.config();
    let config = &config.model;
    let reply = Reply {
        item_id: service.next_id("msg_"),
        created_s: since_1970().as_secs(),
        model: service.context.workers.name_of(&request),
        temperature: request.sampling.temperature.unwrap_or(config.temperature),
        top_p: request.sampling.top_p.unwrap_or(config.top_p),
        id,
        said,
    };
    let keep = store.then(|| Keep {
        client: client.name.to_string(),
        conversation,
    });
    let streams = request.stream;
    let job = service
        .context
        .router
        .submit(request, &client.caller)
        .map_err(named)?;
    let job = settled.watch(job);
    if streams {
        stream::streamed(Arc::clone(service), job, reply, keep).await
    } else {
        whole(service, job, &reply, keep).await
    }
}

async fn whole(
    service: &Service,
    mut job: JobStream,
    reply: &Reply,
    keep: Option<Keep>,
) -> Result<Response<Body>, ApiError> {
    let mut answer = Answer::default();
    let mut format = None;
    let mut reading = Reading::new(None, &reply.id, 0);
    while let Some(event) = job.next().await {
        match event {
            JobEvent::Accepted { calls, .. } => {
                reading = Reading::new(calls.as_ref(), &reply.id, 0);
                format = calls;
            }
            JobEvent::Started | JobEvent::ChoiceDone { .. } | JobEvent::Vectors(_) => {}
            JobEvent::Restarted => {
                answer = Answer::default();
                reading = Reading::new(format.as_ref(), &reply.id, 0);
            }
            JobEvent::Chunk(chunk) => {
                gather(
                    reading.push(&chunk.text),
                    &mut answer.text,
                    &mut answer.calls,
                );
            }
            JobEvent::Done(done) => {
                gather(reading.finish(), &mut answer.text, &mut answer.calls);
                let (answer, done) = (&answer, &done);
                let object = reply.object(Stage::Over { answer, done }).to_string();
                let response = with_route(json_text(object.clone()), done);
                if let Some(keep) = keep {
                    keep.keep(service, &reply.id, object, answer);
                }
                return Ok(response);
            }
            JobEvent::Failed(fault) => return Err(named(fault).into()),
        }
    }
    Err(super::answer::broken_off().into())
}

/// `GET /v1/responses/{id}`
pub(super) async fn retrieve(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    match service.stored().object(&id, &client.name) {
        Some(object) => Ok(json_text(object)),
        None => Err(ApiError::unknown_response(&id)),
    }
}

/// `DELETE /v1/responses/{id}`
pub(super) async fn delete(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    if service.stored().delete(&id, &client.name) {
        let object = json!({"id": id, "object": "response", "deleted": true});
        Ok(json_response(&object))
    } else {
        Err(ApiError::unknown_response(&id))
    }
}

/// A fault that names its field as this API does.
fn named(fault: Fault) -> Fault {
    let param = match fault.param {
        Some("messages") => Some("input"),
        Some("max_tokens") => Some("max_output_tokens"),
        other => other,
    };
    Fault { param, ..fault }
}

fn not_stored(id: &str) -> ApiError {
    let shown: String = id.chars().take(128).collect();
    ApiError {
        code: Some("previous_response_not_found"),
        ..ApiError::invalid(
            "previous_response_id",
            format!("there is no stored response {shown}"),
        )
    }
}

/// What a body of `POST /v1/responses` asks for, whatever it goes on from.
pub(super) fn request_of(body: &[u8]) -> Result<Request, ApiError> {
    parse::body(body, "id", "client").map(|asked| asked.request)
}
