//! What a client gets to read: a reply as it is made or as it was made, and what is known of a request.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use futures_util::stream;
use serde_json::{Value, json};

use super::live::{Hearer, Live};
use super::{KEY_BYTES_MAX, KeptAsk, KeptReply, fetch};
use crate::fault::{Fault, FaultCode};
use crate::frontend::http::error::ApiError;
use crate::frontend::http::serve::Client;
use crate::frontend::http::{Service, json_response};
use crate::spool::Kept;
use crate::spool::record::{Door, Header, Key};

const APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const ATTEMPT: HeaderName = HeaderName::from_static("andon-attempt");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What a client gets that will ask again.
pub(super) fn accepted(
    service: &Service,
    key: &Key,
    number: u64,
) -> Result<Response<Body>, ApiError> {
    let header = service.context.spool.get(number).ok_or_else(|| {
        let fault = Fault::new(FaultCode::Unavailable, "the request was just dropped");
        fault.retry_after(Duration::from_secs(1))
    })?;
    let mut response = json_response(&json!({
        "id": key.id,
        "object": "request",
        "state": header.state.name(),
    }));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&request_path(&key.id)) {
        headers.insert(LOCATION, location);
    }
    headers.insert(APPLIED, HeaderValue::from_static("respond-async"));
    Ok(response)
}

/// Where the request of this key is.
pub fn request_path(id: &str) -> String {
    format!("/v1/requests/{}", escaped(id))
}

/// A part of a path.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Reads a reply: as it is made, or as it was made.
pub(super) async fn read(
    service: &Arc<Service>,
    number: u64,
    known: Option<&Header>,
    live: Option<Arc<Live>>,
) -> Result<Response<Body>, ApiError> {
    let attempt = known.map_or(1, |header| header.attempt);
    let Some(live) = live else {
        let kept = fetch(service, number).await?;
        let kept = kept
            .and_then(|kept| kept.answer)
            .ok_or_else(|| waiting(number))?;
        let reply: KeptReply = postcard::from_bytes(&kept).map_err(|_| waiting(number))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
        if let Ok(kind) = HeaderValue::from_str(&reply.content_type) {
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
        let headers = response.headers_mut();
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
        headers.insert(ATTEMPT, attempt.into());
        *response.body_mut() = told(reply.body.into(), service, number);
        return Ok(response);
    };
    let head = {
        let _hearer = Hearer::new(&live);
        live.until(|said| {
            let refused = said.safe.clone().and_then(Result::err).map(Err);
            let over = said.over.then_some(Ok(None));
            let head = said.head.clone().map(|head| Ok(Some(head)));
            head.or(refused).or(over)
        })
        .await?
    };
    let Some((status, kind)) = head else {
        return Err(waiting(number));
    };
    let mut response = Response::new(body(live, Arc::downgrade(service), number));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(ATTEMPT, attempt.into());
    if known.is_some() {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn waiting(number: u64) -> ApiError {
    tracing::debug!(number, "a request of the spool has no reply yet");
    let fault = Fault::new(
        FaultCode::Unavailable,
        "the request is kept and not answered yet; ask again with the same key",
    );
    fault.retry_after(Duration::from_secs(1)).into()
}

/// A body that is all there; when it was read, the answer is delivered.
fn told(bytes: Bytes, service: &Arc<Service>, number: u64) -> Body {
    let live = Arc::new(Live::default());
    live.say(|said| {
        said.pieces.push(bytes);
        said.whole = true;
        said.over = true;
    });
    body(live, Arc::downgrade(service), number)
}

/// The body of a reply; what was read to its end is delivered. One that ends before it is whole breaks off.
fn body(live: Arc<Live>, service: Weak<Service>, number: u64) -> Body {
    let pieces = stream::unfold(Some((0, live, service)), move |state| async move {
        let (next, live, service) = state?;
        let piece = live.until(|said| {
            let cut = || io::Error::other("the request was dropped");
            let over = said
                .over
                .then(|| said.whole.then_some(None).ok_or_else(cut));
            let piece = said.pieces.get(next).cloned();
            piece.map(|piece| Ok(Some(piece))).or(over)
        });
        match piece.await {
            Ok(Some(piece)) => Some((Ok(piece), Some((next + 1, live, service)))),
            Ok(None) => {
                if let Some(service) = service.upgrade() {
                    service.context.spool.delivered(number);
                }
                None
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    Body::from_stream(pieces)
}

/// `GET /v1/requests/{id}`
pub(in crate::frontend::http) async fn retrieve(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let (number, header) = find(&service, &client, &id)?;
    let live = service.durable.get(number);
    if live.is_some_and(|live| !live.promise()) {
        return Err(ApiError::unknown_request(&id));
    }
    let mut object = json!({
        "id": id,
        "object": "request",
        "state": header.state.name(),
        "attempt": header.attempt,
    });
    if header.state.is_answered()
        && let Some(answer) = fetch(&service, number).await?.and_then(|kept| kept.answer)
        && let Ok(reply) = postcard::from_bytes::<KeptReply>(&answer)
    {
        let text = String::from_utf8_lossy(&reply.body);
        object["status"] = reply.status.into();
        object["content_type"] = reply.content_type.into();
        object["response"] =
            serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()));
        let mut response = json_response(&object);
        // Its reader has it once the whole of it was read, and not who asked for the head alone.
        *response.body_mut() = told(object.to_string().into(), &service, number);
        return Ok(response);
    }
    Ok(json_response(&object))
}

/// `DELETE /v1/requests/{id}`
pub(in crate::frontend::http) async fn delete(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let (number, _) = find(&service, &client, &id)?;
    service.context.spool.forget(number);
    service.durable.end(number);
    Ok(json_response(
        &json!({"id": id, "object": "request", "deleted": true}),
    ))
}

fn find(service: &Service, client: &Client, id: &str) -> Result<(u64, Header), ApiError> {
    let key = Key {
        door: Door::Http,
        client: client.name.to_string(),
        id: id.to_owned(),
    };
    let shown: String = id.chars().take(KEY_BYTES_MAX).collect();
    (service.context.spool.find(&key)).ok_or_else(|| ApiError::unknown_request(&shown))
}

/// What a record of this front end says, for an operator.
pub(crate) fn describe(kept: &Kept) -> Value {
    let text = |bytes: &[u8]| {
        serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
    };
    let mut object = json!({});
    if let Some(ask) = KeptAsk::read(&kept.request) {
        object["request"] = text(&ask.body);
    }
    let answer = kept.answer.as_deref().unwrap_or_default();
    if let Ok(reply) = postcard::from_bytes::<KeptReply>(answer) {
        object["status"] = reply.status.into();
        object["answer"] = text(&reply.body);
    }
    object
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn any_key_makes_a_path() {
        assert_eq!(escaped("shift-17_a.b~c"), "shift-17_a.b~c");
        assert_eq!(escaped("a?b#c%d e"), "a%3Fb%23c%25d%20e");
    }

    #[tokio::test]
    async fn a_reply_that_ends_before_it_is_whole_breaks_off() {
        for whole in [true, false] {
            let live = Arc::new(Live::default());
            live.say(|said| {
                said.pieces.push("data".into());
                said.whole = whole;
                said.over = true;
            });
            let read = body(live, Weak::new(), 1).collect().await;
            assert_eq!(read.is_ok(), whole);
        }
    }
}
