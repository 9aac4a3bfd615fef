//! A server that upstreams are tested against: it speaks real TCP and real TLS, notes what it is sent, and does with each request
//! what the test says, down to single bytes and to breaking the connection.

mod http2;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, SupportedProtocolVersion};

pub use http2::{Frame, data, frame, head};

/// Largest request that is read, in bytes.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One thing that is done for a request.
#[derive(Debug, Clone)]
pub enum Step {
    /// Nothing, for so long.
    Wait(Duration),
    /// These bytes are sent.
    Send(Vec<u8>),
    /// These bytes are sent again and again, with so long between, until nobody takes them.
    Forever(Vec<u8>, Duration),
    /// The connection is reset.
    Reset,
    /// Nothing more, and the connection stays.
    Hang,
    /// The connection is closed. Without, it stays for further requests.
    Close,
}

/// What is done with a connection before there is a request on it.
#[derive(Debug, Clone)]
pub enum Greeting {
    /// TCP in the clear.
    Plain,
    /// TLS with a certificate and its key.
    Tls(Arc<ServerConfig>),
    /// TLS that agrees on HTTP/2, of which scripts say each byte: see [`frames`].
    Frames(Arc<ServerConfig>),
    /// In place of TLS, these bytes.
    Bytes(Vec<u8>),
    /// Nothing, and the connection stays.
    Silence,
    /// It is closed at once.
    Close,
}

/// A request that came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection it came by, from 0.
    pub connection: usize,
    /// The first line, without its end; of HTTP/2 method and path, in the same form.
    pub line: String,
    /// The headers, as they were sent; of HTTP/2 with names in small letters.
    pub head: String,
    /// The body, if it is JSON.
    pub body: Value,
    /// The certificate that the connection was made with, as DER, if it was asked for one.
    pub certificate: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    /// What is done with each request; the last for all that follow.
    scripts: Vec<Vec<Step>>,
    seen: Vec<Seen>,
    connections: usize,
    /// Connections that were ended from the other side while something was still to be said.
    left: usize,
}

/// The server. It ends with this.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// With this goes whoever accepts connections.
    _ended: tokio::sync::oneshot::Sender<()>,
}

