//! Whether a value is an instance of a JSON schema, for the keywords that answers can be held to here.
//!
//! It is the engine that refuses schemas with any other keyword before a question is asked; one that gets here nevertheless lets no
//! value pass. Made by hand since what there is brings along thirty crates for the rest of the standard.
//!
//! Invariant: it ends, within [`STEPS_MAX`] steps and [`DEPTH_MAX`] levels, whatever schema and value are; beyond, the value does
//! not pass. Nothing of the value is in what is said of it.

use std::cell::Cell;

use regex::RegexBuilder;
use serde_json::{Map, Value};

/// Most schemas that are held against values for one answer.
const STEPS_MAX: u32 = 200_000;
/// Deepest nesting of schemas, references followed.
const DEPTH_MAX: u32 = 256;
/// Largest compiled expression, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

/// Why a value is no instance: the keyword that it does not keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mismatch(String);

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn mismatch(keyword: &str) -> Mismatch {
    Mismatch(keyword.chars().take(64).collect())
}

/// Checks a value against a schema.
///
/// # Errors
/// The first keyword that it does not keep.
pub(super) fn check(schema: &Value, value: &Value) -> Result<(), Mismatch> {
    let walk = Walk {
        root: schema,
        steps: Cell::new(0),
    };
    walk.check(schema, value, 0)
}

struct Walk<'a> {
    root: &'a Value,
    steps: Cell<u32>,
}

impl Walk<'_> {
    fn check(&self, schema: &Value, value: &Value, depth: u32) -> Result<(), Mismatch> {
        let steps = self.steps.get() + 1;
        self.steps.set(steps);
        if steps > STEPS_MAX || depth > DEPTH_MAX {
            return Err(mismatch("too much to check"));
        }
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Object(keywords) => keywords,
            _ => return Err(mismatch("false")),
        };
        for (name, said) in keywords {
            let keeps = self.keeps((name, said), keywords, value, depth + 1)?;
            if !keeps {
                return Err(mismatch(name));
            }
        }
        Ok(())
    }

    fn fits(&self, schema: &Value, value: &Value, depth: u32) -> bool {
        self.check(schema, value, depth).is_ok()
    }

    /// Whether a value keeps one keyword; where that is due to something within it, the error names that.
    fn keeps(
        &self,
        (name, said): (&str, &Value),
        keywords: &Map<String, Value>,
        value: &Value,
        depth: u32,
    ) -> Result<bool, Mismatch> {
        let schemas = || said.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(match name {
            "$ref" => {
                let to = said.as_str().and_then(|to| self.referred(to));
                let to = to.ok_or_else(|| mismatch("$ref"))?;
                self.check(to, value, depth)?;
                true
            }
            "type" => match said {
                Value::Array(names) => names.iter().any(|name| is_of(name, value)),
                name => is_of(name, value),
            },
            "enum" => schemas().iter().any(|one| equal(one, value)),
            "const" => equal(said, value),
            "anyOf" => schemas()
                .iter()
                .any(|schema| self.fits(schema, value, depth)),
            "oneOf" => {
                let fitting = schemas()
                    .iter()
                    .filter(|schema| self.fits(schema, value, depth));
                fitting.take(2).count() == 1
            }
            "allOf" => {
                schemas()
                    .iter()
                    .try_for_each(|schema| self.check(schema, value, depth))?;
                true
            }
            _ => match value {
                Value::Object(fields) => {
                    self.keeps_of_object((name, said), keywords, fields, depth)?
                }
                Value::Array(items) => self.keeps_of_array((name, said), keywords, items, depth)?,
                Value::String(text) => keeps_of_text(name, said, text)?,
                Value::Number(number) => keeps_of_number(name, said, number)?,
                Value::Null | Value::Bool(_) => is_known(name),
            },
        })
    }

    fn keeps_of_object(
        &self,
        (name, said): (&str, &Value),
        keywords: &Map<String, Value>,
        fields: &Map<String, Value>,
        depth: u32,
    ) -> Result<bool, Mismatch> {
        let object = |name: &str| keywords.get(name).and_then(Value::as_object);
        Ok(match name {
            "properties" => {
                for (name, schema) in said.as_object().into_iter().flatten() {
                    if let Some(value) = fields.get(name) {
                        self.check(schema, value, depth)?;
                    }
                }
                true
            }
            "patternProperties" => {
                for (expression, schema) in said.as_object().into_iter().flatten() {
                    for (name, value) in fields {
                        if matches(expression, name)? {
                            self.check(schema, value, depth)?;
                        }
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, value) in fields {
                    let listed = object("properties").is_some_and(|known| known.contains_key(name));
                    let mut patterns = object("patternProperties").into_iter().flat_map(Map::keys);
                    let described = patterns.try_fold(false, |described, expression| {
                        Ok::<_, Mismatch>(described || matches(expression, name)?)
                    })?;
                    if !listed && !described {
                        self.check(said, value, depth)
                            .map_err(|_| mismatch("additionalProperties"))?;
                    }
                }
                true
            }
            "required" => {
                let mut names = said
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                names.all(|name| fields.contains_key(name))
            }
            "minProperties" => at_least(said, fields.len()),
            "maxProperties" => at_most(said, fields.len()),
            _ => is_known(name),
        })
    }

    fn keeps_of_array(
        &self,
        (name, said): (&str, &Value),
        keywords: &Map<String, Value>,
        items: &[Value],
        depth: u32,
    ) -> Result<bool, Mismatch> {
        let each = |schema: &Value, items: &[Value]| {
            items
                .iter()
                .try_for_each(|item| self.check(schema, item, depth))
        };
        let length = |name: &str| {
            let list = keywords.get(name).and_then(Value::as_array);
            list.map(|list| list.len().min(items.len()))
        };
        let rest = |from: usize| items.get(from..).unwrap_or_default();
        match (name, said) {
            // As it was before there was `prefixItems`.
            ("prefixItems" | "items", Value::Array(schemas)) => {
                let mut pairs = schemas.iter().zip(items);
                pairs.try_for_each(|(schema, item)| self.check(schema, item, depth))?;
            }
            ("items", schema) => each(schema, rest(length("prefixItems").unwrap_or(0)))?,
            ("additionalItems", schema) => {
                if let Some(from) = length("items") {
                    each(schema, rest(from))?;
                }
            }
            ("minItems", _) => return Ok(at_least(said, items.len())),
            ("maxItems", _) => return Ok(at_most(said, items.len())),
            ("uniqueItems", Value::Bool(true)) => {
                // Each pair is a step.
                let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
                self.steps
                    .set(self.steps.get().saturating_add(count.saturating_mul(count)));
                if self.steps.get() > STEPS_MAX {
                    return Err(mismatch("too much to check"));
                }
                let mut numbered = items.iter().enumerate();
                return Ok(
                    numbered.all(|(at, item)| !items.iter().take(at).any(|one| equal(one, item)))
                );
            }
            _ => return Ok(is_known(name)),
        }
        Ok(true)
    }

    /// What a reference leads to: a pointer within the schema.
    fn referred(&self, to: &str) -> Option<&Value> {
        let pointer = to.strip_prefix('#')?;
        self.root.pointer(pointer)
    }
}

