//! Connections: accepted up to a bound, each with a time limit for what the client must send or take.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt as _;

use super::door;
use super::stall::WriteStall;
use crate::access::Caller;
use crate::frontend::Context;
use crate::frontend::places::{Place, Places};
use crate::request::Origin;

/// Largest request head, in bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header lines.
const HEADERS_MAX: usize = 64;
/// A pause after a failed accept, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Who it is.
    pub(super) caller: Caller,
    /// The caller's name.
    pub(super) name: Arc<str>,
}

impl From<Caller> for Client {
    fn from(caller: Caller) -> Client {
        Client {
            name: caller.name(),
            caller,
        }
    }
}

/// A source of connections.
pub(super) trait Listener: Send + 'static {
    /// What it yields.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Waits for a connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Client)>> + Send;
}

impl Listener for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Client)> {
        let (stream, _) = tokio::net::UnixListener::accept(self).await?;
        let peer = Arc::new(andon_os::peer(&stream)?);
        Ok((stream, Caller::User(peer).into()))
    }
}

impl Listener for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Client)> {
        let (stream, _) = tokio::net::TcpListener::accept(self).await?;
        // A streamed answer is many small writes, and each of them is waited for.
        stream.set_nodelay(true)?;
        Ok((stream, Caller::Loopback.into()))
    }
}

/// Serves a listener until the daemon stops, then waits for the requests in flight.
pub(super) async fn serve<L: Listener>(listener: L, router: Router, context: Context) {
    let places = Places::new(context.current.clone(), |config| {
        config.http.connections_max
    });
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    loop {
        let accepted = tokio::select! {
            // Nobody is taken on who would not be answered any more.
            biased;
            () = context.stopping.cancelled() => break,
            accepted = next(&listener, &places) => accepted,
        };
        let (stream, client, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, inside) = (router.clone(), context.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let refused = door::let_in(&inside, &client, &request).err();
            request.extensions_mut().insert(client.clone());
            let router = router.clone();
            async move {
                Ok::<_, Infallible>(match refused {
                    Some(refused) => refused.into_response(),
                    None => infallible(router.oneshot(request.map(Body::new)).await),
                })
            }
        });
        let config = context.config();
        let write_timeout = Duration::from_millis(config.http.write_timeout_ms);
        let stream = WriteStall::new(stream, write_timeout);
        http.header_read_timeout(Duration::from_millis(config.http.header_timeout_ms));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let open = context.telemetry.connects(Origin::Http);
        tokio::spawn(async move {
            // What breaks off a connection is the client's affair; its job is cancelled by dropping it.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop((open, place));
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// Accepts once there is a place; until then the kernel's backlog holds clients back.
async fn next<L: Listener>(
    listener: &L,
    places: &Places,
) -> io::Result<(L::Stream, Client, Place)> {
    let place = places.take().await;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, place))
}
