//! HTTP as OpenAI's clients speak it, over the Unix socket and, if configured, loopback TCP.
//!
//! What the daemon does not support is refused by name, never ignored: a client that asks for a
//! constrained answer must not get an unconstrained one. A client that goes away cancels its request.

mod answer;
mod error;
mod fields;
mod parse;
mod probes;
mod serve;
mod shape;
mod stall;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Request, Response, Uri};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use self::error::ApiError;
use self::serve::Client;
use self::shape::{Endpoint, Shape};
use super::Context;
use crate::fault::{Fault, FaultCode};
use crate::request::Origin;
use crate::worker::{ModelFacts, WorkerState};

/// Most bodies read and parsed at once: bounds their memory to this many times `[limits] body-bytes-max`.
const BODIES_MAX: usize = 8;

/// What the handlers share.
#[derive(Debug)]
struct Service {
    context: Context,
    bodies: Semaphore,
    started_us: u64,
    count: AtomicU64,
}

/// Serves until the daemon stops.
pub async fn run(context: Context, socket: UnixListener, loopback: Option<TcpListener>) {
    let router = router(context.clone());
    let loopback = {
        let (context, router) = (context.clone(), router.clone());
        async move {
            if let Some(listener) = loopback {
                serve::serve(listener, router, context).await;
            }
        }
    };
    tokio::join!(serve::serve(socket, router, context), loopback);
}

fn router(context: Context) -> Router {
    let service = Arc::new(Service {
        context,
        bodies: Semaphore::new(BODIES_MAX),
        started_us: since_1970().as_micros().try_into().unwrap_or(u64::MAX),
        count: AtomicU64::new(0),
    });
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/healthz", get(probes::health))
        .route("/readyz", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(service)
}

async fn chat(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    service.answer(Endpoint::Chat, &client, request).await
}

async fn completion(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    service.answer(Endpoint::Completion, &client, request).await
}

async fn models(State(service): State<Arc<Service>>) -> Result<Response<Body>, ApiError> {
    let facts = service.model()?;
    Ok(json_response(
        &json!({"object": "list", "data": [model_object(&facts)]}),
    ))
}

async fn model(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let facts = service.model()?;
    if name != facts.name {
        return Err(ApiError::unknown_model(&name));
    }
    Ok(json_response(&model_object(&facts)))
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::unknown_path(uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response<Body> {
    let path = uri.path();
    let allowed = if path.ends_with("/completions") {
        "POST"
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
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let telemetry = &self.context.telemetry;
        let id = self.next_id(endpoint);
        let parsed = {
            // Held until the body's text is inside the request, whose bounds are checked.
            let _place = self.bodies.acquire().await;
            let body = self
                .read(request)
                .await
                .inspect_err(|_| telemetry.malformed(Origin::Http))?;
            let parsed = match endpoint {
                Endpoint::Chat => parse::chat(&body, &id, &client.0),
                Endpoint::Completion => parse::completion(&body, &id, &client.0),
            };
            parsed.inspect_err(|_| telemetry.malformed(Origin::Http))?
        };
        let request = parsed.request;
        if let (Some(name), Ok(facts)) = (&request.model, self.model())
            && *name != facts.name
        {
            telemetry.malformed(Origin::Http);
            return Err(ApiError::unknown_model(name));
        }
        let shape = Shape::new(
            endpoint,
            id,
            since_1970().as_secs(),
            self.context.config.model.name(),
            request.logprobs.is_some(),
            parsed.include_usage,
        );
        let stream = request.stream;
        let job = self.context.worker.submit(request)?;
        if stream {
            answer::streamed(job, shape).await
        } else {
            answer::whole(job, shape).await
        }
    }

    async fn read(&self, request: Request<Body>) -> Result<Bytes, ApiError> {
        let bytes_max = self.context.config.limits.body_bytes_max;
        let announced = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > bytes_max) {
            return Err(ApiError::too_large(bytes_max));
        }
        let timeout = Duration::from_millis(self.context.config.http.body_timeout_ms);
        let body = Limited::new(request.into_body(), bytes_max);
        match tokio::time::timeout(timeout, body.collect()).await {
            Err(_) => Err(ApiError::body_timeout()),
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(bytes_max)),
            Ok(Err(_)) => Err(ApiError::bad_request("the body broke off")),
        }
    }

    fn model(&self) -> Result<Arc<ModelFacts>, ApiError> {
        let status = self.context.worker.status();
        match (status.state, status.model) {
            (WorkerState::Ready | WorkerState::Stopping, Some(facts)) => Ok(facts),
            (WorkerState::Broken(why), _) => Err(Fault::new(FaultCode::Unavailable, why).into()),
            _ => {
                let fault = Fault::new(FaultCode::Unavailable, "the model is being loaded");
                Err(fault.retry_after(Duration::from_secs(1)).into())
            }
        }
    }

    /// An id that no other answer of this machine has, restarts included.
    fn next_id(&self, endpoint: Endpoint) -> String {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completion => "cmpl",
        };
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:x}-{count:x}", self.started_us)
    }
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn model_object(facts: &ModelFacts) -> Value {
    json!({
        "id": facts.name,
        "object": "model",
        "created": facts.created_s,
        "owned_by": "andon",
        "context_length": facts.context_tokens_max,
    })
}

fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