/// Whether a keyword says nothing of a value of another type, or nothing at all.
fn is_known(name: &str) -> bool {
    name.starts_with("x-")
        || matches!(
            name,
            "$schema"
                | "$id"
                | "$defs"
                | "definitions"
                | "$comment"
                | "title"
                | "description"
                | "default"
                | "examples"
                | "deprecated"
                | "readOnly"
                | "writeOnly"
                | "contentEncoding"
                | "contentMediaType"
                | "contentSchema"
                | "properties"
                | "required"
                | "additionalProperties"
                | "patternProperties"
                | "minProperties"
                | "maxProperties"
                | "items"
                | "prefixItems"
                | "additionalItems"
                | "minItems"
                | "maxItems"
                | "uniqueItems"
                | "minLength"
                | "maxLength"
                | "pattern"
                | "format"
                | "minimum"
                | "maximum"
                | "exclusiveMinimum"
                | "exclusiveMaximum"
                | "multipleOf"
        )
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("number") => value.is_number(),
        Some("integer") => {
            value.is_i64()
                || value.is_u64()
                || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => false,
    }
}

/// Whether two values are the same, numbers by what they are and not how they are written.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64()))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(name, value)| b.get(name).is_some_and(|other| equal(value, other));
            a.len() == b.len() && a.iter().all(same)
        }
        _ => one == other,
    }
}

