//! The body of a request over HTTP: a byte for the endpoint, then the body; or the lines of a head, as hyper hands them over.
//!
//! It becomes requests that hold every bound, or an error of OpenAI's shape. A key that a head names is the last part of a
//! path, and of no other.

use andon_os::heap;
use andond::config::limits::LimitsConfig;
use andond::frontend::http::{Wish, request_path, requests_of, wish_of};

const PATHS: [&str; 5] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/infill",
];
/// What begins with this is lines of a head.
pub(crate) const HEAD: u8 = 0x80;

pub(crate) fn run(data: &[u8]) {
    let [endpoint, body @ ..] = data else {
        return;
    };
    if endpoint & HEAD != 0 {
        return head(body);
    }
    let path = PATHS[usize::from(*endpoint) % PATHS.len()];
    // JSON of small values takes many times its text.
    let limit = (1 << 20) + 400 * body.len();
    heap::measure(limit, body.len() as u64, || match requests_of(path, body) {
        Ok(requests) => {
            assert!(!requests.is_empty());
            for request in requests {
                // May be refused, and says which field.
                if let Err(fault) = request.check(&LimitsConfig::default()) {
                    assert!(!fault.message.is_empty());
                }
            }
        }
        Err((status, body)) => {
            assert!((400..500).contains(&status), "{status}");
            assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string());
        }
    });
}

/// A line is a name, a colon and a value.
fn head(text: &[u8]) {
    let lines = text.split(|&byte| byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    });
    let lines: Vec<_> = lines.take(64).collect();
    match wish_of(&lines) {
        Ok(Wish { key: None, .. }) => {}
        Ok(Wish { key: Some(key), .. }) => {
            assert!((1..=128).contains(&key.len()));
            let path = request_path(&key);
            let part = path.strip_prefix("/v1/requests/").expect("its place");
            assert!(!part.contains(['/', '?', '#', ' ']) && part.is_ascii());
            assert_eq!(unescaped(part).as_deref(), Some(key.as_bytes()));
        }
        Err((status, body)) => {
            assert_eq!(status, 400);
            assert!(body["error"]["message"].is_string() && body["error"]["param"].is_string());
        }
    }
}

/// What a part of a path says.
fn unescaped(part: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
    }
    Some(bytes)
}
