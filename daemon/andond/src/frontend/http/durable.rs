//! Requests that outlive their connection, and the daemon: those with an `Idempotency-Key`, and those to be answered
//! later (`Prefer: respond-async`).
//!
//! Such a request is in the spool before anything is computed or said, and is computed on its own, whoever stays to read.
//! One that comes again with the same key and body reads the same reply: as it is made, or as it was made. The reply's end is
//! not let go before the whole of it is safe.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse as _;
use futures_util::stream;
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::answer::Ending;
use super::error::ApiError;
use super::serve::Client;
use super::{Held, HttpRequest, Service, json_response, parse, responses};
use crate::fault::{Fault, FaultCode};
use crate::frontend::http::shape::Endpoint;
use crate::request::{Origin, Request};
use crate::spool::book::Filter;
use crate::spool::record::{Door, Fingerprint, Header, Key, State as Stage};
use crate::spool::{Kept, New, Order};
use crate::worker::WorkerState;

/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 128;
/// Between two tries to have a request of the spool computed, for which there was no place.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two tries to read a request while the disk fails.
const READ_PAUSE: Duration = Duration::from_secs(1);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const ATTEMPT: HeaderName = HeaderName::from_static("andon-attempt");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

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
            Source::Request(request) => Ok((service.read(request).await?, Settled(None))),
            Source::Spool {
                body,
                seed,
                deadline,
                ..
            } => Ok(((body, None), Settled(Some((seed, deadline))))),
        }
    }
}

/// What was settled when a request was taken.
pub(super) struct Settled(Option<(u64, Option<Instant>)>);

impl Settled {
    /// Puts it in.
    pub(super) fn apply(&self, requests: &mut [Request]) {
        let Some((seed, deadline)) = self.0 else {
            return;
        };
        for (place, request) in (0..).zip(requests) {
            request.seed_unsaid = Some(seed.wrapping_add(place));
            if deadline.is_some() {
                request.deadline = deadline;
            }
        }
    }
}

/// A request as the spool keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KeptAsk {
    place: Place,
    /// The reply's id.
    id: String,
    body: Vec<u8>,
}

/// A reply as the spool keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KeptReply {
    status: u16,
    content_type: String,
    body: Vec<u8>,
}

/// A reply that is being made, for whoever reads.
#[derive(Debug, Default)]
struct Live {
    said: Mutex<Said>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Said {
    head: Option<(StatusCode, HeaderValue)>,
    pieces: Vec<Bytes>,
    over: bool,
    computing: Option<AbortHandle>,
    /// Whether the request is kept, once that is known.
    safe: Option<Result<(), Fault>>,
    /// Whether somebody was told that the request is kept, and relies on it.
    promised: bool,
    /// How many wait for the head, and so hear of a refusal.
    hearers: usize,
}

impl Said {
    /// Whether a refusal for want of a place may end it: somebody hears it, and nobody was told otherwise before.
    fn may_be_refused(&self) -> bool {
        self.hearers > 0 && !self.promised
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.lock());
        self.more.notify_waiters();
    }

    /// Waits until `look` finds something.
    async fn until<T>(&self, mut look: impl FnMut(&Said) -> Option<T>) -> T {
        loop {
            // Registered before the look, so that nothing said in between is missed.
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if let Some(found) = look(&self.lock()) {
                return found;
            }
            more.await;
        }
    }
}

/// Somebody who waits for the head of a reply.
struct Hearer(Arc<Live>);

impl Hearer {
    fn new(live: &Arc<Live>) -> Hearer {
        live.lock().hearers += 1;
        Hearer(Arc::clone(live))
    }
}

impl Drop for Hearer {
    fn drop(&mut self) {
        let mut said = self.0.lock();
        said.hearers = said.hearers.saturating_sub(1);
    }
}

/// The replies that are being made, by number.
#[derive(Debug, Default)]
pub(super) struct Desk(Mutex<HashMap<u64, Arc<Live>>>);

impl Desk {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, number: u64) -> Option<Arc<Live>> {
        self.lock().get(&number).cloned()
    }

    fn end(&self, number: u64) {
        let live = self.lock().remove(&number);
        if let Some(live) = live {
            live.say(|said| {
                said.over = true;
                if let Some(computing) = said.computing.take() {
                    computing.abort();
                }
            });
        }
    }

    /// Ends this reply, but none that was begun since under the same number.
    fn end_of(&self, number: u64, live: &Arc<Live>) {
        let mut lives = self.lock();
        if lives.get(&number).is_some_and(|of| Arc::ptr_eq(of, live)) {
            lives.remove(&number);
        }
        drop(lives);
        live.say(|said| said.over = true);
    }
}

