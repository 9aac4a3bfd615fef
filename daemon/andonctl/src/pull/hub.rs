//! The model hub over HTTP: what a repository has, and its files from any byte on.
//!
//! Redirects are followed here rather than by the HTTP client, because the first answer carries the file's
//! digest and because the token must not travel to the host that stores the bytes.
//!
//! Invariant: the token is sent to the endpoint's own host only, and over an unencrypted connection only
//! to this machine; what the hub says of files is taken only if it can be a path.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use andon_wire::manifest::Digest;
use serde::Deserialize;
use ureq::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderName, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::reference;
use super::select::Entry;
use super::source::{Listing, Opened, Trouble};
use crate::failure::Failure;

/// Where models come from unless another endpoint is named.
pub(crate) const ENDPOINT_DEFAULT: &str = "https://huggingface.co";

/// Longest time until a connection stands, and until an answer begins.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence in a body; then the download goes on with a new connection.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Most bytes of a listing: repositories with thousands of files stay far below it.
const LISTING_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most files of a listing.
const FILES_MAX: usize = 100_000;
/// Most redirects from a file's address to its bytes.
const HOPS_MAX: usize = 6;
/// Longest wait that a hub may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// A hub, or a mirror of one.
pub(crate) struct Hub {
    agent: Agent,
    endpoint: String,
    host: String,
    token: Option<String>,
}

/// What the hub says of a repository at a revision.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Card {
    /// A word, or now and then a list.
    #[serde(default)]
    license: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

