//! Requests that outlive their connection, and the daemon: those with an `Idempotency-Key`, and those to be answered
//! later (`Prefer: respond-async`).
//!
//! Such a request is in the spool before anything is computed or said, and is computed on its own, whoever stays to read.
//! One that comes again with the same key and body reads the same reply: as it is made, or as it was made. The reply's end is
//! not let go before the whole of it is safe.

mod live;
mod make;
mod read;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub(super) use self::live::Desk;
use self::live::Hearer;
use self::make::compute;
pub(super) use self::make::look_after;
pub(crate) use self::read::describe;
pub use self::read::request_path;
use self::read::{accepted, read};
pub(super) use self::read::{delete, retrieve};
use super::error::ApiError;
use super::serve::Client;
use super::{Held, HttpRequest, Service, error, parse, responses};
use crate::fault::Fault;
use crate::frontend::http::shape::Endpoint;
use crate::request::{Priority, Request};
use crate::spool::record::{Door, Fingerprint, Key};
use crate::spool::{Kept, New, Spool};
use crate::worker::JobStream;

/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 128;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Which of the paths that may be asked durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
    /// `/v1/responses`
    Responses,
}

impl Place {
    fn prefix(self) -> &'static str {
        match self {
            Place::Chat => "chatcmpl-",
            Place::Completion => "cmpl-",
            Place::Responses => "resp_",
        }
    }
}

/// What a reply is made of.
pub(super) enum Source {
    /// A request as it comes.
    Request(HttpRequest),
    /// One of the spool.
    Spool {
        /// Its body.
        body: Bytes,
        /// The id of the reply.
        id: String,
        /// What its draws begin with.
        seed: u64,
        /// When the reply is worthless.
        deadline: Option<Instant>,
        /// Noted when its answer begins.
        begun: Begun,
    },
}

impl Source {
    /// The reply's id.
    pub(super) fn id(&self, service: &Service, prefix: &str) -> String {
        match self {
            Source::Request(_) => service.next_id(prefix),
            Source::Spool { id, .. } => id.clone(),
        }
    }

    /// The body, and what else was settled before.
    pub(super) async fn body(self, service: &Service) -> Result<(Held<'_>, Settled), ApiError> {
        match self {
            Source::Request(request) => Ok((service.read(request).await?, Settled::default())),
            Source::Spool {
                body,
                seed,
                deadline,
                begun,
                ..
            } => {
                let settled = Settled {
                    seed: Some(seed),
                    deadline,
                    begun: Some(begun),
                };
                Ok(((body, None), settled))
            }
        }
    }
}

/// What was settled when a request was taken.
#[derive(Default)]
pub(super) struct Settled {
    seed: Option<u64>,
    deadline: Option<Instant>,
    begun: Option<Begun>,
}

/// The record of a request, which runs once its answer begins, and not while it waits for that.
#[derive(Clone)]
pub(super) struct Begun {
    spool: Spool,
    number: u64,
}

impl Settled {
    /// A job of the request, whose beginning is noted.
    pub(super) fn watch(&self, mut job: JobStream) -> JobStream {
        if let Some(Begun { spool, number }) = self.begun.clone() {
            job.on_start(move || spool.running(number));
        }
        job
    }

    /// Puts it in.
    pub(super) fn apply(&self, requests: &mut [Request]) {
        for (place, request) in (0..).zip(requests) {
            if let Some(seed) = self.seed {
                request.seed_unsaid = Some(seed.wrapping_add(place));
            }
            if self.deadline.is_some() {
                request.deadline = self.deadline;
            }
            if let Some(Begun { spool, number }) = &self.begun {
                request.attempt = spool.get(*number).map_or(1, |header| header.attempt);
            }
        }
    }
}

/// A request as the spool keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeptAsk {
    place: Place,
    /// The reply's id.
    id: String,
    body: Vec<u8>,
    /// The groups of the process that asked, which is long gone when it is answered.
    groups: Vec<u32>,
}

impl KeptAsk {
    fn written(&self) -> Bytes {
        let whole = (&self.place, &self.id, &self.body, &self.groups);
        postcard::to_stdvec(&whole)
            .map(Bytes::from)
            .unwrap_or_default()
    }