impl Fake {
    /// One that greets so, and does with each request what the scripts say, in turn; the last holds for all that follow.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(greeting: Greeting, scripts: Vec<Vec<Step>>) -> io::Result<Fake> {
        let (fake, accepting) = Fake::at(Ipv4Addr::LOCALHOST, greeting, scripts).await?;
        tokio::spawn(accepting);
        Ok(fake)
    }

    /// One that listens on this address, on a thread of its own, for tests that know nothing of tokio.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn beside(
        address: Ipv4Addr,
        greeting: Greeting,
        scripts: Vec<Vec<Step>>,
    ) -> io::Result<Fake> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (fake, accepting) = runtime.block_on(Fake::at(address, greeting, scripts))?;
        std::thread::spawn(move || runtime.block_on(accepting));
        Ok(fake)
    }

    async fn at(
        address: Ipv4Addr,
        greeting: Greeting,
        scripts: Vec<Vec<Step>>,
    ) -> io::Result<(Fake, impl Future<Output = ()> + Send + 'static)> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            scripts,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let accepting = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut state = lock(&shared);
                    state.connections += 1;
                    state.connections - 1
                };
                tokio::spawn(connection(
                    stream,
                    number,
                    greeting.clone(),
                    Arc::clone(&shared),
                ));
            }
        };
        let accepting = async move {
            tokio::select! {
                () = accepting => {}
                _ = end => {}
            }
        };
        let fake = Fake {
            address,
            state,
            _ended: ended,
        };
        Ok((fake, accepting))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another script for what follows.
    pub fn now(&self, script: Vec<Step>) {
        lock(&self.state).scripts = vec![script];
    }

    /// The requests that came in.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).seen.clone()
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.state).connections
    }

    /// How many were ended from the other side while something was still to be said.
    #[must_use]
    pub fn left(&self) -> usize {
        lock(&self.state).left
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TLS with this certificate and key, which offers these protocols.
///
/// # Errors
/// When the files do not hold what they should.
pub fn tls(certificate: &Path, key: &Path, protocols: &[&[u8]]) -> io::Result<Greeting> {
    let config = configured(certificate, key, None, rustls::DEFAULT_VERSIONS, protocols)?;
    Ok(Greeting::Tls(Arc::new(config)))
}

/// TLS of these versions with this certificate and key, for those who show a certificate of this authority.
///
/// # Errors
/// When the files do not hold what they should.
pub fn tls_among(
    certificate: &Path,
    key: &Path,
    authority: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<Greeting> {
    let config = configured(certificate, key, Some(authority), versions, &[])?;
    Ok(Greeting::Tls(Arc::new(config)))
}

/// TLS with this certificate and key, and HTTP/2 of which each frame is said by the scripts. A script is done with each request
/// once its head is there, and the settings with which a connection begins are part of it: [`frame`], [`head`], [`data`].
///
/// # Errors
/// When the files do not hold what they should.
pub fn frames(certificate: &Path, key: &Path) -> io::Result<Greeting> {
    let config = configured(certificate, key, None, rustls::DEFAULT_VERSIONS, &[b"h2"])?;
    Ok(Greeting::Frames(Arc::new(config)))
}

fn configured(
    certificate: &Path,
    key: &Path,
    authority: Option<&Path>,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&[u8]],
) -> io::Result<ServerConfig> {
    let chain = |path: &Path| {
        let found = CertificateDer::pem_file_iter(path).map_err(io::Error::other)?;
        found
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)
    };
    let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?;
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(chain(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(io::Error::other)?)
        }
    };
    let mut config = builder
        .with_single_cert(chain(certificate)?, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

async fn connection(
    mut stream: TcpStream,
    number: usize,
    greeting: Greeting,
    state: Arc<Mutex<State>>,
) {
    match greeting {
        Greeting::Plain => serve(stream, number, &state).await,
        Greeting::Tls(config) => {
            let accepted = TlsAcceptor::from(config)
                .accept(stream)
                .into_fallible()
                .await;
            let stream = match accepted {
                Ok(stream) => stream,
                Err((_, mut stream)) => {
                    // Closed with something unread the connection would be reset, and the alert lost.
                    let rest = async { while let Ok(1..) = stream.read(&mut [0; 1024]).await {} };
                    drop(tokio::time::timeout(Duration::from_secs(2), rest).await);
                    return;
                }
            };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve_http2(stream, number, state).await;
            } else {
                serve(stream, number, &state).await;
            }
        }
        Greeting::Frames(config) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                http2::serve(stream, number, &state).await;
            }
        }
        Greeting::Bytes(bytes) => {
            drop(stream.write_all(&bytes).await);
            // Whoever is there may still be talking.
            sleep(Duration::from_secs(60)).await;
        }
        Greeting::Silence => sleep(Duration::from_secs(3600)).await,
        Greeting::Close => {}
    }
}

/// What can be broken off.
trait Breakable: AsyncRead + AsyncWrite + Unpin {
    fn break_off(&self);

    /// The certificate that it was made with.
    fn certificate(&self) -> Option<Vec<u8>> {
        None
    }
}

impl Breakable for TcpStream {
    fn break_off(&self) {
        drop(self.set_zero_linger());
    }
}

impl Breakable for tokio_rustls::server::TlsStream<TcpStream> {
    fn break_off(&self) {
        self.get_ref().0.break_off();
    }

    fn certificate(&self) -> Option<Vec<u8>> {
        let chain = self.get_ref().1.peer_certificates()?;
        Some(chain.first()?.to_vec())
    }
}

async fn serve(mut stream: impl Breakable, number: usize, state: &Mutex<State>) {
    while let Some((line, head, body)) = request(&mut stream).await {
        let script = {
            let mut state = lock(state);
            state.seen.push(Seen {
                connection: number,
                line,
                head,
                body,
                certificate: stream.certificate(),
            });
            next(&mut state)
        };
        for step in script {
            let outcome = match step {
                Step::Wait(pause) => {
                    sleep(pause).await;
                    Ok(())
                }
                Step::Send(bytes) => stream.write_all(&bytes).await,
                Step::Forever(bytes, pause) => Err(forever(&mut stream, &bytes, pause).await),
                Step::Reset => {
                    stream.break_off();
                    return;
                }
                Step::Hang => {
                    // Until it is closed from the other side.
                    drop(stream.read(&mut [0]).await);
                    Err(io::ErrorKind::BrokenPipe.into())
                }
                Step::Close => {
                    drop(stream.shutdown().await);
                    return;
                }
            };
            if outcome.is_err() {
                lock(state).left += 1;
                return;
            }
        }
    }
}

/// Sends the same again and again, until nobody takes it.
async fn forever(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    pause: Duration,
) -> io::Error {
    loop {
        let sent = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        if let Err(error) = sent.await {
            return error;
        }
        sleep(pause).await;
    }
}

