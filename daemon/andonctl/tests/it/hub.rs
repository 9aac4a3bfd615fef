//! A model hub on this machine: the paths, headers and redirects of the real one, and its bad days.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// The repository that the hub has.
pub(crate) const REPOSITORY: &str = "org/model-GGUF";
/// The commit that `main` stands for.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// A body is sent in pieces of this size.
const PIECE_BYTES: usize = 4096;

/// What the hub does wrong, and for whom it does nothing.
#[derive(Default)]
pub(crate) struct Manner {
    /// The token it wants.
    pub(crate) token: Option<&'static str>,
    /// The repository is gated: who has no token is told so.
    pub(crate) gated: bool,
    /// The next bodies break off after so many bytes.
    pub(crate) breaks: VecDeque<usize>,
    /// The next answers are these statuses.
    pub(crate) statuses: VecDeque<u16>,
    /// A byte of every body is wrong.
    pub(crate) wrong_bytes: bool,
    /// Ranges are ignored.
    pub(crate) no_ranges: bool,
    /// The listing has neither sizes nor digests, as that of some mirrors.
    pub(crate) plain_listing: bool,
    /// Between two pieces of a body.
    pub(crate) pause: Duration,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

struct State {
    files: Vec<(String, Vec<u8>)>,
    manner: Mutex<Manner>,
    seen: Mutex<Vec<Seen>>,
    stop: AtomicBool,
    store: Mutex<String>,
}

/// A running hub; its store of bytes is another server, as the real one's is.
pub(crate) struct Hub {
    state: Arc<State>,
    addresses: [SocketAddr; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Hub {
    pub(crate) fn start(files: &[(&str, &[u8])], manner: Manner) -> Self {
        let state = Arc::new(State {
            files: files
                .iter()
                .map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()))
                .collect(),
            manner: Mutex::new(manner),
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
            store: Mutex::default(),
        });
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [
            listeners[0].local_addr().unwrap(),
            listeners[1].local_addr().unwrap(),
        ];
        *state.store.lock().unwrap() = format!("http://{}", addresses[1]);
        let threads = listeners
            .into_iter()
            .map(|listener| {
                let state = Arc::clone(&state);
                thread::spawn(move || {
                    for stream in listener.incoming() {
                        if state.stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let state = Arc::clone(&state);
                        // A client may go away at any byte; that is its affair.
                        thread::spawn(move || drop(state.serve(stream.unwrap())));
                    }
                })
            })
            .collect();
        Self {
            state,
            addresses,
            threads,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.addresses[0])
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The requests that reached the store.
    pub(crate) fn stored(&self) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.path.starts_with("/store/"));
        seen
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.state.manner.lock().unwrap());
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for address in self.addresses {
            drop(TcpStream::connect(address));
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut seen = Seen {
            path: path.clone(),
            range: None,
            authorization: None,
        };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => seen.range = Some(value.to_owned()),
                "authorization" => seen.authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        self.seen.lock().unwrap().push(seen.clone());
        if let Some(status) = self.manner.lock().unwrap().statuses.pop_front() {
            return head(&mut stream, status, &["Content-Length: 0"]);
        }
        if let Some(digest) = path.strip_prefix("/store/") {
            return self.body(&mut stream, digest, seen.range.as_deref());
        }
        if let Some((status, code)) = self.barred(&path, seen.authorization.as_deref()) {
            let code = format!("X-Error-Code: {code}");
            return head(&mut stream, status, &[&code, "Content-Length: 0"]);
        }
        if path.starts_with("/api/models/") {
            let text = self.listing();
            let length = format!("Content-Length: {}", text.len());
            head(
                &mut stream,
                200,
                &["Content-Type: application/json", &length],
            )?;
            return stream.write_all(text.as_bytes());
        }
        let file = path
            .split_once("/resolve/")
            .and_then(|(_, rest)| rest.split_once('/'))
            .and_then(|(_, file)| self.files.iter().find(|(path, _)| path == file));
        match file {
            Some((name, bytes)) if name.ends_with(".gguf") => {
                let digest = sha256(bytes);
                let headers = [
                    format!("Location: {}/store/{digest}", self.store.lock().unwrap()),
                    format!("X-Linked-Etag: \"{digest}\""),
                    format!("X-Linked-Size: {}", bytes.len()),
                    format!("X-Repo-Commit: {COMMIT}"),
                    "Content-Length: 0".to_owned(),
                ];
                head(&mut stream, 302, &headers.each_ref().map(String::as_str))
            }
            Some((_, bytes)) => {
                let length = format!("Content-Length: {}", bytes.len());
                head(&mut stream, 200, &[&length, "ETag: \"abc\""])?;
                stream.write_all(bytes)
            }
            None => head(
                &mut stream,
                404,
                &["X-Error-Code: EntryNotFound", "Content-Length: 0"],
            ),
        }
    }

