//! Who is let in: by the loopback listener whoever shows its token, and of these and the users of this machine those
//! who may ask for anything at all. What they may ask for is looked at when they do.

use axum::http::Request;
use axum::http::header::AUTHORIZATION;

use super::error::ApiError;
use super::serve::Client;
use crate::access::Caller;
use crate::fault::{Fault, FaultCode};
use crate::frontend::Context;
use crate::request::Origin;

/// What a supervisor asks that may ask nothing else.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/health"];

/// Lets a request in, or says why not.
pub(super) fn let_in<B>(
    context: &Context,
    client: &Client,
    request: &Request<B>,
) -> Result<(), ApiError> {
    if client.caller == Caller::Loopback {
        let shown = request.headers().get(AUTHORIZATION);
        let token = shown.and_then(|value| bearer(value.as_bytes()));
        if !token.is_some_and(|token| context.access.is_token(token)) {
            context.telemetry.request(Origin::Http);
            context.telemetry.refused(Origin::Http, FaultCode::Denied);
            let refused = ApiError::unauthorized(shown.is_some());
            client.caller.note_denied(&refused.message);
            return Err(refused);
        }
    }
    if PROBES.contains(&request.uri().path()) {
        return Ok(());
    }
    context.access.rights(&client.caller).map_err(|denied| {
        context.telemetry.request(Origin::Http);
        context.telemetry.refused(Origin::Http, FaultCode::Denied);
        client.caller.note_denied(&denied);
        Fault::from(denied)
    })?;
    Ok(())
}

/// The token of an `Authorization`; the word before it may be written in any case (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    let token = token.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn a_token_follows_its_scheme() {
        for value in ["Bearer a.b", "bearer  a.b ", "BEARER a.b"] {
            assert_eq!(bearer(value.as_bytes()), Some(b"a.b".as_slice()), "{value}");
        }
        for value in ["", "a.b", "Bearer", "Bearer ", "Basic a.b", "Bearera.b"] {
            assert_eq!(bearer(value.as_bytes()), None, "{value}");
        }
    }
}
