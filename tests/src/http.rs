//! A plain HTTP/1.1 client over a Unix socket, for tests and the demo: one connection a request unless
//! it is told to keep one ([`Client::connect`]), blocking, with the time at which each server-sent event
//! arrived.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// Longest wait for the next piece of an answer.
pub const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// Speaks to one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none; the error quotes the body.
    pub fn json(&self) -> io::Result<Value> {
        serde_json::from_slice(&self.body).map_err(|error| {
            io::Error::other(format!("{error} in {} {:?}", self.status, self.text()))
        })
    }
}

impl Client {
    /// A client of the socket at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Client {
        Client {
            socket: path.to_path_buf(),
        }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, path: &str) -> io::Result<Reply> {
        self.send(Method::GET, path, &[], String::new())
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn post(&self, path: &str, body: &Value) -> io::Result<Reply> {
        self.send(
            Method::POST,
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
    }

    /// Any request, answered as a whole.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> io::Result<Reply> {
        let (runtime, response) = self.open(method, path, headers, body)?;
        let (parts, incoming) = response.into_parts();
        let body = runtime.block_on(within(async {
            incoming.collect().await.map_err(io::Error::other)
        }))?;
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    /// `POST path` with a JSON body, answered event by event.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn events(&self, path: &str, body: &Value) -> io::Result<Events> {
        let sent = Instant::now();
        let headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
        ];
        let (runtime, response) = self.open(Method::POST, path, &headers, body.to_string())?;
        let (parts, incoming) = response.into_parts();
        Ok(Events {
            status: parts.status.as_u16(),
            headers: parts.headers,
            runtime,
            incoming,
            buffer: Vec::new(),
            sent,
        })
    }

    /// A connection for one request after the other.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(&self) -> io::Result<Connection> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let sender = runtime.block_on(within(async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (sender, connection) = handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(sender)
        }))?;
        Ok(Connection { runtime, sender })
    }

    fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> io::Result<(Runtime, Response<Incoming>)> {
        let Connection {
            runtime,
            mut sender,
        } = self.connect()?;
        let request = request(method, path, headers, body)?;
        let response = runtime.block_on(within(async {
            sender.send_request(request).await.map_err(io::Error::other)
        }))?;
        Ok((runtime, response))
    }
}

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// `POST path` with a JSON body, answered as a whole.
    ///
    /// # Errors
    /// When there is no answer, or the connection is not kept.
    pub fn post(&mut self, path: &str, body: &Value) -> io::Result<Reply> {
        let headers = [("content-type", "application/json")];
        let request = request(Method::POST, path, &headers, body.to_string())?;
        let sender = &mut self.sender;
        self.runtime.block_on(within(async {
            sender.ready().await.map_err(io::Error::other)?;
            let response = sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?;
            let (parts, incoming) = response.into_parts();
            let body = incoming.collect().await.map_err(io::Error::other)?;
            Ok(Reply {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.to_bytes(),
            })
        }))
    }
}

fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> io::Result<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(READ_TIMEOUT, work)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Time from sending the request to receiving the event.
    pub after: Duration,
    /// Its data.
    pub data: String,
}

/// The events of one answer; dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    runtime: Runtime,
    incoming: Incoming,
    buffer: Vec<u8>,
    sent: Instant,
}

impl Events {
    /// What is left of the body, for an answer that is no event stream.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn rest(mut self) -> io::Result<String> {
        while let Some(bytes) = self.receive()? {
            self.buffer.extend(bytes);
        }
        Ok(String::from_utf8_lossy(&self.buffer).into_owned())
    }

    fn receive(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let frame = self.runtime.block_on(within(async {
                self.incoming
                    .frame()
                    .await
                    .transpose()
                    .map_err(io::Error::other)
            }))?;
            match frame.map(hyper::body::Frame::into_data) {
                None => return Ok(None),
                Some(Ok(bytes)) => return Ok(Some(bytes)),
                Some(Err(_trailers)) => {}
            }
        }
    }

    /// The data of the first whole event in the buffer; comments and other fields are passed over.
    fn parse(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let data: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("data:"))
                .map(str::trim_start)
                .collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}

impl Iterator for Events {
    type Item = io::Result<Event>;

    fn next(&mut self) -> Option<io::Result<Event>> {
        loop {
            if let Some(data) = self.parse() {
                return Some(Ok(Event {
                    after: self.sent.elapsed(),
                    data,
                }));
            }
            match self.receive() {
                Ok(Some(bytes)) => self.buffer.extend(bytes),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