/// Ends a reply with the task that makes it, however that ends: nobody waits for what nobody makes.
struct Ended {
    service: Weak<Service>,
    number: u64,
    live: Arc<Live>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(service) = self.service.upgrade() {
            service.durable.end_of(self.number, &self.live);
        }
    }
}

/// What a client wants beside an answer.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    key: Option<String>,
    later: bool,
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
    let malformed = |_: &ApiError| service.context.telemetry.malformed(Origin::Http);
    let (body, first) = {
        let (body, _place) = service.read(request).await.inspect_err(malformed)?;
        let first = first(place, &body, client).inspect_err(malformed)?;
        (body, first)
    };
    let later = wish.later;
    let key = Key {
        door: Door::Http,
        client: client.0.to_string(),
        id: wish.key.unwrap_or_else(|| service.next_id("req_")),
    };
    let path = place.prefix().as_bytes();
    let fingerprint = Fingerprint::of(&[path, &body]);
    let spool = &service.context.spool;
    let (number, known) = match spool.find(&key) {
        Some((_, header)) if header.fingerprint != fingerprint => return Err(reused(&key.id)),
        Some((number, header)) => {
            service.context.telemetry.spool_repeated();
            (number, Some(header))
        }
        None => {
            // What was asked before needs no model: its reply may be there.
            service.check_model(first.model.as_deref())?;
            service.model()?;
            let ask = KeptAsk {
                place,
                id: service.next_id(place.prefix()),
                body: body.to_vec(),
            };
            let left = service.context.workers.deadline(&first);
            let (told, safe) = oneshot::channel();
            let new = New {
                key: key.clone(),
                task: None,
                fingerprint,
                seed: service.seed(),
                left: left.map(|at| at.saturating_duration_since(Instant::now())),
                request: postcard::to_stdvec(&ask)
                    .map(Bytes::from)
                    .unwrap_or_default(),
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
    if let Some(live) = &live {
        live.say(|said| said.promised |= later);
        live.until(|said| said.safe.clone().or(said.over.then_some(Ok(()))))
            .await?;
    }
    if later {
        return Ok(accepted(&service, &key, number));
    }
    read(&service, number, known.as_ref(), live).await
}

/// The first request of a body, which says what holds for all.
fn first(place: Place, body: &[u8], client: &Client) -> Result<Request, ApiError> {
    let parsed = match place {
        Place::Chat => parse::chat(body, "id", &client.0)?,
        Place::Completion => parse::completion(body, "id", &client.0)?,
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

/// What a client gets that will ask again.
fn accepted(service: &Service, key: &Key, number: u64) -> Response<Body> {
    let header = service.context.spool.get(number);
    let state = header.map_or(Stage::Accepted, |header| header.state);
    let mut response = json_response(&json!({
        "id": key.id,
        "object": "request",
        "state": state.name(),
    }));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/requests/{}", key.id)) {
        headers.insert(LOCATION, location);
    }
    headers.insert(APPLIED, HeaderValue::from_static("respond-async"));
    response
}

/// What a request that just came asks, and the word on whether it is kept.
type Fresh = (KeptAsk, oneshot::Receiver<Result<(), Fault>>);

/// Has a request of the spool computed, on its own.
fn compute(service: &Arc<Service>, number: u64, fresh: Option<Fresh>) {
    let live = Arc::new(Live::default());
    // Whoever comes with the same key in the meantime reads along.
    service.durable.lock().insert(number, Arc::clone(&live));
    let ended = Ended {
        service: Arc::downgrade(service),
        number,
        live: Arc::clone(&live),
    };
    let service = Arc::clone(service);
    let making = Arc::clone(&live);
    let task = tokio::spawn(async move {
        let _ended = ended;
        computed(service, number, making, fresh).await;
    });
    live.say(|said| said.computing = Some(task.abort_handle()));
}

async fn computed(service: Arc<Service>, number: u64, live: Arc<Live>, fresh: Option<Fresh>) {
    let spool = &service.context.spool;
    let ask = match fresh {
        Some((ask, safe)) => {
            let outcome = safe
                .await
                .unwrap_or_else(|_| Err(super::answer::broken_off()));
            let kept = outcome.is_ok();
            live.say(|said| said.safe = Some(outcome));
            if !kept {
                return service.context.telemetry.spool_unkept();
            }
            ask
        }
        None => {
            live.say(|said| said.safe = Some(Ok(())));
            let Some(kept) = fetch_patiently(&service, number).await else {
                return;
            };
            let Ok(ask) = postcard::from_bytes::<KeptAsk>(&kept.request) else {
                tracing::error!(number, "a record of the spool is no request over HTTP");
                return;
            };
            ask
        }
    };
    let Some(header) = spool.get(number) else {
        return;
    };
    let client = Client(header.key.client.as_str().into());
    let again = header.attempt > 1;
    let outcome = loop {
        if let Some(fault) = header.too_many_crashes() {
            break Err(fault.into());
        }
        let source = Source::Spool {
            body: ask.body.clone().into(),
            id: ask.id.clone(),
            seed: header.seed,
            deadline: spool.deadline(&header),
        };
        spool.running(number);
        match reply(&service, ask.place, &client, source).await {
            // Nobody waits who could try again, or somebody was told that it is kept.
            Err(error)
                if error.status == StatusCode::TOO_MANY_REQUESTS
                    && (again || !live.lock().may_be_refused()) =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => break outcome,
        }
    };
    if let Err(error) = &outcome {
        match error.status {
            // The next start answers it.
            StatusCode::SERVICE_UNAVAILABLE => return leave(&live, outcome).await,
            // It never began: the client may come with the same key.
            StatusCode::TOO_MANY_REQUESTS => {
                spool.forget(number);
                return leave(&live, outcome).await;
            }
            _ => {}
        }
    }
    let code = outcome.as_ref().err().and_then(|error| error.code);
    let response = outcome.unwrap_or_else(ApiError::into_response);
    let ending = response.extensions().get::<Ending>().cloned();
    let kept = gather(response, &live).await;
    let code = match ending.map_or(Ok(()), |ending| ending.get()) {
        Ok(()) => code,
        // The next start answers it; what was read so far says that it broke off.
        Err(FaultCode::Unavailable) => return say_rest(&live, &kept),
        Err(_) if service.context.stopping.is_cancelled() => return say_rest(&live, &kept),
        Err(code) => ApiError::from(Fault::new(code, "")).code,
    };
    let (told, safe) = oneshot::channel();
    let then = Box::new(move |outcome: Result<(), Fault>| drop(told.send(outcome)));
    let bytes = postcard::to_stdvec(&kept)
        .map(Bytes::from)
        .unwrap_or_default();
    if spool.answer(number, bytes, code, then)
        && let Ok(Err(fault)) = safe.await
    {
        tracing::error!(number, %fault, "a reply is sent that is not safe on the disk");
    }
    // Readers hold what is said; nobody else needs it any more.
    say_rest(&live, &kept);
}

/// Says what of a reply was held back.
fn say_rest(live: &Live, kept: &KeptReply) {
    live.say(|said| {
        let rest = said.pieces.iter().map(Bytes::len).sum::<usize>();
        let rest = kept.body.get(rest..).unwrap_or_default().to_vec();
        said.pieces.push(rest.into());
    });
}

/// Tells whoever reads why there is no reply now, without its being the reply.
async fn leave(live: &Live, outcome: Result<Response<Body>, ApiError>) {
    let response = outcome.unwrap_or_else(ApiError::into_response);
    let kept = gather(response, live).await;
    say_rest(live, &kept);
}

/// Passes a reply on as it is made, but for its last piece, and returns all of it.
async fn gather(response: Response<Body>, live: &Live) -> KeptReply {
    let (head, mut body) = response.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).cloned();
    let content_type = content_type.unwrap_or_else(|| HeaderValue::from_static("application/json"));
    live.say(|said| said.head = Some((head.status, content_type.clone())));
    let mut whole = Vec::new();
    let mut held: Option<Bytes> = None;
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(piece) = frame.into_data() {
            whole.extend_from_slice(&piece);
            if let Some(before) = held.replace(piece) {
                live.say(|said| said.pieces.push(before));
            }
        }
    }
    KeptReply {
        status: head.status.as_u16(),
        content_type: content_type.to_str().unwrap_or_default().to_owned(),
        body: whole,
    }
}

async fn fetch(service: &Service, number: u64) -> Result<Option<Kept>, Fault> {
    let (told, kept) = oneshot::channel();
    let then = Box::new(move |kept| drop(told.send(kept)));
    service.context.spool.read(number, then);
    kept.await
        .unwrap_or_else(|_| Err(super::answer::broken_off()))
}

/// Fetches a record that is to be answered, however long the disk fails; `None` if it is not there, or is damaged.
async fn fetch_patiently(service: &Arc<Service>, number: u64) -> Option<Kept> {
    loop {
        match fetch(service, number).await {
            Ok(kept) => return kept,
            Err(fault) if fault.code == FaultCode::Unavailable => {
                tracing::debug!(number, %fault, "a request of the spool cannot be read now");
                tokio::time::sleep(READ_PAUSE).await;
            }
            Err(fault) => {
                tracing::error!(number, %fault, "a request of the spool cannot be answered");
                return None;
            }
        }
    }
}

/// Reads a reply: as it is made, or as it was made.
async fn read(
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
        let pieces = Arc::new(Live::default());
        pieces.say(|said| {
            said.pieces.push(reply.body.into());
            said.over = true;
        });
        *response.body_mut() = body(pieces, Arc::downgrade(service), number);
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

/// The body of a reply; what was read to its end is delivered.
fn body(live: Arc<Live>, service: Weak<Service>, number: u64) -> Body {
    let pieces = stream::unfold(
        (0, live, service),
        move |(next, live, service)| async move {
            let piece = live.until(|said| {
                let over = said.over.then_some(None);
                said.pieces.get(next).cloned().map(Some).or(over)
            });
            let Some(piece) = piece.await else {
                if let Some(service) = service.upgrade() {
                    service.context.spool.delivered(number);
                }
                return None;
            };
            Some((
                Ok::<Bytes, std::convert::Infallible>(piece),
                (next + 1, live, service),
            ))
        },
    );
    Body::from_stream(pieces)
}

/// `GET /v1/requests/{id}`
pub(super) async fn retrieve(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let (number, header) = find(&service, &client, &id)?;
    if let Some(live) = service.durable.get(number) {
        live.say(|said| said.promised = true);
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
        service.context.spool.delivered(number);
    }
    Ok(json_response(&object))
}

/// `DELETE /v1/requests/{id}`
pub(super) async fn delete(
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
        client: client.0.to_string(),
        id: id.to_owned(),
    };
    let shown: String = id.chars().take(KEY_BYTES_MAX).collect();
    (service.context.spool.find(&key)).ok_or_else(|| ApiError::unknown_request(&shown))
}

/// Goes on with what an earlier process left, and does what operators want, until the daemon stops.
pub(super) async fn look_after(service: Arc<Service>) {
    let context = &service.context;
    let mut orders = context.spool.orders(Door::Http);
    let mut states = context.workers.states();
    let serving = states.wait_for(|state| *state == WorkerState::Ready);
    tokio::select! {
        _ = serving => {}
        () = context.stopping.cancelled() => return,
    }
    compute_unanswered(&service, false);
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                // What a worker without a model has left.
                if *states.borrow_and_update() == WorkerState::Ready {
                    compute_unanswered(&service, true);
                }
                continue;
            }
            () = context.stopping.cancelled() => return,
        };
        match order {
            None => return,
            Some(Order::Dropped(number, _)) => service.durable.end(number),
            Some(Order::Again(number)) => {
                let Some(header) = context.spool.get(number) else {
                    continue;
                };
                let over = header.fault.is_some() || !header.state.is_answered();
                if over && service.durable.get(number).is_none() {
                    let left = context
                        .spool
                        .left(&header)
                        .filter(|_| header.fault.is_none());
                    context.spool.again(number, left, Box::new(drop));
                    compute(&service, number, None);
                }
            }
        }
    }
}

