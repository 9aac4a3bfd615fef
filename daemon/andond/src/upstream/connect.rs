//! A connection to an upstream: its name looked up, TCP, a tunnel through the proxy, TLS; each with a word of its own for what
//! goes wrong, and all within one time.
//!
//! Invariant: nothing of the environment decides where a connection goes, and no certificate is taken that does not come from the
//! authorities of the configuration.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;
use tower::Service;

use super::answer::FaultKind;

/// How long a connection is silent before TCP asks whether the other end is there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// What HTTP/2 is called when TLS agrees on a protocol.
pub(super) const HTTP2: &[u8] = b"h2";

/// Why there is no connection. In the daemon's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConnectFault {
    pub(super) kind: FaultKind,
    pub(super) what: String,
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ConnectFault {}

impl ConnectFault {
    fn unreachable(what: impl Into<String>) -> ConnectFault {
        ConnectFault {
            kind: FaultKind::Unreachable,
            what: what.into(),
        }
    }
}

/// Makes connections to one upstream.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    /// Where it is, and who connects.
    proxy: Option<(Uri, Option<HeaderValue>)>,
    tls: Option<Arc<rustls::ClientConfig>>,
    patience: Duration,
}

impl Connector {
    /// Connections through `proxy`, which is told who connects if it has to know, encrypted as `tls` says, that are there within
    /// `patience`.
    pub(super) fn new(
        proxy: Option<(Uri, Option<HeaderValue>)>,
        tls: Option<Arc<rustls::ClientConfig>>,
        patience: Duration,
    ) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        // Shared among the addresses of a name, so that a dead one does not hide the others.
        tcp.set_connect_timeout(Some(patience.mul_f32(0.8)));
        Connector {
            tcp,
            proxy,
            tls,
            patience,
        }
    }

    async fn connect(mut self, to: Uri) -> Result<Stream, ConnectFault> {
        let patience = self.patience;
        let connecting = async {
            let stream = match self.proxy.take() {
                None => self
                    .tcp
                    .call(to.clone())
                    .await
                    .map_err(|error| reached(&error))?,
                Some((proxy, login)) => {
                    let to = with_port(&to)?;
                    let has_login = login.is_some();
                    let tunnel = Tunnel::new(proxy, self.tcp);
                    let mut tunnel = match login {
                        Some(login) => tunnel.with_auth(login),
                        None => tunnel,
                    };
                    let tunnel = tunnel.call(to).await;
                    tunnel.map_err(|error| tunnelled(&error, has_login))?
                }
            };
            let Some(tls) = self.tls else {
                return Ok(Stream::Plain(stream));
            };
            let host = to.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| ConnectFault::unreachable("the host is not a name"))?;
            let stream = TlsConnector::from(tls).connect(name, stream.into_inner());
            let stream = stream.await.map_err(|error| encrypted(&error))?;
            Ok(Stream::Encrypted(Box::new(TokioIo::new(stream))))
        };
        match tokio::time::timeout(patience, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ConnectFault {
                kind: FaultKind::Slow,
                what: format!("no connection within {} ms", patience.as_millis()),
            }),
        }
    }
}

/// With its port said, which a tunnel takes for that of HTTPS otherwise.
fn with_port(to: &Uri) -> Result<Uri, ConnectFault> {
    let host = to.host().unwrap_or_default();
    let port = crate::config::upstream::port(to);
    let uri = Uri::builder()
        .scheme("http")
        .authority(format!("{host}:{port}"))
        .path_and_query("/");
    uri.build()
        .map_err(|_| ConnectFault::unreachable("the host is not a name"))
}

/// The first error of the system that is behind another.
fn of_system<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

fn reached(error: &(dyn std::error::Error + 'static)) -> ConnectFault {
    let is_lookup = error.to_string().contains("dns");
    let said = of_system(error).map(io::Error::kind);
    ConnectFault::unreachable(match (is_lookup, said) {
        (true, _) => "its name cannot be looked up".to_owned(),
        (false, Some(kind)) => format!("it cannot be connected to: {kind}"),
        (false, None) => "it cannot be connected to".to_owned(),
    })
}

/// The library does not name the type of these errors; what lies behind one and its own words tell them apart.
fn tunnelled(error: &(dyn std::error::Error + 'static), has_login: bool) -> ConnectFault {
    match error.source() {
        Some(source) => {
            let fault = reached(source);
            ConnectFault::unreachable(format!("the proxy: {fault}"))
        }
        None if error.to_string().contains("authorization") => ConnectFault {
            kind: FaultKind::Denied,
            what: if has_login {
                "the proxy does not take its login".to_owned()
            } else {
                "the proxy wants to know who connects".to_owned()
            },
        },
        None => ConnectFault::unreachable("the proxy does not connect to it"),
    }
}

/// What the server says about the certificate that it is shown, or that it is not shown one, if that is behind an error. With TLS
/// 1.3 it says so after the handshake has ended for us.
pub(super) fn turned_away(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use rustls::AlertDescription as Alert;
    let io = of_system(error)?;
    let inner = io.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = inner else {
        return None;
    };
    match alert {
        Alert::CertificateRequired => Some("it wants to be shown a certificate"),
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::DecryptError
        | Alert::AccessDenied => Some("it does not take the certificate that it is shown"),
        _ => None,
    }
}

/// Errors of TLS are told by what the library calls them; what the other end says of itself stays out.
fn encrypted(error: &io::Error) -> ConnectFault {
    use rustls::{CertificateError, Error};
    if let Some(what) = turned_away(error) {
        return ConnectFault {
            kind: FaultKind::Denied,
            what: what.to_owned(),
        };
    }
    let library = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<Error>());
    let what = match library {
        Some(Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: is the clock right?"
            }
            CertificateError::UnknownIssuer => "its certificate is of an unknown authority",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name"
            }
            CertificateError::Revoked => "its certificate is revoked",
            _ => "its certificate is not in order",
        },
        Some(Error::AlertReceived(_)) => "it refuses to encrypt",
        Some(Error::NoApplicationProtocol) => "it does not speak HTTP over TLS",
        Some(_) => "it does not speak TLS as it should",
        None => {
            return ConnectFault::unreachable(format!(
                "the connection breaks off while it is encrypted: {}",
                error.kind()
            ));
        }
    };
    ConnectFault {
        kind: FaultKind::Untrusted,
        what: what.to_owned(),
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectFault;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectFault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

/// A connection.
pub(super) enum Stream {
    /// In the clear.
    Plain(TokioIo<TcpStream>),
    /// Encrypted.
    Encrypted(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Encrypted(stream)
                if stream.inner().get_ref().1.alpn_protocol() == Some(HTTP2) =>
            {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Encrypted(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