    /// `None` if it is no request over HTTP. One that ends before the groups was asked by a user alone.
    fn read(kept: &[u8]) -> Option<KeptAsk> {
        let ((place, id, body), rest) = postcard::take_from_bytes(kept).ok()?;
        Some(KeptAsk {
            place,
            id,
            body,
            groups: postcard::from_bytes(rest).unwrap_or_default(),
        })
    }
}

/// A reply as the spool keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KeptReply {
    status: u16,
    content_type: String,
    body: Vec<u8>,
}

/// What a client wants beside an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Wish {
    /// What the request is known by.
    pub key: Option<String>,
    /// Whether the answer may be fetched later.
    pub later: bool,
}

impl Wish {
    fn read(headers: &HeaderMap) -> Result<Wish, ApiError> {
        let key = match headers.get(&IDEMPOTENCY_KEY) {
            None => None,
            Some(value) => {
                let key = value.to_str().unwrap_or_default();
                let fits = (1..=KEY_BYTES_MAX).contains(&key.len());
                if !fits || key.contains(|c: char| c.is_control() || c == '/') {
                    let message = format!(
                        "an Idempotency-Key is 1 to {KEY_BYTES_MAX} visible characters without a slash"
                    );
                    return Err(ApiError::invalid("Idempotency-Key", message));
                }
                Some(key.to_owned())
            }
        };
        let later = headers.get_all(&PREFER).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value
                .split(',')
                .any(|wish| wish.trim().eq_ignore_ascii_case("respond-async"))
        });
        Ok(Wish { key, later })
    }
}

/// What the lines of a head, each a name and a value, ask for beside an answer. Without a connection, for tests that send
/// anything: lines that are none are left out here, and refused by hyper there.
///
/// # Errors
/// The reply's status and body.
pub fn wish_of(lines: &[(&[u8], &[u8])]) -> Result<Wish, (u16, serde_json::Value)> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name).ok();
        if let Some((name, value)) = name.zip(HeaderValue::from_bytes(value).ok()) {
            headers.append(name, value);
        }
    }
    Wish::read(&headers).map_err(|error| (error.status().as_u16(), error.body()))
}

/// Answers a request, durably if it says so.
pub(super) async fn serve(
    service: Arc<Service>,
    place: Place,
    client: &Client,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    let wish = Wish::read(request.headers())?;
    if wish.key.is_none() && !wish.later {
        return reply(&service, place, client, Source::Request(request)).await;
    }
    let malformed = |error: &ApiError| service.malformed(error);
    let (body, first) = {
        let (body, _place) = service.read(request).await.inspect_err(malformed)?;
        let first = first(place, &body, client).inspect_err(malformed)?;
        (body, first)
    };
    let later = wish.later;
    let key = Key {
        door: Door::Http,
        client: client.name.to_string(),
        id: wish.key.unwrap_or_else(|| service.secret_id("req_")),
    };
    let path = place.prefix().as_bytes();
    let fingerprint = Fingerprint::of(&[path, &body]);
    let spool = &service.context.spool;
    let (number, known) = match spool.find(&key) {
        Some((_, header)) if header.fingerprint != fingerprint => return Err(reused(&key.id)),
        Some((number, header)) => {
            service.context.telemetry.spool_repeated();
            // What failed for want of its model may be asked again once that is served.
            if header.fault.as_deref() == Some(error::UNKNOWN_MODEL)
                && service.durable.get(number).is_none()
                && service.check_model(first.model.as_deref()).is_ok()
            {
                let left = left(&service, &first);
                // Of two who ask at once, one begins it.
                let begun = spool.again(number, header.attempt, left, Box::new(drop));
                if begun.is_some() {
                    compute(&service, number, None);
                }
            }
            (number, spool.get(number))
        }
        None => {
            // What was asked before needs no model: its reply may be there.
            service.check_model(first.model.as_deref())?;
            // Before it is promised an answer: what may not be asked is not kept.
            service.permit(&first, client)?;
            let ask = KeptAsk {
                place,
                id: service.next_id(place.prefix()),
                body: body.to_vec(),
                groups: client.caller.groups().to_vec(),
            };
            let (told, safe) = oneshot::channel();
            let new = New {
                key: key.clone(),
                task: None,
                priority: first.priority.unwrap_or(Priority::Interactive),
                fingerprint,
                seed: key.seed(&fingerprint),
                left: left(&service, &first),
                request: ask.written(),
            };
            let then = Box::new(move |outcome| drop(told.send(outcome)));
            let number = spool.accept(new, then)?;
            // On its own from here on: this client may go away before it is safe.
            compute(&service, number, Some((ask, safe)));
            (number, None)
        }
    };
    drop((body, first));
    let live = service.durable.get(number);
    let _hearer = live.as_ref().map(Hearer::new);
    let mut refused = false;
    if let Some(live) = &live {
        // Who asks to be told later hears at once that it is refused.
        refused = later && !live.promise();
        live.until(|said| said.safe.clone().or(said.over.then_some(Ok(()))))
            .await?;
    }
    if later && !refused {
        return accepted(&service, &key, number);
    }
    read(&service, number, known.as_ref(), live).await
}