fn at_least(said: &Value, count: usize) -> bool {
    said.as_f64().is_some_and(|least| count as f64 >= least)
}

fn at_most(said: &Value, count: usize) -> bool {
    said.as_f64().is_some_and(|most| count as f64 <= most)
}

fn keeps_of_text(name: &str, said: &Value, text: &str) -> Result<bool, Mismatch> {
    Ok(match name {
        "minLength" => at_least(said, text.chars().count()),
        "maxLength" => at_most(said, text.chars().count()),
        "pattern" => matches(said.as_str().ok_or_else(|| mismatch(name))?, text)?,
        "format" => has_format(said.as_str().unwrap_or_default(), text)?,
        _ => is_known(name),
    })
}

fn keeps_of_number(
    name: &str,
    said: &Value,
    number: &serde_json::Number,
) -> Result<bool, Mismatch> {
    let is_bound = matches!(
        name,
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf"
    );
    if !is_bound {
        return Ok(is_known(name));
    }
    let said = said.as_number().ok_or_else(|| mismatch(name))?;
    if let (Some(value), Some(bound)) = (whole(number), whole(said)) {
        return Ok(match name {
            "minimum" => value >= bound,
            "maximum" => value <= bound,
            "exclusiveMinimum" => value > bound,
            "exclusiveMaximum" => value < bound,
            _ => bound != 0 && value % bound == 0,
        });
    }
    let (value, bound) = (number.as_f64(), said.as_f64());
    let (value, bound) = value.zip(bound).ok_or_else(|| mismatch(name))?;
    Ok(match name {
        "minimum" => value >= bound,
        "maximum" => value <= bound,
        "exclusiveMinimum" => value > bound,
        "exclusiveMaximum" => value < bound,
        _ => {
            // 0.3 is a multiple of 0.1, though not of the numbers that stand for them.
            let ratio = value / bound;
            bound != 0.0 && (ratio - ratio.round()).abs() <= 1e-9 * ratio.abs().max(1.0)
        }
    })
}

fn whole(number: &serde_json::Number) -> Option<i128> {
    number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
}

/// Whether an expression is found in a text.
fn matches(expression: &str, text: &str) -> Result<bool, Mismatch> {
    let built = RegexBuilder::new(expression)
        .size_limit(PATTERN_BYTES_MAX)
        .build();
    built
        .map(|regex| regex.is_match(text))
        .map_err(|_| mismatch("pattern"))
}

fn has_format(format: &str, text: &str) -> Result<bool, Mismatch> {
    let time =
        r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[zZ]|[+-](?:[01]\d|2[0-3]):[0-5]\d)";
    let label = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
    let expression = match format {
        "ipv4" => return Ok(text.parse::<std::net::Ipv4Addr>().is_ok()),
        "ipv6" => return Ok(text.parse::<std::net::Ipv6Addr>().is_ok()),
        "date" => return Ok(is_date(text)),
        "date-time" => {
            let day = text.get(..10).is_some_and(is_date);
            let rest = text.get(10..).unwrap_or_default();
            return Ok(day && matches(&format!("(?-u)^[tT]{time}$"), rest)?);
        }
        "time" => format!("(?-u)^{time}$"),
        "duration" => {
            let clock = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)";
            format!(
                r"(?-u)^P(?:\d+W|(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)(?:{clock})?|{clock})$"
            )
        }
        "hostname" => {
            if text.len() > 253 {
                return Ok(false);
            }
            format!(r"(?-u)^{label}(?:\.{label})*$")
        }
        "email" => format!(r"(?-u)^[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{label}(?:\.{label})*$"),
        "uri" => r"^[A-Za-z][A-Za-z0-9+.-]*:[^\s<>{}|\\^`\x22\x00-\x1f]*$".to_owned(),
        "uuid" => r"(?-u)^[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$".to_owned(),
        _ => return Ok(false),
    };
    matches(&expression, text)
}

