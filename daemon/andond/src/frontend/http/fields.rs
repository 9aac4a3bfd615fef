//! A JSON body taken apart field by field, so that nothing a client says is ignored silently.
//!
//! Each known field is taken out with its type checked; [`Fields::finish`] refuses what is left.

use andon_engine::grammar::parse_json;
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;

/// What remains of a body's object.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a body, in which no object has a name twice.
    pub(super) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match parse_json(body) {
            Ok(Value::Object(map)) => Ok(Fields { map }),
            Ok(_) => Err(ApiError::bad_request("the body is not a JSON object")),
            Err(error) => Err(ApiError {
                status: StatusCode::BAD_REQUEST,
                code: Some("invalid_json"),
                // The parser's words name line, column and what was expected, never the text itself.
                ..ApiError::bad_request(format!("the body is not valid JSON: {error}"))
            }),
        }
    }

    /// Wraps an object inside the body.
    pub(super) fn of(map: Map<String, Value>) -> Fields {
        Fields { map }
    }

    /// Takes a field; `null` is the same as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field that is left for another to take.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    pub(super) fn bool(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(ApiError::invalid(
                name,
                format!("{name} must be true or false"),
            )),
        }
    }

    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f32>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "bounds are checked on the f32"
                )]
                Some(number) => Ok(Some(number as f32)),
                None => Err(ApiError::invalid(name, format!("{name} must be a number"))),
            },
        }
    }

    pub(super) fn count(&mut self, name: &'static str) -> Result<Option<u32>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|count| u32::try_from(count).ok())
                .map(Some)
                .ok_or_else(|| {
                    ApiError::invalid(name, format!("{name} must be a whole number, not negative"))
                }),
        }
    }

    /// A seed: any whole number of 64 bits, with or without a sign.
    pub(super) fn seed(&mut self, name: &'static str) -> Result<Option<u64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .or_else(|| value.as_i64().map(i64::cast_unsigned))
                .map(Some)
                .ok_or_else(|| {
                    ApiError::invalid(name, format!("{name} must be a whole number of 64 bits"))
                }),
        }
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(ApiError::invalid(name, format!("{name} must be a string"))),
        }
    }

    /// A string or an array of strings.
    pub(super) fn strings(&mut self, name: &'static str) -> Result<Vec<String>, ApiError> {
        let wrong = || {
            ApiError::invalid(
                name,
                format!("{name} must be a string or an array of strings"),
            )
        };
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(value)) => Ok(vec![value]),
            Some(Value::Array(values)) => values
                .into_iter()
                .map(|value| match value {
                    Value::String(value) => Ok(value),
                    _ => Err(wrong()),
                })
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Takes a field that is a label of the client's own and changes no answer.
    pub(super) fn label(&mut self, name: &str) {
        self.map.remove(name);
    }

    /// Refuses a field unless it is absent or says what holds anyway.
    pub(super) fn refuse_unless(
        &mut self,
        name: &'static str,
        harmless: impl FnOnce(&Value) -> bool,
        why: &str,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless(&value) => {
                Err(ApiError::unsupported(name, format!("{name}: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self, path: &str) -> Result<(), ApiError> {
        for (name, value) in self.map {
            if !value.is_null() {
                let name: String = name.chars().take(64).collect();
                let message = format!("{path}{name} is not supported");
                return Err(ApiError::unsupported(format!("{path}{name}"), message));
            }
        }
        Ok(())
    }
}

/// Token ids out of an array.
pub(super) fn token_ids(name: &str, values: &[Value]) -> Result<Vec<u32>, ApiError> {
    values
        .iter()
        .map(|value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| {
                    ApiError::invalid(name, format!("{name} must be an array of token ids"))
                })
        })
        .collect()
}