impl Hub {
    pub(crate) fn new(endpoint: &str, token: Option<String>) -> Result<Self, Failure> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| Failure::Usage(format!("the endpoint {endpoint:?}: {error}")))?;
        let host = origin(&uri).ok_or_else(|| {
            Failure::Usage(format!(
                "the endpoint {endpoint:?} is neither an http(s) address nor a folder"
            ))
        })?;
        let private = uri.scheme_str() == Some("https")
            || uri
                .host()
                .is_some_and(|host| matches!(host, "127.0.0.1" | "localhost" | "[::1]"));
        if token.is_some() && !private {
            return Err(Failure::Usage(format!(
                "the token is not sent to {endpoint} unencrypted; use https, or unset HF_TOKEN"
            )));
        }
        // The machine's own certificates come first: networks of plants have authorities of their own.
        let native = rustls_native_certs::load_native_certs().certs;
        let roots = if native.is_empty() {
            RootCerts::WebPki
        } else {
            RootCerts::Specific(Arc::new(
                native
                    .iter()
                    .map(|certificate| Certificate::from_der(certificate).to_owned())
                    .collect(),
            ))
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(SILENCE_MAX))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("andonctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint,
            host,
            token,
        })
    }

    /// What `repository` has at `revision`.
    pub(crate) fn list(&self, repository: &str, revision: &str) -> Result<Listing, Trouble> {
        let url = format!(
            "{}/api/models/{repository}/revision/{}?blobs=true",
            self.endpoint,
            revision.replace('/', "%2F")
        );
        let (mut response, _) = self.get(&url, None)?;
        self.judge(&response, repository, revision, None)?;
        let mut text = Vec::new();
        response
            .body_mut()
            .with_config()
            .limit(LISTING_BYTES_MAX)
            .reader()
            .read_to_end(&mut text)
            .map_err(|error| Trouble::passing(format!("the listing of {repository}: {error}")))?;
        let info: Info = serde_json::from_slice(&text).map_err(|error| {
            Trouble::Final(Failure::Hub(format!(
                "{} did not answer with a listing of {repository}: {error}",
                self.endpoint
            )))
        })?;
        let license = info
            .card
            .and_then(|card| card.license)
            .and_then(|license| match license {
                serde_json::Value::String(word) => Some(word),
                serde_json::Value::Array(words) => words.first()?.as_str().map(str::to_owned),
                _ => None,
            })
            .or_else(|| {
                info.tags
                    .iter()
                    .find_map(|tag| tag.strip_prefix("license:").map(str::to_owned))
            });
        let files = info
            .siblings
            .into_iter()
            .take(FILES_MAX)
            .filter(|file| reference::is_path(&file.rfilename))
            .map(|file| Entry {
                bytes: file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size),
                sha256: file
                    .lfs
                    .and_then(|lfs| lfs.sha256)
                    .map(|digest| digest.to_ascii_lowercase()),
                path: file.rfilename,
            })
            .collect();
        Ok(Listing {
            revision: info
                .sha
                .filter(|sha| reference::is_path(sha))
                .unwrap_or_else(|| revision.to_owned()),
            license,
            files,
        })
    }

    /// A file's bytes from `from` on.
    pub(crate) fn open(
        &self,
        repository: &str,
        revision: &str,
        file: &Entry,
        from: u64,
    ) -> Result<Opened, Trouble> {
        let url = format!(
            "{}/{repository}/resolve/{}/{}",
            self.endpoint,
            revision.replace('/', "%2F"),
            file.path.replace('+', "%2B")
        );
        let (response, linked) = self.get(&url, Some(from))?;
        let status = response.status();
        let headers = response.headers();
        let start = match status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => match range_start(headers) {
                Some(start) if start == from => from,
                _ => {
                    return Err(Trouble::passing(format!(
                        "{} sent another part of {} than was asked for",
                        self.host, file.path
                    )));
                }
            },
            // Asked for what comes after the last byte.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Ok(Opened {
                    reader: Box::new(std::io::empty()),
                    start: from,
                    bytes_total: linked.bytes.or(range_total(headers)),
                    sha256: linked.sha256,
                });
            }
            _ => {
                self.judge(&response, repository, revision, Some(&file.path))?;
                0
            }
        };
        let length = response.body().content_length();
        let bytes_total = linked
            .bytes
            .or_else(|| range_total(headers))
            .or_else(|| length.map(|length| start.saturating_add(length)));
        Ok(Opened {
            reader: Box::new(
                response
                    .into_body()
                    .into_with_config()
                    .limit(u64::MAX)
                    .reader(),
            ),
            start,
            bytes_total,
            sha256: linked.sha256,
        })
    }

    /// `GET url`, redirects followed, from a byte on if one is given.
    fn get(&self, url: &str, from: Option<u64>) -> Result<(Response<Body>, Linked), Trouble> {
        let mut linked = Linked::default();
        let mut uri: Uri = url
            .parse()
            .map_err(|error| Trouble::Final(Failure::Usage(format!("{url:?}: {error}"))))?;
        for _ in 0..HOPS_MAX {
            let mut request = self.agent.get(&uri);
            // Numbers of bytes are those of the file, not of something packed.
            request = request
                .header(ACCEPT, "*/*")
                .header("accept-encoding", "identity");
            if let Some(from) = from.filter(|from| *from > 0) {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = &self.token
                && origin(&uri).as_deref() == Some(self.host.as_str())
            {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| network(&uri, &error))?;
            linked.take(response.headers());
            if !response.status().is_redirection() {
                return Ok((response, linked));
            }
            uri = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| follow(&uri, location))
                .ok_or_else(|| {
                    Trouble::Final(Failure::Hub(format!(
                        "{uri} redirects to nowhere that is safe to follow"
                    )))
                })?;
        }
        Err(Trouble::Final(Failure::Hub(format!(
            "{url} redirects more than {HOPS_MAX} times"
        ))))
    }

    /// Turns a status that is no success into what the user can do about it.
    fn judge(
        &self,
        response: &Response<Body>,
        repository: &str,
        revision: &str,
        file: Option<&str>,
    ) -> Result<(), Trouble> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let code = response
            .headers()
            .get(ERROR_CODE)
            .and_then(|code| code.to_str().ok())
            .unwrap_or_default();
        let what = match (status.as_u16(), code, file) {
            (429, ..) | (500..=599, ..) | (408, ..) => {
                return Err(Trouble::Passing {
                    why: format!("{} answers {status}", self.host),
                    after: retry_after(response.headers()),
                });
            }
            (_, "GatedRepo", _) | (403, ..) => format!(
                "{repository} is gated: accept its terms at {}/{repository} and set HF_TOKEN to a token of that \
                 account that may read it",
                self.endpoint
            ),
            (_, "RevisionNotFound", _) => format!("{repository} has no revision {revision}"),
            (_, "EntryNotFound", Some(file)) => format!("{repository} has no file {file}"),
            (401, ..) if self.token.is_none() => format!(
                "there is no repository {repository}, or it is private or gated: then set HF_TOKEN to a token that \
                 may read it"
            ),
            (401, ..) => format!("the token is not valid, or may not read {repository}"),
            (404, ..) => match file {
                Some(file) => format!("{repository} has no file {file} at {revision}"),
                None => format!("there is no repository {repository} with a revision {revision}"),
            },
            _ => format!("{} answers {status} for {repository}", self.endpoint),
        };
        Err(Trouble::Final(Failure::Hub(what)))
    }
}

