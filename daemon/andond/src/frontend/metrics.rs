//! Figures over TCP, for collectors that cannot open a Unix socket: `GET /metrics`, and nothing else.
//!
//! Nobody is asked who they are, so nothing is served that is anybody's secret: figures have labels of our own words and
//! the names of models, never those of clients.
//!
//! Invariant: a connection serves one request, lives no longer than `[metrics] timeout-ms`, and there are no more of them
//! than `connections-max`; no body is read.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{self, HeaderValue};
use axum::http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Context;
use super::places::Places;

/// The media type of the figures.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Largest request head, in bytes: the least that hyper takes as a bound.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most header lines.
const HEADERS_MAX: usize = 32;
/// A pause after a failed accept, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the daemon stops.
pub async fn run(context: Context, listener: TcpListener) {
    let places = Places::new(context.current.clone(), |config| {
        config.metrics.connections_max
    });
    // Ended with this future: nobody waits for figures of a daemon that stops.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accept = async {
            let place = places.take().await;
            let (stream, _) = listener.accept().await?;
            Ok::<_, std::io::Error>((stream, place))
        };
        let accepted = tokio::select! {
            () = context.stopping.cancelled() => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let context = context.clone();
                let limit = Duration::from_millis(context.config().metrics.timeout_ms);
                connections.spawn(async move {
                    if timeout(limit, serve(&context, stream)).await.is_err() {
                        tracing::debug!("a connection for figures took too long");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(context: &Context, stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(context, &request))
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for figures ended early");
    }
}

fn answer(context: &Context, request: &Request<Incoming>) -> Response<Body> {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let (status, kind, text) = if request.uri().path() != "/metrics" {
        (
            StatusCode::NOT_FOUND,
            plain,
            "there is /metrics here, and nothing else\n".to_owned(),
        )
    } else if request.method() == Method::GET || request.method() == Method::HEAD {
        let kind = HeaderValue::from_static(CONTENT_TYPE);
        (StatusCode::OK, kind, context.metrics())
    } else {
        let text = "only GET is a method of /metrics\n".to_owned();
        (StatusCode::METHOD_NOT_ALLOWED, plain, text)
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