    /// Why a request is not served, as the real hub says it.
    fn barred(&self, path: &str, authorization: Option<&str>) -> Option<(u16, &'static str)> {
        let manner = self.manner.lock().unwrap();
        let wanted = manner.token.map(|token| format!("Bearer {token}"));
        let known = wanted.is_none() || authorization == wanted.as_deref();
        if !path.contains(REPOSITORY) {
            // Nobody is told whether a repository exists that he may not see.
            return Some((if known { 404 } else { 401 }, "RepoNotFound"));
        }
        if path.contains("/no-such-branch") {
            return Some((404, "RevisionNotFound"));
        }
        if !known {
            return Some((
                401,
                if manner.gated {
                    "GatedRepo"
                } else {
                    "RepoNotFound"
                },
            ));
        }
        None
    }

    fn listing(&self) -> String {
        let plain = self.manner.lock().unwrap().plain_listing;
        let siblings: Vec<serde_json::Value> = self
            .files
            .iter()
            .map(|(path, bytes)| {
                if plain {
                    return serde_json::json!({ "rfilename": path });
                }
                let mut file = serde_json::json!({
                    "rfilename": path, "size": bytes.len(), "blobId": "b",
                });
                if path.ends_with(".gguf") {
                    file["lfs"] = serde_json::json!({
                        "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130,
                    });
                }
                file
            })
            .collect();
        serde_json::json!({
            "id": REPOSITORY, "sha": COMMIT, "gated": false, "tags": ["gguf", "license:apache-2.0"],
            "cardData": { "license": "apache-2.0" }, "siblings": siblings,
        })
        .to_string()
    }

    fn body(
        &self,
        stream: &mut TcpStream,
        digest: &str,
        range: Option<&str>,
    ) -> std::io::Result<()> {
        let bytes = self
            .files
            .iter()
            .map(|(_, bytes)| bytes)
            .find(|bytes| sha256(bytes) == digest);
        let Some(bytes) = bytes else {
            return head(stream, 404, &["Content-Length: 0"]);
        };
        let (limit, pause, wrong, no_ranges) = {
            let mut manner = self.manner.lock().unwrap();
            (
                manner.breaks.pop_front(),
                manner.pause,
                manner.wrong_bytes,
                manner.no_ranges,
            )
        };
        let from: usize = range
            .filter(|_| !no_ranges)
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let length = format!("Content-Length: {}", bytes.len().saturating_sub(from));
        if from == 0 {
            head(stream, 200, &[&length])?;
        } else if from < bytes.len() {
            let range = format!(
                "Content-Range: bytes {from}-{}/{}",
                bytes.len() - 1,
                bytes.len()
            );
            head(stream, 206, &[&length, &range])?;
        } else {
            let range = format!("Content-Range: bytes */{}", bytes.len());
            return head(stream, 416, &[&range, "Content-Length: 0"]);
        }
        let mut body = bytes[from..].to_vec();
        if wrong && let Some(last) = body.last_mut() {
            *last ^= 1;
        }
        body.truncate(limit.unwrap_or(usize::MAX));
        for piece in body.chunks(PIECE_BYTES) {
            stream.write_all(piece)?;
            thread::sleep(pause);
        }
        Ok(())
    }
}

fn head(stream: &mut TcpStream, status: u16, headers: &[&str]) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())
}