fn next(state: &mut State) -> Vec<Step> {
    if state.scripts.len() > 1 {
        state.scripts.remove(0)
    } else {
        state.scripts.first().cloned().unwrap_or_default()
    }
}

async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, String, Value)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes.get(..end)?.to_vec()).ok()?;
    let mut body = bytes.split_off(end + 4);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.unwrap_or(0).min(REQUEST_BYTES_MAX);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    let line = head.lines().next().unwrap_or_default().to_owned();
    Some((
        line,
        head,
        serde_json::from_slice(&body).unwrap_or(Value::Null),
    ))
}

/// HTTP/2, where only what is sent of a script counts, as the body of a stream of events.
async fn serve_http2(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    number: usize,
    state: Arc<Mutex<State>>,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let state = Arc::clone(&state);
        async move {
            let (parts, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let mut head = String::new();
            for (name, value) in &parts.headers {
                head.push_str(&format!(
                    "{name}: {}\r\n",
                    String::from_utf8_lossy(value.as_bytes())
                ));
            }
            let script = {
                let mut state = lock(&state);
                state.seen.push(Seen {
                    connection: number,
                    line: format!("{} {} HTTP/2", parts.method, parts.uri.path()),
                    head,
                    body: serde_json::from_slice(&body).unwrap_or(Value::Null),
                    certificate: None,
                });
                next(&mut state)
            };
            let mut said = Vec::new();
            for step in script {
                match step {
                    Step::Send(bytes) => said.extend(bytes),
                    Step::Wait(pause) => sleep(pause).await,
                    _ => {}
                }
            }
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(Full::new(Bytes::from(said)))
        }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    drop(
        builder
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

/// The head of a stream of events without a length, after which the connection is closed.
#[must_use]
pub fn events_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n".to_vec()
}

/// An event with these data.
#[must_use]
pub fn event(data: &Value) -> Vec<u8> {
    format!("data: {data}\n\n").into_bytes()
}

/// A piece of text.
#[must_use]
pub fn text(content: &str) -> Vec<u8> {
    event(&json!({"choices": [{"index": 0, "delta": {"content": content}}]}))
}

/// The end of an answer, what it took, and the end of the stream.
#[must_use]
pub fn end(finish: &str) -> Vec<u8> {
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5}});
    [event(&finish), event(&usage), b"data: [DONE]\n\n".to_vec()].concat()
}

/// A whole reply with these pieces of text, in chunks, after which the connection is of further use.
#[must_use]
pub fn good(pieces: &[&str]) -> Vec<Step> {
    let mut stream: Vec<Vec<u8>> = pieces.iter().map(|piece| text(piece)).collect();
    stream.push(end("stop"));
    let mut bytes =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for chunk in stream {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    vec![Step::Send(bytes)]
}

/// A reply without an answer: status, further lines of its head each with its end, and a body.
#[must_use]
pub fn status(status: &str, head: &str, body: &str) -> Vec<Step> {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{head}\r\n{body}",
        body.len()
    );
    vec![Step::Send(text.into_bytes())]
}

/// What a proxy does with a CONNECT.
#[derive(Debug, Clone)]
pub enum Passing {
    /// It connects to this address, whatever the name.
    To(SocketAddr),
    /// It does so for who has this line in his request, and asks others who they are.
    For(String, SocketAddr),
    /// It says this.
    Says(Vec<u8>),
    /// It says nothing.
    Silence,
}

/// A proxy. It ends with this.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// One that does this.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(passing: Passing) -> io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (passing, noted) = (passing.clone(), Arc::clone(&noted));
                tokio::spawn(async move {
                    let Some((line, head, _)) = request(&mut stream).await else {
                        return;
                    };
                    noted
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                    let passing = match passing {
                        Passing::For(line, address) if head.lines().any(|one| one == line) => {
                            Passing::To(address)
                        }
                        Passing::For(..) => Passing::Says(
                            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_vec(),
                        ),
                        passing => passing,
                    };
                    match passing {
                        Passing::To(address) | Passing::For(_, address) => {
                            let Ok(mut other) = TcpStream::connect(address).await else {
                                return;
                            };
                            let said = stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await;
                            if said.is_ok() {
                                drop(copy_bidirectional(&mut stream, &mut other).await);
                            }
                        }
                        Passing::Says(bytes) => drop(stream.write_all(&bytes).await),
                        Passing::Silence => sleep(Duration::from_secs(3600)).await,
                    }
                });
            }
        });
        Ok(Proxy {
            address,
            asked,
            task: task.abort_handle(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first lines of what it was asked.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
