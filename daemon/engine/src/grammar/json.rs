//! JSON of clients, in which no object has a name twice.
//!
//! A reader that keeps one of two values for a name would hold an answer to a part of a schema that its writer may not
//! have meant.

use core::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads JSON; an object that has a name twice is refused.
///
/// # Errors
/// What is wrong, with line and column, never the text itself.
pub fn parse_json(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(text).map(|Unique(value)| value)
}

/// A value in which no object has a name twice, as part of something that is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unique(pub Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Unique)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("an object has a name twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        let text = r#"{"b": [1, -2, 18446744073709551615, 1.5e3, "x\u00e9\n", true, null, {}], "a": {"b": []}}"#;
        let expected: Value = serde_json::from_str(text).expect("JSON");
        let read = parse_json(text.as_bytes()).expect("JSON");
        assert_eq!(read, expected);
        assert_eq!(read.to_string(), expected.to_string());
        for text in ["", "{", "[1,]", "{} {}", "1e999", "\"\u{1}\""] {
            let expected = serde_json::from_str::<Value>(text).expect_err("not JSON");
            let error = parse_json(text.as_bytes()).expect_err("not JSON");
            assert_eq!(error.to_string(), expected.to_string());
        }
        let deep = "[".repeat(200);
        assert!(parse_json(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_name_stands_once_in_its_object() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"[{"x":{"type":"string","\u0074ype":"null"}}]"#,
        ] {
            let error = parse_json(text.as_bytes())
                .expect_err("a name twice")
                .to_string();
            assert!(
                error.starts_with("an object has a name twice at line 1"),
                "{error}"
            );
        }
        assert!(parse_json(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }
}