/// What the hub says of a file while it redirects to where the bytes are.
#[derive(Default)]
struct Linked {
    bytes: Option<u64>,
    sha256: Option<Digest>,
}

impl Linked {
    fn take(&mut self, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if self.bytes.is_none() {
            self.bytes = text(LINKED_SIZE).and_then(|text| text.parse().ok());
        }
        if self.sha256.is_none() {
            self.sha256 = text(LINKED_ETAG)
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"'))
                .and_then(|etag| etag.parse().ok());
        }
    }
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> Option<String> {
    let scheme = uri
        .scheme_str()
        .filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let host = uri.host().filter(|host| !host.is_empty())?;
    let port = uri
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some(format!("{scheme}://{host}:{port}"))
}

/// Where a redirect leads; nowhere if it would give up encryption.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    let uri: Uri = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority()?;
        format!("{}://{authority}{location}", from.scheme_str()?)
            .parse()
            .ok()?
    } else {
        location.parse().ok()?
    };
    origin(&uri)?;
    let weaker = from.scheme_str() == Some("https") && uri.scheme_str() != Some("https");
    (!weaker).then_some(uri)
}

fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn range_total(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.rsplit('/').next()?.parse().ok()
}

/// Seconds, or a date, which is rare enough to be taken for no word at all.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn network(uri: &Uri, error: &ureq::Error) -> Trouble {
    let host = uri.host().unwrap_or_default();
    let why = format!("{host}: {error}");
    match error {
        // Trying again makes neither a name nor a certificate right.
        ureq::Error::HostNotFound
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::BadUri(_)
        | ureq::Error::InvalidProxyUrl => Trouble::Final(Failure::Network(why)),
        _ => Trouble::passing(why),
    }
}

/// A number that differs from call to call, to spread retries.
pub(crate) fn jitter_ms(below: u64) -> u64 {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::from(since.subsec_nanos()));
    (nanos / 1000) % below.max(1)
}

#[cfg(test)]
mod tests {
    use super::{follow, origin};
    use ureq::http::Uri;

    #[test]
    fn redirects_keep_encryption() {
        let hub: Uri = "https://hub.test/a/b".parse().unwrap();
        let to = |location| follow(&hub, location).map(|uri| uri.to_string());
        assert_eq!(to("/c?d=e").as_deref(), Some("https://hub.test/c?d=e"));
        assert_eq!(
            to("https://cdn.test/x").as_deref(),
            Some("https://cdn.test/x")
        );
        assert_eq!(to("http://hub.test/a"), None);
        assert_eq!(to("file:///etc/passwd"), None);
        assert_eq!(to("//cdn.test/x"), None);
    }

    #[test]
    fn origins_are_compared_whole() {
        let of = |uri: &str| origin(&uri.parse().unwrap());
        assert_eq!(of("https://hub.test/x"), of("https://hub.test:443/y"));
        assert_ne!(of("https://hub.test"), of("http://hub.test"));
        assert_ne!(of("https://hub.test"), of("https://hub.test.evil.test"));
    }
}
