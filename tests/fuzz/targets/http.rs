//! The body of a request over HTTP: a byte for the endpoint, then the body.
//!
//! It becomes requests that hold every bound, or an error of OpenAI's shape.

use andon_os::heap;
use andond::config::limits::LimitsConfig;
use andond::frontend::http::requests_of;

const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/responses"];

pub(crate) fn run(data: &[u8]) {
    let [endpoint, body @ ..] = data else {
        return;
    };
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
