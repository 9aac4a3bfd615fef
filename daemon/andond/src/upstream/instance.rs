//! Whether a value is an instance of a JSON schema, for the keywords that answers can be held to here: those of the engine's own
//! list ([`keyword`]).
//!
//! It is the engine that refuses schemas with any other keyword before a question is asked; one that gets here nevertheless lets no
//! value pass. Made by hand since what there is brings along thirty crates for the rest of the standard.
//!
//! Invariant: it ends, within [`STEPS_MAX`] steps and [`DEPTH_MAX`] levels, whatever schema and value are; beyond, the value does
//! not pass. Nothing of the value is in what is said of it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use andon_engine::grammar::schema::keyword::{self, Keyword};
use andon_engine::grammar::schema::referred;
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Number, Value};

/// Most steps for one answer: schemas that are held against values, names and values that are compared, and what takes as long.
const STEPS_MAX: usize = 200_000;
/// Bytes of a text that are looked through in a step.
const STEP_BYTES: usize = 64;
/// What compiling an expression counts: the largest take some milliseconds, as many steps do.
const COMPILE_STEPS: usize = 1_000;
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

/// Checks a value against a schema. May take some tenths of a second, at worst.
///
/// # Errors
/// The first keyword that it does not keep.
pub(super) fn check(schema: &Value, value: &Value) -> Result<(), Mismatch> {
    let walk = Walk {
        root: schema,
        steps: Cell::new(0),
        unable: RefCell::new(None),
        expressions: RefCell::default(),
    };
    let outcome = walk.check(schema, value, 0);
    // What could not be found out may have let one of several schemas pass as the only one.
    match walk.unable.into_inner() {
        Some(unable) => Err(unable),
        None => outcome,
    }
}

struct Walk<'a> {
    root: &'a Value,
    steps: Cell<usize>,
    /// Why it cannot be said whether the value is an instance.
    unable: RefCell<Option<Mismatch>>,
    /// Those that were compiled.
    expressions: RefCell<HashMap<String, Regex>>,
}

