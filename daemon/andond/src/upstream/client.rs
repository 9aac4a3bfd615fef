//! HTTP with one upstream: what it is sent, and what its first words mean.
//!
//! Invariant: the key goes to the configured address and nowhere else, since no redirect is followed; it is in no text that is
//! made here.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
    USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;

use super::Permit;
use super::answer::FaultKind;
use super::connect::{self, ConnectFault, Connector};
use super::files;
use super::reply::Form;
use crate::config::upstream::UpstreamConfig;
use crate::credential::Unusable;

/// Largest head of a reply, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most of a reply that says why there is no answer, in bytes.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;
/// How long such a reply is waited for, once its head is there.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// Longest word of an upstream for what is wrong that is passed on.
const WORD_BYTES_MAX: usize = 48;
/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(60);
/// How often one of HTTP/2 is asked whether it is there, while it is used, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Most that a server can ask to be left alone, as with the breaker.
const RETRY_AFTER_MAX: Duration = Duration::from_millis(andon_policy::breaker::LIMITED_MS_MAX);

/// Why an upstream does not answer, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: FaultKind,
    pub(super) what: String,
    pub(super) retry_after: Option<Duration>,
    /// Whether the very same may be asked again: it cannot have begun to answer, and may do so soon.
    pub(super) is_unbegun: bool,
}

impl Refusal {
    pub(super) fn new(kind: FaultKind, what: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            what: what.into(),
            retry_after: None,
            is_unbegun: false,
        }
    }
}

/// What speaks to one upstream.
pub(super) struct Client {
    pool: Pool<Connector, Full<Bytes>>,
    chat: Uri,
    models: Uri,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// One as configured. Reads the files of its connections, and blocks as long as that takes.
    ///
    /// # Errors
    /// The key of the configuration that is of no use, and why.
    pub(super) fn new(config: &UpstreamConfig) -> Result<Client, Unusable> {
        let no_address = || Unusable::new("url", &"is not an address");
        let address = config.address().ok_or_else(no_address)?;
        let login = files::login(config)?;
        let connector = Connector::new(
            config.proxy_address().map(|proxy| (proxy, login)),
            files::tls(config)?,
            Duration::from_millis(config.connect_timeout_ms),
        );
        let pool = Pool::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .http2_max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .http2_keep_alive_interval(PING.0)
            .http2_keep_alive_timeout(PING.1)
            .build(connector);
        let at = |rest: &str| {
            let path = format!("{}{rest}", address.path().trim_end_matches('/'));
            let mut parts = address.clone().into_parts();
            parts.path_and_query = path.parse().ok();
            Uri::from_parts(parts).map_err(|_| no_address())
        };
        Ok(Client {
            pool,
            chat: at("/chat/completions")?,
            models: at("/models")?,
        })
    }

    /// Sends a question, of which the permit says that it may leave, and waits for the head of the reply.
    ///
    /// # Errors
    /// [`Refusal`], with what the upstream says of it in words that are known.
    pub(super) async fn ask(
        &self,
        _permit: &Permit,
        body: Vec<u8>,
        key: Option<&HeaderValue>,
    ) -> Result<(Form, Incoming), Refusal> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.chat.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("text/event-stream, application/json"),
        );
        let response = self.send(request, key).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(response).await);
        }
        let form = form(response.headers())?;
        Ok((form, response.into_body()))
    }

    /// Looks whether the server is there, without asking for anything that costs.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub(super) async fn probe(&self, key: Option<&HeaderValue>) -> Result<(), Refusal> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = self.models.clone();
        let response = self.send(request, key).await?;
        // Whatever it says, there it is: it may have no list of models, not for this key, or elsewhere, and yet answer. Whether
        // it does is shown by the next question. The connection is of further use only if what it says has been read.
        drop(said(response.into_body()).await);
        Ok(())
    }

    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        key: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Refusal> {
        let headers = request.headers_mut();
        if let Some(key) = key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        let agent = concat!("andond/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        self.pool
            .request(request)
            .await
            .map_err(|error| sent(&error))
    }
}

/// What went wrong before there was a head of a reply.
fn sent(error: &hyper_util::client::legacy::Error) -> Refusal {
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(fault) = source.downcast_ref::<ConnectFault>() {
            return Refusal {
                is_unbegun: matches!(fault.kind, FaultKind::Unreachable | FaultKind::Slow),
                ..Refusal::new(fault.kind, fault.what.clone())
            };
        }
        if let Some(error) = source.downcast_ref::<hyper::Error>() {
            return http(error);
        }
        next = source.source();
    }
    Refusal::new(FaultKind::Broken, "the connection breaks off")
}

/// What went wrong with HTTP itself.
pub(super) fn http(error: &hyper::Error) -> Refusal {
    if let Some(what) = connect::turned_away(error) {
        return Refusal::new(FaultKind::Denied, what);
    }
    let source = std::error::Error::source(error);
    if let Some(error) = source.and_then(|source| source.downcast_ref::<h2::Error>()) {
        return http2(error);
    }
    if error.is_parse_too_large() {
        Refusal::new(FaultKind::Endless, "the head of its reply is too long")
    } else if error.is_parse() {
        Refusal::new(FaultKind::Garbled, "it does not speak HTTP as it should")
    } else if is_nonsense(error) {
        Refusal::new(FaultKind::Garbled, "the lengths in its reply are none")
    } else if error.is_timeout() {
        Refusal::new(FaultKind::Slow, "the connection is silent")
    } else if error.is_incomplete_message() {
        Refusal::new(
            FaultKind::Broken,
            "the connection ends before the reply does",
        )
    } else {
        Refusal::new(FaultKind::Broken, "the connection breaks off")
    }
}

