//! HTTP as OpenAI's clients speak it, over the Unix socket and, if configured, loopback TCP.
//!
//! What the daemon does not support is refused by name, never ignored: a client that asks for a
//! constrained answer must not get an unconstrained one. A client that goes away cancels its request.

mod answer;
mod calls;
mod door;
mod durable;
mod embeddings;
mod error;
mod fields;
mod infill;
mod parse;
mod probes;
mod responses;
mod serve;
mod shape;
mod stall;
mod text;

use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Response, Uri};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use self::answer::Jobs;
pub(crate) use self::durable::describe;
use self::durable::{Place, Source};
pub use self::durable::{Wish, request_path, wish_of};
use self::error::ApiError;
use self::parse::Parsed;
use self::serve::Client;
use self::shape::{Endpoint, Frame, Shape};
use super::Context;
use crate::fault::Fault;
use crate::request::{Input, Origin, Request};
use crate::worker::{ModelFacts, detokenize};
use crate::workers::Named;

/// A request as axum has it.
type HttpRequest = axum::http::Request<Body>;

/// Most long bodies read and parsed at once: bounds their memory to this many times `[limits] body-bytes-max`.
const BODIES_MAX: usize = 8;

/// Most bytes of a body that is read without one of these places, so that nobody who sends a long one slowly, or none at
/// all, holds up the short ones of others. Connections bound the memory of these.
const SHORT_BODY_BYTES_MAX: usize = 32 << 10;

/// Most texts worked on at once beside the model, on threads that may block.
const WORKS_MAX: usize = 8;

/// Most bytes of a field's name that are logged.
const FIELD_BYTES_LOGGED: usize = 64;

/// A body, and the place that it holds until it has been parsed, if it is long.
type Held<'a> = (Bytes, Option<SemaphorePermit<'a>>);

/// What the handlers share.
#[derive(Debug)]
struct Service {
    context: Context,
    bodies: Semaphore,
    works: Semaphore,
    responses: Mutex<responses::Store>,
    durable: durable::Desk,
    /// A secret of this process.
    ids: RandomState,
    started_us: u64,
    count: AtomicU64,
}

/// Serves until the daemon stops.
pub async fn run(context: Context, socket: UnixListener, loopback: Option<TcpListener>) {
    let (router, service) = router(context.clone());
    let kept = durable::look_after(service);
    let loopback = {
        let (context, router) = (context.clone(), router.clone());
        async move {
            if let Some(listener) = loopback {
                serve::serve(listener, router, context).await;
            }
        }
    };
    tokio::join!(serve::serve(socket, router, context), loopback, kept);
}

fn router(context: Context) -> (Router, Arc<Service>) {
    let service = Arc::new(Service {
        context,
        bodies: Semaphore::new(BODIES_MAX),
        works: Semaphore::new(WORKS_MAX),
        responses: Mutex::default(),
        durable: durable::Desk::default(),
        ids: RandomState::new(),
        started_us: since_1970().as_micros().try_into().unwrap_or(u64::MAX),
        count: AtomicU64::new(0),
    });
    let router = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/responses", post(response))
        .route(
            "/v1/requests/{id}",
            get(durable::retrieve).delete(durable::delete),
        )
        .route(
            "/v1/responses/{id}",
            get(responses::retrieve).delete(responses::delete),
        )
        .route("/tokenize", post(text::tokenize))
        .route("/v1/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/v1/detokenize", post(text::detokenize))
        .route("/apply-template", post(text::apply_template))
        .route("/v1/apply-template", post(text::apply_template))
        .route("/infill", post(infill::infill))
        .route("/v1/infill", post(infill::infill))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/health", get(probes::health_json))
        .route("/props", get(props))
        .route("/healthz", get(probes::health))
        .route("/readyz", get(probes::ready))
        .route("/metrics", get(probes::figures))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::clone(&service));
    (router, service)
}

async fn chat(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    durable::serve(service, Place::Chat, &client, request).await
}

async fn completion(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    durable::serve(service, Place::Completion, &client, request).await
}

async fn response(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    durable::serve(service, Place::Responses, &client, request).await
}

async fn models(State(service): State<Arc<Service>>) -> Result<Response<Body>, ApiError> {
    // Not before there is one that could answer.
    service.model().await?;
    let models = service.context.workers.list();
    let models: Vec<Value> = models.iter().map(model_object).collect();
    Ok(json_response(&json!({"object": "list", "data": models})))
}

