//! What supervisors and monitoring ask: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::error::ApiError;
use super::{Service, json_response};
use crate::fault::{Fault, FaultCode};
use crate::frontend::metrics;
use crate::worker::WorkerState;

/// Alive: whatever is being answered makes progress.
pub(super) async fn health(State(service): State<Arc<Service>>) -> Response<Body> {
    match service.context.workers.stalled() {
        None => text(StatusCode::OK, "ok\n"),
        Some(since) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("no progress for {} s\n", since.as_secs()),
        ),
    }
}

/// Ready: a real token has been decoded and requests are taken.
pub(super) async fn ready(State(service): State<Arc<Service>>) -> Response<Body> {
    match service.context.workers.status().state {
        WorkerState::Ready => text(StatusCode::OK, "ready\n"),
        WorkerState::Loading => text(StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
        WorkerState::Waiting(why) => {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting: {why}\n"))
        }
        WorkerState::Stopping => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        WorkerState::Failed(_) => text(StatusCode::SERVICE_UNAVAILABLE, "failed\n"),
        WorkerState::Broken(why) => {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("failed: {why}\n"))
        }
    }
}

/// Ready, as llama-server says it.
pub(super) async fn health_json(
    State(service): State<Arc<Service>>,
) -> Result<Response<Body>, ApiError> {
    match service.context.workers.status().state {
        WorkerState::Ready => Ok(json_response(&json!({"status": "ok"}))),
        WorkerState::Loading => Err(unavailable("the model is being loaded")),
        WorkerState::Stopping => Err(unavailable("the daemon is stopping")),
        WorkerState::Failed(_) => Err(unavailable("the model could not be served")),
        WorkerState::Waiting(why) | WorkerState::Broken(why) => Err(unavailable(why)),
    }
}

fn unavailable(why: impl Into<String>) -> ApiError {
    Fault::new(FaultCode::Unavailable, why).into()
}

/// Everything that is counted, as Prometheus reads it.
pub(super) async fn figures(State(service): State<Arc<Service>>) -> Response<Body> {
    let mut response = text(StatusCode::OK, service.context.metrics());
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