/// Has everything computed that has no answer and is not being made: as another attempt if this process may have said
/// something of one before.
fn compute_unanswered(service: &Arc<Service>, again: bool) {
    let spool = &service.context.spool;
    for (number, header) in spool.list(&Filter::default()) {
        let waits = header.key.door == Door::Http
            && !header.state.is_answered()
            && service.durable.get(number).is_none();
        if !waits {
            continue;
        }
        if again {
            spool.again(number, spool.left(&header), Box::new(drop));
        }
        compute(service, number, None);
    }
}

/// What a record of this front end says, for an operator.
pub(crate) fn describe(kept: &Kept) -> Value {
    let text = |bytes: &[u8]| {
        serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
    };
    let mut object = json!({});
    if let Ok(ask) = postcard::from_bytes::<KeptAsk>(&kept.request) {
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
    use super::*;

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

    #[test]
    fn only_who_hears_it_and_was_promised_nothing_is_refused() {
        let live = Arc::new(Live::default());
        assert!(!live.lock().may_be_refused(), "nobody hears it");
        let hearer = Hearer::new(&live);
        assert!(live.lock().may_be_refused());
        live.say(|said| said.promised = true);
        assert!(!live.lock().may_be_refused(), "202 was said");
        live.say(|said| said.promised = false);
        drop(hearer);
        assert!(!live.lock().may_be_refused(), "it went away");
    }

    #[test]
    fn a_reply_whose_task_ends_is_over_but_not_the_next_of_its_number() {
        let desk = Desk::default();
        let (first, second) = (Arc::new(Live::default()), Arc::new(Live::default()));
        desk.lock().insert(1, Arc::clone(&second));
        desk.end_of(1, &first);
        assert!(first.lock().over && !second.lock().over);
        assert!(desk.get(1).is_some());
        desk.end_of(1, &second);
        assert!(second.lock().over && desk.get(1).is_none());
    }
}