/// Whether it is a day that there is, as `YYYY-MM-DD`.
fn is_date(text: &str) -> bool {
    let shape = text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    let number =
        |from: usize, to: usize| text.get(from..to).and_then(|part| part.parse::<u32>().ok());
    let (Some(year), Some(month), Some(day)) = (number(0, 4), number(5, 7), number(8, 10)) else {
        return false;
    };
    let leaps = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leaps),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    shape && (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn keywords_say_what_they_say() {
        for (schema, good, bad) in [
            (
                json!({"type": "integer"}),
                json!([1, -1, 2.0]),
                json!([1.5, "1", null]),
            ),
            (
                json!({"type": ["string", "null"]}),
                json!(["", null]),
                json!([1, []]),
            ),
            (
                json!({"enum": [1, "a", {"x": [1]}]}),
                json!([1.0, "a", {"x": [1]}]),
                json!([2, "b", {"x": [2]}]),
            ),
            (
                json!({"const": {"a": 1, "b": 2}}),
                json!([{"b": 2, "a": 1}]),
                json!([{"a": 1}]),
            ),
            (
                json!({"minimum": 1, "exclusiveMaximum": 3}),
                json!([1, 2.9, "x"]),
                json!([0.9, 3]),
            ),
            (
                json!({"multipleOf": 0.1}),
                json!([0.3, 7, 1e5]),
                json!([0.35]),
            ),
            (json!({"multipleOf": 3}), json!([9, 0, -3]), json!([10])),
            (
                json!({"minLength": 2, "maxLength": 3}),
                json!(["\u{fc}\u{fc}", 7]),
                json!(["a", "abcd"]),
            ),
            (
                json!({"pattern": "^a+$"}),
                json!(["aa", 1]),
                json!(["ab", ""]),
            ),
            (json!({"pattern": "("}), json!([1]), json!(["a"])),
            (
                json!({"items": {"type": "integer"}, "minItems": 1}),
                json!([[1, 2]]),
                json!([[], ["a"]]),
            ),
            (
                json!({"prefixItems": [{"type": "string"}], "items": false}),
                json!([["a"], []]),
                json!([["a", 1], [1]]),
            ),
            (
                json!({"items": [{"type": "string"}], "additionalItems": {"type": "null"}}),
                json!([["a", null]]),
                json!([["a", 1]]),
            ),
            (
                json!({"uniqueItems": true, "maxItems": 3}),
                json!([[1, 2]]),
                json!([[1, 1.0], [1, 2, 3, 4]]),
            ),
            (
                json!({"properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}),
                json!([{"a": 1}, "x"]),
                json!([{}, {"a": "1"}, {"a": 1, "b": 2}]),
            ),
            (
                json!({"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": {"type": "boolean"}}),
                json!([{"xa": null, "b": true}]),
                json!([{"xa": true}, {"b": null}]),
            ),
            (
                json!({"minProperties": 1, "maxProperties": 1}),
                json!([{"a": 1}]),
                json!([{}, {"a": 1, "b": 1}]),
            ),
            (
                json!({"anyOf": [{"type": "string"}, {"minimum": 5}]}),
                json!(["a", 6]),
                json!([4]),
            ),
            (
                json!({"oneOf": [{"minimum": 2}, {"maximum": 5}]}),
                json!([1, 6]),
                json!([3]),
            ),
            (
                json!({"allOf": [{"minimum": 2}, {"maximum": 5}]}),
                json!([3]),
                json!([1, 6]),
            ),
            (
                json!({"$defs": {"list": {"properties": {"next": {"$ref": "#/$defs/list"}}, "required": ["v"]}}, "$ref": "#/$defs/list"}),
                json!([{"v": 1, "next": {"v": 2}}]),
                json!([{"v": 1, "next": {}}]),
            ),
            (json!({"$ref": "http://elsewhere/"}), json!([]), json!([1])),
            (json!({"$ref": "#"}), json!([]), json!([1])),
            (json!({"not": {}}), json!([]), json!([1, "a", [], {}, null])),
            (json!(false), json!([]), json!([1])),
            (
                json!({"format": "date"}),
                json!(["2024-02-29", 1]),
                json!(["2023-02-29", "2024-2-29", "2024-13-01"]),
            ),
            (
                json!({"format": "date-time"}),
                json!(["2024-02-29T23:59:60.5Z", "2024-01-01t00:00:00+02:00"]),
                json!(["2024-02-29", "2024-02-29T24:00:00Z"]),
            ),
            (
                json!({"format": "duration"}),
                json!(["P1D", "PT5M", "P2W", "P1Y2M3DT4H5M6S"]),
                json!(["P", "PT", "1D", "P1W1D"]),
            ),
            (
                json!({"format": "email"}),
                json!(["a.b@plant.example"]),
                json!(["a", "a@", "@b", "a@b@c"]),
            ),
            (
                json!({"format": "hostname"}),
                json!(["press-3.plant"]),
                json!(["-a", "a_b", ""]),
            ),
            (
                json!({"format": "ipv4"}),
                json!(["10.0.0.1"]),
                json!(["10.0.0.256", "010.0.0.1"]),
            ),
            (
                json!({"format": "uuid"}),
                json!(["123e4567-e89b-12d3-a456-426614174000"]),
                json!(["123e4567"]),
            ),
            (
                json!({"format": "uri"}),
                json!(["https://a/b?c"]),
                json!(["a b", "//a"]),
            ),
            (json!({"format": "else"}), json!([1]), json!(["a"])),
        ] {
            for value in good.as_array().expect("a list") {
                assert_eq!(check(&schema, value), Ok(()), "{schema} {value}");
            }
            for value in bad.as_array().expect("a list") {
                assert!(check(&schema, value).is_err(), "{schema} {value}");
            }
        }
    }

    #[test]
    fn what_is_too_much_to_check_does_not_pass() {
        let mut deep = json!(1);
        let mut schema = json!({"type": "integer"});
        for _ in 0..100 {
            deep = json!([deep]);
            schema = json!({"items": schema});
        }
        assert_eq!(check(&schema, &deep), Ok(()));
        // Each level is looked at twice for each time the one above it is.
        let twice = json!({"$defs": {"d": {"anyOf": [
            {"items": {"$ref": "#/$defs/d"}, "minItems": 2},
            {"items": {"$ref": "#/$defs/d"}, "minItems": 3},
            {"type": "string"}]}}, "$ref": "#/$defs/d"});
        let mut deep = json!([1]);
        for _ in 0..40 {
            deep = json!([deep]);
        }
        assert!(check(&twice, &deep).is_err());
        let many = Value::Array((0..2000).map(Value::from).collect());
        assert!(check(&json!({"uniqueItems": true}), &many).is_err());
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-4i64..5).prop_map(Value::from),
            (-4i32..5).prop_map(|number| Value::from(f64::from(number) / 2.0)),
            "[ab]{0,3}".prop_map(Value::from),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        scalar().prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[abc]", inner), 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn schema() -> impl Strategy<Value = Value> {
        let kind = prop::sample::select(vec![
            "object", "array", "string", "number", "integer", "boolean", "null",
        ]);
        let leaf = prop_oneof![
            Just(json!(true)),
            kind.prop_map(|kind| json!({"type": kind})),
            proptest::collection::vec(value(), 1..3).prop_map(|all| json!({"enum": all})),
            value().prop_map(|value| json!({"const": value})),
            (-3i32..4, 0i32..4)
                .prop_map(|(low, more)| json!({"minimum": low, "exclusiveMaximum": low + more})),
            (1i32..4).prop_map(|of| json!({"multipleOf": of})),
            (0u32..3, 0u32..4).prop_map(|(low, high)| json!({"minLength": low, "maxLength": high})),
            prop::sample::select(vec!["^a", "b$", "a.b"]).prop_map(|of| json!({"pattern": of})),
            (0u32..3, 0u32..3).prop_map(
                |(low, high)| json!({"minItems": low, "maxItems": high, "uniqueItems": true})
            ),
            (0u32..3, 0u32..3)
                .prop_map(|(low, high)| json!({"minProperties": low, "maxProperties": high})),
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            let list = proptest::collection::vec(inner.clone(), 1..3);
            prop_oneof![
                (
                    prop::sample::select(vec!["anyOf", "oneOf", "allOf", "prefixItems"]),
                    list.clone()
                )
                    .prop_map(|(name, list)| json!({ name: list })),
                (list, inner.clone())
                    .prop_map(|(list, rest)| json!({"prefixItems": list, "items": rest})),
                (inner.clone(), inner.clone(), inner).prop_map(|(a, b, rest)| json!({
                    "properties": {"a": a}, "patternProperties": {"[ab]": b},
                    "additionalProperties": rest, "required": ["a"]})),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// It says of any schema and value what the library for the whole standard says.
        #[test]
        fn it_agrees_with_the_standard(schema in schema(), value in value()) {
            let expected = jsonschema::is_valid(&schema, &value);
            prop_assert_eq!(check(&schema, &value).is_ok(), expected, "{} {}", schema, value);
        }
    }
}
