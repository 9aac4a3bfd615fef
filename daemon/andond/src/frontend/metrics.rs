//! Figures over TCP, for collectors that cannot open a Unix socket: `GET /metrics`, and nothing else.
//!
//! Nobody is asked who they are, so nothing is served that is anybody's secret: figures have labels of our own words and
//! the names of models, never those of clients.
//!
//! Invariant: a connection serves one request, lives no longer than `[metrics] timeout-ms`, and there are no more of them
//! than `connections-max`; no body is read. The figures are encoded no more often than every [`FIGURES_KEPT`], however many
//! ask.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{self, HeaderValue};
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
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
/// How old the figures may be that are served: whoever floods this listener must not keep the other front ends waiting.
const FIGURES_KEPT: Duration = Duration::from_millis(250);

/// The figures as they were encoded last, and when.
#[derive(Debug, Default)]
struct Figures(Mutex<Option<(Instant, Bytes)>>);

impl Figures {
    fn get(&self, now: Instant, encode: impl FnOnce() -> String) -> Bytes {
        // A value is put in whole.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((at, text)) if now.saturating_duration_since(*at) < FIGURES_KEPT => text.clone(),
            _ => {
                let text = Bytes::from(encode());
                *kept = Some((now, text.clone()));
                text
            }
        }
    }
}

/// Serves until the daemon stops.
pub async fn run(context: Context, listener: TcpListener) {
    let places = Places::new(context.current.clone(), |config| {
        config.metrics.connections_max
    });
    let figures = Arc::new(Figures::default());
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
                let (context, figures) = (context.clone(), Arc::clone(&figures));
                let limit = Duration::from_millis(context.config().metrics.timeout_ms);
                connections.spawn(async move {
                    if timeout(limit, serve(&context, &figures, stream))
                        .await
                        .is_err()
                    {
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

async fn serve(context: &Context, figures: &Figures, stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(context, figures, &request))
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

fn answer(context: &Context, figures: &Figures, request: &Request<Incoming>) -> Response<Body> {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let (status, kind, text) = if request.uri().path() != "/metrics" {
        (
            StatusCode::NOT_FOUND,
            plain,
            Bytes::from_static(b"there is /metrics here, and nothing else\n"),
        )
    } else if request.method() == Method::GET || request.method() == Method::HEAD {
        let kind = HeaderValue::from_static(CONTENT_TYPE);
        let text = figures.get(Instant::now(), || context.metrics());
        (StatusCode::OK, kind, text)
    } else {
        let text = Bytes::from_static(b"only GET is a method of /metrics\n");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_encoded_once_in_a_while_however_many_ask() {
        let figures = Figures::default();
        let start = Instant::now();
        let at = |ms, text: &str| {
            let now = start + Duration::from_millis(ms);
            figures.get(now, || text.to_owned())
        };
        assert_eq!(at(0, "a"), "a");
        assert_eq!(at(249, "b"), "a");
        assert_eq!(at(250, "c"), "c");
        assert_eq!(at(499, "d"), "c");
    }
}