impl Walk<'_> {
    /// Counts steps.
    fn step(&self, count: usize) -> Result<(), Mismatch> {
        let steps = self.steps.get().saturating_add(count);
        self.steps.set(steps);
        if steps > STEPS_MAX {
            return Err(self.unable("too much to check"));
        }
        Ok(())
    }

    /// Notes that it cannot be said whether the value is an instance.
    fn unable(&self, why: &str) -> Mismatch {
        let why = mismatch(why);
        self.unable.borrow_mut().get_or_insert(why).clone()
    }

    fn check(&self, schema: &Value, value: &Value, depth: u32) -> Result<(), Mismatch> {
        self.step(1)?;
        if depth > DEPTH_MAX {
            return Err(self.unable("too deep to check"));
        }
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Object(keywords) => keywords,
            _ => return Err(mismatch("false")),
        };
        for (name, said) in keywords {
            match keyword::of(name) {
                Keyword::Annotation | Keyword::Definitions => continue,
                Keyword::Unsupported => return Err(self.unable(name)),
                Keyword::Enforced => {}
            }
            if !self.keeps((name, said), keywords, value, depth + 1)? {
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
            // They say how the schema itself is written.
            "$schema" | "$id" => true,
            "$ref" => {
                let to = said.as_str().and_then(|to| referred(self.root, to));
                let to = to.ok_or_else(|| self.unable("$ref"))?;
                self.check(to, value, depth)?;
                true
            }
            "type" => match said {
                Value::Array(names) => names.iter().any(|name| is_of(name, value)),
                name => is_of(name, value),
            },
            "enum" => {
                self.step(schemas().len())?;
                schemas().iter().any(|one| equal(one, value))
            }
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
                Value::String(text) => self.keeps_of_text(name, said, text)?,
                Value::Number(number) => keeps_of_number(name, said, number)?,
                Value::Null | Value::Bool(_) => true,
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
                let properties = said.as_object();
                self.step(properties.map_or(0, Map::len))?;
                for (name, schema) in properties.into_iter().flatten() {
                    if let Some(value) = fields.get(name) {
                        self.check(schema, value, depth)?;
                    }
                }
                true
            }
            "patternProperties" => {
                for (expression, schema) in said.as_object().into_iter().flatten() {
                    for (name, value) in fields {
                        if self.matches(expression, name)? {
                            self.check(schema, value, depth)?;
                        }
                    }
                }
                true
            }
            "additionalProperties" => {
                self.step(fields.len())?;
                for (name, value) in fields {
                    let listed = object("properties").is_some_and(|known| known.contains_key(name));
                    let mut patterns = object("patternProperties").into_iter().flat_map(Map::keys);
                    let described = patterns.try_fold(false, |described, expression| {
                        Ok::<_, Mismatch>(described || self.matches(expression, name)?)
                    })?;
                    if !listed && !described {
                        self.check(said, value, depth)
                            .map_err(|_| mismatch("additionalProperties"))?;
                    }
                }
                true
            }
            "required" => {
                let names = said.as_array().map(Vec::as_slice).unwrap_or_default();
                self.step(names.len())?;
                let mut names = names.iter().filter_map(Value::as_str);
                names.all(|name| fields.contains_key(name))
            }
            "minProperties" => at_least(said, fields.len()),
            "maxProperties" => at_most(said, fields.len()),
            // It says nothing of objects.
            _ => true,
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
                self.step(items.len().saturating_mul(items.len()))?;
                let mut numbered = items.iter().enumerate();
                return Ok(
                    numbered.all(|(at, item)| !items.iter().take(at).any(|one| equal(one, item)))
                );
            }
            // It says nothing of arrays.
            _ => {}
        }
        Ok(true)
    }

    fn keeps_of_text(&self, name: &str, said: &Value, text: &str) -> Result<bool, Mismatch> {
        let count = || {
            self.step(text.len() / STEP_BYTES)?;
            Ok::<_, Mismatch>(text.chars().count())
        };
        Ok(match name {
            "minLength" => at_least(said, count()?),
            "maxLength" => at_most(said, count()?),
            "pattern" => self.matches(said.as_str().unwrap_or_default(), text)?,
            "format" => self.has_format(said.as_str().unwrap_or_default(), text)?,
            // It says nothing of texts.
            _ => true,
        })
    }

    /// Whether an expression is found in a text.
    fn matches(&self, expression: &str, text: &str) -> Result<bool, Mismatch> {
        self.step(1 + text.len() / STEP_BYTES)?;
        if let Some(known) = self.expressions.borrow().get(expression) {
            return Ok(known.is_match(text));
        }
        self.step(COMPILE_STEPS)?;
        let built = RegexBuilder::new(expression)
            .size_limit(PATTERN_BYTES_MAX)
            .build();
        let regex = built.map_err(|_| self.unable("pattern"))?;
        let matches = regex.is_match(text);
        self.expressions
            .borrow_mut()
            .insert(expression.to_owned(), regex);
        Ok(matches)
    }

    fn has_format(&self, format: &str, text: &str) -> Result<bool, Mismatch> {
        let time = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[zZ]|[+-](?:[01]\d|2[0-3]):[0-5]\d)";
        let label = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
        let expression = match format {
            "ipv4" => return Ok(text.parse::<std::net::Ipv4Addr>().is_ok()),
            "ipv6" => return Ok(text.parse::<std::net::Ipv6Addr>().is_ok()),
            "date" => return Ok(is_date(text)),
            "date-time" => {
                let day = text.get(..10).is_some_and(is_date);
                let rest = text.get(10..).unwrap_or_default();
                return Ok(day && self.matches(&format!("(?-u)^[tT]{time}$"), rest)?);
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
            _ => return Err(self.unable("format")),
        };
        self.matches(&expression, text)
    }
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

fn keeps_of_number(name: &str, said: &Value, number: &Number) -> Result<bool, Mismatch> {
    let is_bound = matches!(
        name,
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf"
    );
    if !is_bound {
        return Ok(true);
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

fn whole(number: &Number) -> Option<i128> {
    number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
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
mod tests;