/// What went wrong with HTTP/2.
fn http2(error: &h2::Error) -> Refusal {
    use h2::Reason;
    match error.reason() {
        // The question was not looked at.
        Some(Reason::REFUSED_STREAM | Reason::ENHANCE_YOUR_CALM) if error.is_remote() => Refusal {
            is_unbegun: true,
            ..Refusal::new(FaultKind::Busy, "it takes no more for now")
        },
        Some(_) if error.is_library() => {
            Refusal::new(FaultKind::Garbled, "it does not speak HTTP/2 as it should")
        }
        Some(Reason::NO_ERROR) if error.is_go_away() => {
            Refusal::new(FaultKind::Broken, "it ends the connection")
        }
        Some(_) => Refusal::new(FaultKind::Broken, "it breaks off"),
        None => Refusal::new(FaultKind::Broken, "the connection breaks off"),
    }
}

/// Whether what was read could not be taken apart, as a chunk whose length is no number.
fn is_nonsense(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let kind = source
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    matches!(
        kind,
        Some(std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData)
    )
}

/// How the reply is written, by its head.
fn form(headers: &HeaderMap) -> Result<Form, Refusal> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get(CONTENT_ENCODING).is_none_or(plain) {
        let what = "its reply is compressed, which nobody asked for";
        return Err(Refusal::new(FaultKind::Garbled, what));
    }
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = kind
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    match kind.trim().to_ascii_lowercase().as_str() {
        "text/event-stream" => Ok(Form::Events),
        "application/json" => Ok(Form::Whole),
        _ => Err(Refusal::new(
            FaultKind::Garbled,
            "its reply is neither a stream of events nor JSON",
        )),
    }
}

/// What a status other than 200 means.
async fn refused(response: Response<Incoming>) -> Refusal {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let code = status.as_u16();
    let (kind, is_unbegun) = match code {
        429 => (FaultKind::Busy, true),
        503 if retry_after.is_some() => (FaultKind::Busy, true),
        503 => (FaultKind::Failed, true),
        300..=399 => (FaultKind::Redirected, false),
        401 | 403 | 407 => (FaultKind::Denied, false),
        408 => (FaultKind::Slow, false),
        400..=499 => (FaultKind::Rejected, false),
        // It may fail with this very question, here and everywhere.
        500..=599 => (FaultKind::Failed, false),
        _ => (FaultKind::Garbled, false),
    };
    let mut what = match kind {
        FaultKind::Busy => "it takes no more for now",
        FaultKind::Redirected => "it sends elsewhere, where nobody follows",
        FaultKind::Denied => "it does not take the key",
        FaultKind::Slow => "it says that it waited too long",
        FaultKind::Rejected => "it does not take the question",
        FaultKind::Failed => "it says that it has failed",
        _ => "its status is none that it should have",
    }
    .to_owned();
    what.push_str(&format!(" (status {code}"));
    if kind != FaultKind::Redirected
        && let Some(word) = said(response.into_body()).await
    {
        what.push_str(&format!(", {word}"));
    }
    what.push(')');
    Refusal {
        retry_after,
        is_unbegun,
        ..Refusal::new(kind, what)
    }
}

#[derive(Deserialize)]
struct Said {
    error: SaidError,
}

#[derive(Deserialize)]
struct SaidError {
    code: Option<serde_json::Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// The word by which a reply says what is wrong, as programs know it: small letters and underscores, which neither a key nor the
/// words of a question are.
async fn said(mut body: Incoming) -> Option<String> {
    let reading = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let Some(data) = frame.ok()?.into_data().ok() else {
                continue;
            };
            if bytes.len() + data.len() > REFUSAL_BYTES_MAX {
                return None;
            }
            bytes.extend_from_slice(&data);
        }
        Some(bytes)
    };
    let bytes = tokio::time::timeout(REFUSAL_PATIENCE, reading)
        .await
        .ok()??;
    let said: Said = serde_json::from_slice(&bytes).ok()?;
    let code = said.error.code.as_ref().and_then(|code| code.as_str());
    let word = [code, said.error.kind.as_deref()]
        .into_iter()
        .flatten()
        .find(|word| is_word(word))?;
    Some(word.to_owned())
}

/// Whether a text is a name of a fault as programs have them.
fn is_word(text: &str) -> bool {
    text.len() <= WORD_BYTES_MAX
        && text.contains('_')
        && text.split('_').all(|part| (1..=16).contains(&part.len()))
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// What the server says about when to come again: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() => {
            RETRY_AFTER_MAX
        }
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            date.duration_since(std::time::SystemTime::now())
                .unwrap_or_default()
        }
    };
    Some(after.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_in_seconds_or_by_a_date_when_to_come_again() {
        let said = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(value).expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(said("7"), Some(Duration::from_secs(7)));
        assert_eq!(said("999999999999999999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(said("86400"), Some(RETRY_AFTER_MAX));
        assert_eq!(said("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        let soon = std::time::SystemTime::now() + Duration::from_secs(30);
        let after = said(&httpdate::fmt_http_date(soon)).expect("a date");
        assert!((28..=30).contains(&after.as_secs()), "{after:?}");
        for nothing in ["", "soon", "-1", "1.5"] {
            assert_eq!(said(nothing), None, "{nothing}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn words_for_what_is_wrong_are_passed_on_and_nothing_else_is() {
        for word in [
            "rate_limit_exceeded",
            "insufficient_quota",
            "model_not_found",
        ] {
            assert!(is_word(word), "{word}");
        }
        for text in [
            "sk-abcdef",
            "abcdefghijklmnop",
            "sk_live_51H8",
            "Incorrect API key",
            "",
            "_",
            "a__b",
            "sk_abcdefghijklmnopqrstuvwxyzabcdefgh",
        ] {
            assert!(!is_word(text), "{text}");
        }
    }
}