async fn model(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Response<Body>, ApiError> {
    service.model().await?;
    let models = service.context.workers.list();
    let model = models.iter().find(|model| model.name == name);
    let model = model.ok_or_else(|| ApiError::unknown_model(&name))?;
    Ok(json_response(&model_object(model)))
}

/// What clients of llama-server ask before they begin.
async fn props(State(service): State<Arc<Service>>) -> Result<Response<Body>, ApiError> {
    let facts = service.model().await?;
    Ok(json_response(&json!({
        "total_slots": service.context.config().engine.parallel_max,
        "default_generation_settings": {"n_ctx": facts.context_tokens_max},
        "model_alias": service.context.config().model.name(),
        "build_info": concat!("andon ", env!("CARGO_PKG_VERSION")),
    })))
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::unknown_path(uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response<Body> {
    let path = uri.path();
    let post = [
        "/completions",
        "/embeddings",
        "/responses",
        "tokenize",
        "/apply-template",
        "/infill",
    ];
    let allowed = if post.iter().any(|end| path.ends_with(end)) {
        "POST"
    } else if path.starts_with("/v1/responses/") || path.starts_with("/v1/requests/") {
        "GET, HEAD, DELETE"
    } else {
        "GET, HEAD"
    };
    let mut response = ApiError::method_not_allowed(method.as_str(), path).into_response();
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

impl Service {
    async fn answer(
        &self,
        endpoint: Endpoint,
        client: &Client,
        source: Source,
    ) -> Result<Response<Body>, ApiError> {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl-",
            Endpoint::Completion => "cmpl-",
        };
        let id = source.id(self, prefix);
        let (parsed, settled) = {
            // Held until the body's text is inside the request, whose bounds are checked.
            let ((body, _place), settled) = source
                .body(self)
                .await
                .inspect_err(|error| self.malformed(error))?;
            let parsed = match endpoint {
                Endpoint::Chat => parse::chat(&body, &id, &client.name),
                Endpoint::Completion => parse::completion(&body, &id, &client.name),
            };
            let parsed = parsed.inspect_err(|error| self.malformed(error))?;
            (parsed, settled)
        };
        let Parsed {
            mut requests,
            include_usage,
            echo,
        } = parsed;
        settled.apply(&mut requests);
        let Some(request) = requests.first() else {
            return Err(ApiError::invalid("prompt", "prompt is empty"));
        };
        self.check_model(request.model.as_deref())?;
        let model = self.context.workers.name_of(request);
        let (stream, deadline) = (request.stream, request.deadline);
        let logprobs = request.logprobs.is_some();
        let choices = usize::try_from(request.choices).unwrap_or(usize::MAX);
        let echo = if echo {
            self.permit(request, client)?;
            self.prompts(&requests).await?
        } else {
            vec![String::new(); requests.len()]
        };
        // The number of answers is checked on submission, so the shape comes after it.
        let jobs = requests
            .into_iter()
            .map(|request| {
                let job = self.context.router.submit(request, &client.caller)?;
                Ok(settled.watch(job))
            })
            .collect::<Result<Vec<_>, Fault>>()?;
        // They have their places; who answers is known when the model is.
        self.context.once_loaded(deadline).await;
        let shape = Shape::new(Frame {
            endpoint,
            id,
            created_s: since_1970().as_secs(),
            fingerprint: self.fingerprint(&model),
            model,
            logprobs,
            include_usage,
            choices: jobs.len().saturating_mul(choices),
        });
        let jobs = Jobs::new(jobs, choices, echo);
        if stream {
            answer::streamed(jobs, shape).await
        } else {
            answer::whole(jobs, shape).await
        }
    }

    /// Refuses what the client may not ask, before work is done for it or it is kept. Handed over it is looked at again.
    fn permit(&self, request: &Request, client: &Client) -> Result<(), Fault> {
        let permitted = self.context.workers.permit(request, &client.caller);
        permitted.map(drop).inspect_err(|fault| {
            self.context.telemetry.request(Origin::Http);
            self.context.telemetry.refused(Origin::Http, fault.code);
        })
    }

    /// Refuses a model that is not served.
    fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        if let Some(name) = name
            && !self.context.workers.knows(name)
        {
            let error = ApiError::unknown_model(name);
            self.malformed(&error);
            return Err(error);
        }
        Ok(())
    }

    /// Counts and logs input that no request can be made of: what kind of mistake and where, in no words of the client's but
    /// the field's name.
    fn malformed(&self, error: &ApiError) {
        self.context.telemetry.malformed(Origin::Http);
        let field = error.param.as_deref();
        let field = field.map(|field| &field[..field.floor_char_boundary(FIELD_BYTES_LOGGED)]);
        tracing::info!(
            origin = Origin::Http.name(),
            fault = error.code.unwrap_or(error.kind),
            field,
            "a request is refused"
        );
    }

    /// The texts of prompts.
    async fn prompts(&self, requests: &[Request]) -> Result<Vec<String>, ApiError> {
        let mut texts = Vec::with_capacity(requests.len());
        let deadline = requests.first().and_then(|request| request.deadline);
        self.context.once_loaded(deadline).await;
        for request in requests {
            texts.push(match &request.input {
                Input::Prompt(prompt) => prompt.clone(),
                Input::Gap(gap) => gap.before.clone(),
                // It will be refused, whatever it reads.
                Input::Tokens(tokens)
                    if tokens.len()
                        > self
                            .context
                            .workers
                            .facts(request.model.as_deref())?
                            .context_tokens_max =>
                {
                    String::new()
                }
                Input::Tokens(tokens) => {
                    let model = self.context.workers.model(request.model.as_deref())?;
                    let tokens = tokens.clone();
                    text::blocking(move || {
                        detokenize(&model, &tokens).map_err(|fault| Fault {
                            param: Some("prompt"),
                            ..fault
                        })
                    })
                    .await?
                }
                Input::Messages(_) | Input::Task { .. } | Input::Embeddings { .. } => String::new(),
            });
        }
        Ok(texts)
    }

    /// Equal for answers of the same daemon with the same model file: with equal seeds, options and text they are equal.
    fn fingerprint(&self, model: &str) -> String {
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        if let Ok(facts) = self.context.workers.facts(Some(model)) {
            (&facts.name, facts.file_bytes, facts.created_s).hash(&mut hasher);
        }
        format!("andon-{:016x}", hasher.finish())
    }

    /// Reads a body. One that turns out to be long waits for its place, and the client's time is not running meanwhile.
    async fn read(&self, request: HttpRequest) -> Result<Held<'_>, ApiError> {
        let bytes_max = self.context.config().limits.body_bytes_max;
        let announced = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > bytes_max) {
            return Err(ApiError::too_large(bytes_max));
        }
        let timeout = Duration::from_millis(self.context.config().http.body_timeout_ms);
        let mut deadline = Instant::now() + timeout;
        let mut body = Limited::new(request.into_body(), bytes_max);
        let (mut bytes, mut place) = (Vec::new(), None);
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Err(_) => return Err(ApiError::body_timeout()),
                Ok(None) => return Ok((bytes.into(), place)),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) if error.is::<LengthLimitError>() => {
                    return Err(ApiError::too_large(bytes_max));
                }
                Ok(Some(Err(_))) => return Err(ApiError::bad_request("the body broke off")),
            };
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if place.is_none() && bytes.len() + data.len() > SHORT_BODY_BYTES_MAX {
                let began = Instant::now();
                // The places are never closed.
                place = self.bodies.acquire().await.ok();
                deadline += began.elapsed();
            }
            bytes.extend_from_slice(&data);
        }
    }

    /// The model that answers to the configured name, once it is loaded.
    async fn model(&self) -> Result<Arc<ModelFacts>, ApiError> {
        self.context.once_loaded(None).await;
        Ok(self.context.workers.facts(None)?)
    }

    /// An id that no other answer has, and nobody guesses: over TCP all clients are one, and whoever knows the id of a request
    /// may read and drop it.
    fn secret_id(&self, prefix: &str) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (self.ids.hash_one((0, count)), self.ids.hash_one((1, count)));
        format!("{prefix}{high:016x}{low:016x}")
    }

    /// An id that no other answer of this machine has, restarts included.
    fn next_id(&self, prefix: &str) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}{:x}-{count:x}", self.started_us)
    }
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn model_object(model: &Named) -> Value {
    let mut object = json!({
        "id": model.name,
        "object": "model",
        "created": model.facts.as_ref().map_or(0, |facts| facts.created_s),
        "owned_by": "andon",
        "state": model.state.name(),
    });
    let Value::Object(fields) = &mut object else {
        return object;
    };
    if let Some(answers) = &model.model {
        fields.insert("answered_by".to_owned(), answers.as_str().into());
    }
    // What a model is like is known once it is loaded.
    if let Some(facts) = &model.facts {
        let capabilities: &[&str] = match facts.embedding {
            Some(_) => &["embeddings"],
            None => &["chat.completions", "completions"],
        };
        fields.insert("context_length".to_owned(), facts.context_tokens_max.into());
        fields.insert("capabilities".to_owned(), capabilities.into());
        if let Some(dimensions) = facts.embedding {
            fields.insert("embedding_dimensions".to_owned(), dimensions.into());
        }
    }
    object
}

fn json_response(value: &Value) -> Response<Body> {
    json_text(value.to_string())
}

fn json_text(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What a body sent to `path` asks for, or the status and the body of the reply to a bad one: what clients may send,
/// without a connection, for tests that send anything.
///
/// # Errors
/// The reply's status and body.
pub fn requests_of(path: &str, body: &[u8]) -> Result<Vec<Request>, (u16, serde_json::Value)> {
    let parsed = match path {
        "/v1/chat/completions" => parse::chat(body, "id", "client").map(|parsed| parsed.requests),
        "/v1/completions" => parse::completion(body, "id", "client").map(|parsed| parsed.requests),
        "/v1/responses" => responses::request_of(body).map(|request| vec![request]),
        "/v1/embeddings" => embeddings::request_of(body).map(|request| vec![request]),
        "/infill" => infill::request_of(body).map(|request| vec![request]),
        other => Err(ApiError::unknown_path(other)),
    };
    parsed.map_err(|error| (error.status().as_u16(), error.body()))
}
