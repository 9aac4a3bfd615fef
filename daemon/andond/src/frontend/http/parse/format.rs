//! `response_format`, and `text.format` of responses: the shape an answer is held to.

use andon_engine::grammar::Constraint;
use serde_json::{Map, Value};

use super::super::error::ApiError;
use crate::request::AnswerFormat;

/// Reads a format. `param` is the field; `nested` says that a schema stands in an object `json_schema` of its own.
pub(in super::super) fn format(
    value: Option<Value>,
    param: &'static str,
    nested: bool,
) -> Result<Option<AnswerFormat>, ApiError> {
    let invalid = |what: &str| Err(ApiError::invalid(param, format!("{param}{what}")));
    let mut map = match value {
        None => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(_) => return invalid(" must be an object"),
    };
    let Some(Value::String(kind)) = map.remove("type") else {
        return invalid(".type must be a string");
    };
    let text = |map: &mut Map<String, Value>, name: &str| match map.remove(name) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ApiError::invalid(
            param,
            format!("{param}.{name} must be a string"),
        )),
    };
    let constraint = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::JsonObject),
        "json_schema" => {
            let path = if nested { ".json_schema" } else { "" };
            if nested {
                map = match (map.remove("json_schema"), map.keys().next()) {
                    (Some(Value::Object(inner)), None) => inner,
                    (_, Some(name)) => return invalid(&format!(".{name} is not known")),
                    _ => return invalid(".json_schema must be an object"),
                };
            }
            let Some(schema @ (Value::Object(_) | Value::Bool(_))) = map.remove("schema") else {
                return invalid(&format!("{path}.schema must be an object"));
            };
            // A name is required by OpenAI, and a schema is enforced whether `strict` says so or not.
            for (name, is_right) in [
                ("name", Value::is_string as fn(&Value) -> bool),
                ("description", Value::is_string),
                ("strict", Value::is_boolean),
            ] {
                match map.remove(name) {
                    Some(value) if !value.is_null() && !is_right(&value) => {
                        return invalid(&format!("{path}.{name} has the wrong type"));
                    }
                    _ => {}
                }
            }
            Some(Constraint::JsonSchema(schema))
        }
        "regex" => Some(Constraint::Regex(text(&mut map, "regex")?)),
        "lark" => Some(Constraint::Lark(text(&mut map, "grammar")?)),
        "gbnf" => Some(Constraint::Gbnf(text(&mut map, "grammar")?)),
        _ => {
            let message =
                format!("{param}.type must be text, json_object, json_schema, regex, lark or gbnf");
            return Err(ApiError::unsupported(param, message));
        }
    };
    if let Some(name) = map.keys().next() {
        return invalid(&format!(".{name} is not known"));
    }
    Ok(constraint.map(|constraint| AnswerFormat { constraint, param }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_format_is_read_in_both_forms() {
        let nested = |value| format(Some(value), "response_format", true);
        let flat = |value| format(Some(value), "text.format", false);
        let schema = json!({"type": "object"});
        let read = nested(json!({"type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": true, "description": "d"}}));
        let held = read.expect("valid").expect("a format");
        assert_eq!(held.constraint, Constraint::JsonSchema(schema.clone()));
        assert_eq!(held.param, "response_format");
        let read = flat(json!({"type": "json_schema", "name": "n", "schema": schema}));
        assert!(read.is_ok_and(|format| format.is_some()));
        for (value, constraint) in [
            (json!({"type": "text"}), None),
            (json!({"type": "json_object"}), Some(Constraint::JsonObject)),
            (
                json!({"type": "regex", "regex": "a+"}),
                Some(Constraint::Regex("a+".to_owned())),
            ),
            (
                json!({"type": "gbnf", "grammar": "root ::= \"a\""}),
                Some(Constraint::Gbnf("root ::= \"a\"".to_owned())),
            ),
        ] {
            let read = nested(value).expect("valid");
            assert_eq!(read.map(|format| format.constraint), constraint);
        }
        assert!(format(None, "response_format", true).is_ok_and(|format| format.is_none()));
        for wrong in [
            json!("json_object"),
            json!({"type": 3}),
            json!({"type": "xml"}),
            json!({"type": "json_object", "schema": {}}),
            json!({"type": "json_schema"}),
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            json!({"type": "json_schema", "json_schema": {"name": 3, "schema": {}}}),
            json!({"type": "json_schema", "json_schema": {"schema": {}, "strictly": true}}),
            json!({"type": "json_schema", "json_schema": {"schema": {}}, "schema": {}}),
            json!({"type": "regex"}),
        ] {
            let error = nested(wrong.clone()).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some("response_format"), "{wrong}");
        }
    }
}