/// How long the answer to a request that has just come is worth something.
fn left(service: &Service, request: &Request) -> Option<Duration> {
    let now = Instant::now();
    let deadline = service.context.workers.deadline(request, now)?;
    Some(deadline.saturating_duration_since(now))
}

/// The first request of a body, which says what holds for all.
fn first(place: Place, body: &[u8], client: &Client) -> Result<Request, ApiError> {
    let parsed = match place {
        Place::Chat => parse::chat(body, "id", &client.name)?,
        Place::Completion => parse::completion(body, "id", &client.name)?,
        Place::Responses => return responses::request_of(body),
    };
    let first = parsed.requests.into_iter().next();
    first.ok_or_else(|| ApiError::invalid("prompt", "prompt is empty"))
}

/// Makes a reply.
async fn reply(
    service: &Arc<Service>,
    place: Place,
    client: &Client,
    source: Source,
) -> Result<Response<Body>, ApiError> {
    match place {
        Place::Chat => service.answer(Endpoint::Chat, client, source).await,
        Place::Completion => service.answer(Endpoint::Completion, client, source).await,
        Place::Responses => responses::answer(service, client, source).await,
    }
}

fn reused(key: &str) -> ApiError {
    ApiError {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code: Some("idempotency_key_reused"),
        ..ApiError::invalid(
            "Idempotency-Key",
            format!("the key {key} was used for another body"),
        )
    }
}

async fn fetch(service: &Service, number: u64) -> Result<Option<Kept>, Fault> {
    let (told, kept) = oneshot::channel();
    let then = Box::new(move |kept| drop(told.send(kept)));
    service.context.spool.read(number, then);
    kept.await
        .unwrap_or_else(|_| Err(super::answer::broken_off()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_request_says_who_asked() {
        let ask = KeptAsk {
            place: Place::Completion,
            id: "cmpl-1".to_owned(),
            body: b"{}".to_vec(),
            groups: vec![7, 1000],
        };
        assert_eq!(KeptAsk::read(&ask.written()), Some(ask.clone()));
        let without = (&ask.place, &ask.id, &ask.body);
        let without = postcard::to_stdvec(&without).unwrap();
        let groups = KeptAsk::read(&without).map(|ask| ask.groups);
        assert_eq!(groups, Some(Vec::new()));
        assert_eq!(KeptAsk::read(b"\xff"), None);
    }

    #[test]
    fn wishes_are_read() {
        let read = |pairs: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, HeaderValue::from_str(value).unwrap());
            }
            Wish::read(&headers).map(|wish| (wish.key, wish.later))
        };
        assert_eq!(read(&[]), Ok((None, false)));
        let key = (IDEMPOTENCY_KEY, "a-1");
        let later = (PREFER, "wait=10, Respond-Async");
        assert_eq!(read(&[key, later]), Ok((Some("a-1".to_owned()), true)));
        for key in ["", "a/b", &"x".repeat(KEY_BYTES_MAX + 1)] {
            assert!(read(&[(IDEMPOTENCY_KEY, key)]).is_err());
        }
    }
}
