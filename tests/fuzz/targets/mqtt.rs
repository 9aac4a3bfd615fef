//! A message from a broker: topic, content type, response topic, correlation data, expiry and user properties, each
//! ended by a 0, then the payload. User properties are `name=value`, ended by a 1 each.
//!
//! It becomes a request that holds every bound, or a refusal that says why.

use andon_os::heap;
use andond::config::limits::LimitsConfig;
use andond::frontend::mqtt::{Published, request_of};

pub(crate) fn run(data: &[u8]) {
    let limit = (2 << 20) + 400 * data.len();
    heap::measure(limit, data.len() as u64, || check(data));
}

fn check(data: &[u8]) {
    let mut parts = data.splitn(7, |&byte| byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let some = |bytes: &[u8]| (!bytes.is_empty()).then(|| text(bytes));
    let topic = text(next());
    let (content_type, response_topic) = (some(next()), some(next()));
    let correlation = next();
    let expiry = text(next()).parse().ok();
    let user = next()
        .split(|&byte| byte == 1)
        .filter_map(|pair| {
            let pair = text(pair);
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect();
    let published = Published {
        topic,
        content_type,
        response_topic,
        correlation: (!correlation.is_empty()).then(|| correlation.to_vec()),
        expiry_s: expiry,
        user,
        payload: next().to_vec(),
    };
    match request_of(published) {
        None => {}
        Some(Ok(request)) => {
            if let Err(fault) = request.check(&LimitsConfig::default()) {
                assert!(!fault.message.is_empty());
            }
        }
        Some(Err(fault)) => assert!(!fault.message.is_empty()),
    }
}
