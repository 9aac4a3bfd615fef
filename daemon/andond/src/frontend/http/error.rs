//! Failures in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::fault::{Fault, FaultCode};

/// The code of a refusal for want of the model, which may be there later.
const MODEL_UNAVAILABLE: &str = "model_unavailable";

/// The code of an error that says that a token is wrong, as with OpenAI.
const WRONG_TOKEN: &str = "invalid_api_key";

/// The code of an error that says that a model is not served.
pub(super) const UNKNOWN_MODEL: &str = "model_not_found";

/// A refusal as an HTTP client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) param: Option<String>,
    pub(super) message: String,
    pub(super) retry_after_s: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after_s: None,
        }
    }

    /// Whether the same request may be answered later by this daemon: there was no place for it, no model, or no disk for what
    /// has to be written of it.
    pub(super) fn may_pass(&self) -> bool {
        self.status == StatusCode::TOO_MANY_REQUESTS
            || self.code == Some(MODEL_UNAVAILABLE)
            || (self.status == StatusCode::SERVICE_UNAVAILABLE && self.retry_after_s.is_some())
    }

    /// The request as a whole is not understood.
    pub(super) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A value is not understood or out of bounds.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(param.into()),
            code: Some("invalid_value"),
            ..ApiError::bad_request(message)
        }
    }

    /// A feature that andon does not have; it is never ignored silently.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(param.into()),
            code: Some("unsupported_parameter"),
            ..ApiError::bad_request(message)
        }
    }

    /// There is nothing at this path.
    pub(super) fn unknown_path(path: &str) -> ApiError {
        // A path can be as long as the head allows; the reply need not repeat all of it.
        let shown: String = path.chars().take(128).collect();
        ApiError {
            code: Some("unknown_url"),
            ..ApiError::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("there is nothing at {shown}"),
            )
        }
    }

    /// The path is there, the method is not.
    pub(super) fn method_not_allowed(method: &str, path: &str) -> ApiError {
        let shown: String = path.chars().take(128).collect();
        let method: String = method.chars().take(16).collect();
        ApiError {
            code: Some("method_not_allowed"),
            ..ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid_request_error",
                format!("{method} is not a method of {shown}"),
            )
        }
    }

    /// The model is not served here.
    pub(super) fn unknown_model(name: &str) -> ApiError {
        let shown: String = name.chars().take(128).collect();
        ApiError {
            code: Some(UNKNOWN_MODEL),
            param: Some("model".to_owned()),
            ..ApiError::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("the model {shown} is not served here; GET /v1/models lists what is"),
            )
        }
    }

    /// No such response is stored.
    pub(super) fn unknown_response(id: &str) -> ApiError {
        let shown: String = id.chars().take(128).collect();
        ApiError {
            code: Some("response_not_found"),
            ..ApiError::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("there is no stored response {shown}"),
            )
        }
    }

    /// No such request is kept.
    pub(super) fn unknown_request(id: &str) -> ApiError {
        ApiError {
            code: Some("request_not_found"),
            ..ApiError::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("there is no kept request {id}"),
            )
        }
    }

    /// The loopback listener was shown no token, or a wrong one. Nothing of what was shown is repeated.
    pub(super) fn unauthorized(was_shown: bool) -> ApiError {
        let (code, message) = if was_shown {
            (Some(WRONG_TOKEN), "this is not the token of this listener")
        } else {
            (
                None,
                "this listener wants a token: Authorization: Bearer TOKEN",
            )
        };
        ApiError {
            code,
            ..ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
        }
    }

    /// The body is larger than is taken.
    pub(super) fn too_large(bytes_max: usize) -> ApiError {
        ApiError {
            code: Some("request_too_large"),
            ..ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                format!("the body is larger than {bytes_max} bytes"),
            )
        }
    }

    /// The body did not arrive in time.
    pub(super) fn body_timeout() -> ApiError {
        ApiError {
            code: Some("timeout"),
            ..ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "invalid_request_error",
                "the body did not arrive in time",
            )
        }
    }

    /// The status of the reply.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The object inside the reply; also sent alone when a stream breaks off.
    pub(super) fn body(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> ApiError {
        let (status, kind, code) = match fault.code {
            FaultCode::InvalidRequest => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "invalid_value",
            ),
            FaultCode::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                "request_too_large",
            ),
            FaultCode::UnknownModel => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                "model_not_found",
            ),
            FaultCode::UnknownTask => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                "task_not_found",
            ),
            FaultCode::Unsupported => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "unsupported_value",
            ),
            FaultCode::ContextFull => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "context_length_exceeded",
            ),
            FaultCode::Denied => (StatusCode::FORBIDDEN, "permission_error", "not_allowed"),
            FaultCode::Busy => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "rate_limit_exceeded",
            ),
            FaultCode::DuplicateId => (
                StatusCode::CONFLICT,
                "invalid_request_error",
                "duplicate_id",
            ),
            FaultCode::DeadlineExceeded => (
                StatusCode::GATEWAY_TIMEOUT,
                "server_error",
                "deadline_exceeded",
            ),
            FaultCode::Cancelled => (StatusCode::CONFLICT, "server_error", "cancelled"),
            FaultCode::SlowReader => (StatusCode::REQUEST_TIMEOUT, "server_error", "slow_reader"),
            FaultCode::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "unavailable",
            ),
            FaultCode::ModelUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                MODEL_UNAVAILABLE,
            ),
            FaultCode::UpstreamUnavailable => (
                StatusCode::BAD_GATEWAY,
                "server_error",
                "upstream_unavailable",
            ),
            FaultCode::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                "internal_error",
            ),
        };
        ApiError {
            code: Some(code),
            param: fault.param.map(str::to_owned),
            // Whole seconds is what the header can say; never 0, which asks for an instant retry.
            retry_after_s: fault.retry_after.map(|after| after.as_secs().max(1)),
            ..ApiError::new(status, kind, fault.message)
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6750, 3: no word on what is wrong to whoever showed nothing.
            let challenge = match self.code {
                Some(WRONG_TOKEN) => "Bearer realm=\"andon\", error=\"invalid_token\"",
                _ => "Bearer realm=\"andon\"",
            };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}
