//! The walk over a schema that checks it and writes it anew.
//!
//! Invariant: what comes out has only keywords that the compiler enforces, with values it takes as they are meant, and its
//! references lead to definitions that went the same way.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use super::bounds::{Bounds, Unbounded};
use super::dates;
use super::keyword::{self, FORMATS, Keyword};
use crate::grammar::error::GrammarError;
use crate::grammar::limits;

/// A schema without a type takes all of these.
const TYPES: [&str; 7] = [
    "null", "boolean", "number", "integer", "string", "array", "object",
];
/// The finest step of numbers whose schema does not say: six digits behind the point.
const NUMBER_STEP: f64 = 1e-6;
/// The compiler multiplies the divisors of two schemas that hold at once in 32 bits.
const JOINT_DIVISOR_MAX: u64 = 65_535;
/// Most for a count that is a lower bound, and what a higher upper bound is taken as.
const COUNT_MAX: u64 = 1_000_000;
const PATTERN_BYTES_MAX: usize = 4096;

/// The version of the language, as far as keywords mean something else in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draft {
    /// Draft 7: what stands beside a reference means nothing.
    Seven,
    /// Draft 2019-09: items are listed as in draft 7.
    Nineteen,
    /// Draft 2020-12.
    Twenty,
    /// It does not say, and is read as 2020-12 with both ways to list items.
    Unsaid,
}

/// What the walk leaves.
pub(super) struct Walked {
    pub(super) root: Value,
    pub(super) definitions: Vec<Value>,
    pub(super) unbounded: Unbounded,
}

pub(super) struct Walk<'a> {
    source: &'a Value,
    id: &'a str,
    draft: Draft,
    bounds: Bounds,
    /// Two schemas may hold for one value somewhere in it.
    joint: bool,
    divisors: usize,
    unbounded: Unbounded,
    /// Where references lead, and the definition that each became.
    places: BTreeMap<String, usize>,
    definitions: Vec<Value>,
    /// How often the arrays around may have what is walked.
    times: usize,
    depth: usize,
}

type Outcome<T> = Result<T, GrammarError>;

impl<'a> Walk<'a> {
    pub(super) fn new(source: &'a Value, bounds: Bounds) -> Outcome<Self> {
        let text = |name: &str| source.get(name).and_then(Value::as_str);
        let id = id_of(source);
        let draft = match text("$schema").map(|uri| uri.trim_end_matches('#')) {
            None => Draft::Unsaid,
            Some("https://json-schema.org/draft/2020-12/schema") => Draft::Twenty,
            Some("https://json-schema.org/draft/2019-09/schema") => Draft::Nineteen,
            Some("http://json-schema.org/draft-07/schema") => Draft::Seven,
            Some(_) => {
                let reason = ": drafts 2020-12, 2019-09 and 7 are";
                return Err(unsupported("$schema", "", reason));
            }
        };
        Ok(Self {
            source,
            id,
            draft,
            bounds,
            joint: has_joint(source),
            divisors: 0,
            unbounded: Unbounded::default(),
            places: BTreeMap::new(),
            definitions: Vec::new(),
            times: 1,
            depth: 0,
        })
    }

    pub(super) fn run(mut self) -> Outcome<Walked> {
        let root = self.schema(self.source, "")?;
        Ok(Walked {
            root,
            definitions: self.definitions,
            unbounded: self.unbounded,
        })
    }

    fn schema(&mut self, schema: &Value, at: &str) -> Outcome<Value> {
        let map = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(map) => map,
            _ => return Err(invalid(at, "a schema is an object, `true` or `false`")),
        };
        self.depth += 1;
        // References are followed too, so this may be deeper than the source is.
        if self.depth > 2 * limits::SCHEMA_DEPTH_MAX {
            return Err(GrammarError::TooLarge {
                what: "the schema and its references nest in levels:",
                count: self.depth,
                max: 2 * limits::SCHEMA_DEPTH_MAX,
            });
        }
        let mut out = Map::new();
        for (name, value) in map {
            match keyword::of(name) {
                Keyword::Annotation | Keyword::Definitions => {}
                Keyword::Unsupported => return Err(unsupported(name, at, "")),
                Keyword::Enforced => self.keyword(name, value, map, at, &mut out)?,
            }
        }
        let format = out.get("format").and_then(Value::as_str);
        if let Some(pattern) = format.and_then(dates::pattern)
            && !out.contains_key("pattern")
        {
            out.remove("format");
            out.insert("pattern".to_owned(), pattern.into());
        }
        self.bound(&mut out);
        self.depth -= 1;
        Ok(Value::Object(out))
    }

    fn keyword(
        &mut self,
        name: &str,
        value: &Value,
        map: &Map<String, Value>,
        at: &str,
        out: &mut Map<String, Value>,
    ) -> Outcome<()> {
        let here = || format!("{at}/{name}");
        let kept = match name {
            "$schema" if at.is_empty() => return Ok(()),
            "$id" if at.is_empty() => return Ok(()),
            "$schema" | "$id" => {
                return Err(unsupported(name, at, " below the top of a schema"));
            }
            "$ref" => self.reference(value, map, at)?,
            "type" => types(value, at)?,
            "enum" => {
                let values = list(value, &here(), true)?;
                let values = values.iter().map(|value| instance(value, &here()));
                Value::Array(values.collect::<Outcome<_>>()?)
            }
            "const" => instance(value, &here())?,
            "anyOf" | "oneOf" | "allOf" => self.schemas(list(value, &here(), true)?, &here())?,
            "properties" | "patternProperties" => self.properties(name, value, &here())?,
            "required" => names(value, &here())?,
            "additionalProperties" => self.times(self.bounds.items, value, &here())?,
            "items" | "prefixItems" | "additionalItems" => {
                return self.items(name, value, map, at, out);
            }
            "uniqueItems" if value == &Value::Bool(false) => return Ok(()),
            "uniqueItems" => return Err(unsupported(name, at, "")),
            "minProperties" | "maxProperties" | "minItems" | "maxItems" | "minLength"
            | "maxLength" => count(name, value, &here())?,
            "pattern" => pattern(value, &here())?,
            "format" => format(value, at)?,
            "multipleOf" => self.divisor(value, at)?,
            _ => bound(name, value, &here())?,
        };
        out.insert(name.to_owned(), kept);
        Ok(())
    }

    /// A schema that may stand in an answer `times` as often as what is around it.
    fn times(&mut self, times: usize, schema: &Value, at: &str) -> Outcome<Value> {
        let before = self.times;
        self.times = before.saturating_mul(times.max(1));
        let out = self.schema(schema, at);
        self.times = before;
        out
    }

    fn schemas(&mut self, schemas: &[Value], at: &str) -> Outcome<Value> {
        let schemas = schemas.iter().enumerate();
        let schemas = schemas.map(|(index, schema)| self.schema(schema, &format!("{at}/{index}")));
        Ok(Value::Array(schemas.collect::<Outcome<_>>()?))
    }

    fn properties(&mut self, name: &str, value: &Value, at: &str) -> Outcome<Value> {
        let map = value
            .as_object()
            .ok_or_else(|| invalid(at, "it is not an object"))?;
        fanout(map.len(), at)?;
        let mut out = Map::new();
        for (key, schema) in map {
            let at = format!("{at}/{}", escaped(key));
            let schema = if name == "patternProperties" {
                pattern(&Value::String(key.clone()), &at)?;
                self.times(self.bounds.items, schema, &at)?
            } else {
                self.schema(schema, &at)?
            };
            out.insert(key.clone(), schema);
        }
        Ok(Value::Object(out))
    }

    /// The items of arrays, by the keywords of draft 2020-12 whatever those of the schema are.
    fn items(
        &mut self,
        name: &str,
        value: &Value,
        map: &Map<String, Value>,
        at: &str,
        out: &mut Map<String, Value>,
    ) -> Outcome<()> {
        let here = format!("{at}/{name}");
        let listed = map.get("items").is_some_and(Value::is_array);
        let old = matches!(self.draft, Draft::Seven | Draft::Nineteen);
        match name {
            "prefixItems" if old => return Err(unsupported(name, at, " in this draft")),
            "additionalItems" | "items" if self.draft == Draft::Twenty && listed => {
                return Err(invalid(&here, "draft 2020-12 lists items in `prefixItems`"));
            }
            "additionalItems" if self.draft == Draft::Twenty => {
                return Err(unsupported(name, at, " in this draft"));
            }
            // It means nothing beside a schema for all items.
            "additionalItems" if !listed => return Ok(()),
            _ => {}
        }
        let (kept, value) = match value {
            Value::Array(schemas) if name != "additionalItems" => {
                fanout(schemas.len(), &here)?;
                ("prefixItems", self.schemas(schemas, &here)?)
            }
            _ if name == "prefixItems" => return Err(invalid(&here, "it is not an array")),
            schema => {
                let most = map.get("maxItems").and_then(whole).unwrap_or(u64::MAX);
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                let times = if map.contains_key("maxItems") {
                    most
                } else {
                    self.bounds.items
                };
                ("items", self.times(times, schema, &here)?)
            }
        };
        out.insert(kept.to_owned(), value);
        Ok(())
    }

    fn divisor(&mut self, value: &Value, at: &str) -> Outcome<Value> {
        let here = format!("{at}/multipleOf");
        let number = value.as_f64().filter(|number| *number > 0.0);
        let number = number.ok_or_else(|| invalid(&here, "it is not a number above 0"))?;
        // As the compiler finds it: what has more digits in binary than in decimal is not exact there.
        let (mut scaled, mut digits) = (number, 0);
        while scaled.fract() != 0.0 && digits <= 6 {
            scaled *= 10.0;
            digits += 1;
        }
        if digits > 6 || scaled > 1e8 {
            let reason = " with more than six digits behind the point, or eight in all";
            return Err(unsupported("multipleOf", at, reason));
        }
        self.divisors += 1;
        if self.joint && (self.divisors > 1 || digits > 0 || scaled > JOINT_DIVISOR_MAX as f64) {
            let reason = " beside other schemas for the same value, but once and whole";
            return Err(unsupported("multipleOf", at, reason));
        }
        Ok(value.clone())
    }

    fn reference(&mut self, value: &Value, map: &Map<String, Value>, at: &str) -> Outcome<Value> {
        let here = format!("{at}/$ref");
        let text = value
            .as_str()
            .ok_or_else(|| invalid(&here, "it is not a string"))?;
        if self.draft == Draft::Seven {
            let enforced = |name: &str| keyword::of(name) == Keyword::Enforced;
            let other = map.keys().find(|name| {
                enforced(name) && !["$ref", "$schema", "$id"].contains(&name.as_str())
            });
            if let Some(other) = other {
                let reason = " beside `$ref`, where draft 7 gives it no meaning";
                return Err(unsupported(other, at, reason));
            }
        }
        let fragment = fragment(text, self.id).ok_or_else(|| {
            let reason = ": only references into the same schema are";
            unsupported("$ref", at, reason)
        })?;
        if !fragment.is_empty() && !fragment.starts_with('/') {
            let reason = ": only those by JSON pointers are";
            return Err(unsupported("$ref", at, reason));
        }
        let target = unquoted(fragment).ok_or_else(|| invalid(&here, "it is not a URI"))?;
        let index = match self.places.get(&target) {
            Some(&index) => index,
            None => self.definition(&target, &here)?,
        };
        Ok(Value::String(definition_reference(index)))
    }

    /// Walks what a reference leads to.
    fn definition(&mut self, target: &str, here: &str) -> Outcome<usize> {
        let schema = self.source.pointer(target);
        let schema = schema.ok_or_else(|| invalid(here, "it leads nowhere"))?;
        let index = self.definitions.len();
        self.places.insert(target.to_owned(), index);
        self.definitions.push(Value::Bool(false));
        // It is one schema however often it is referred to.
        self.definitions[index] = self.schema(schema, target)?;
        Ok(index)
    }

    /// Adds bounds to what has none.
    fn bound(&mut self, out: &mut Map<String, Value>) {
        const APPLICATORS: [&str; 4] = ["$ref", "anyOf", "oneOf", "allOf"];
        let own = out.keys().any(|name| !APPLICATORS.contains(&name.as_str()));
        // What is listed is bounded, and what other schemas say is bounded there.
        if !own || out.contains_key("const") || out.contains_key("enum") {
            return;
        }
        let takes = |out: &Map<String, Value>, name: &str| match out.get("type") {
            Some(Value::String(only)) => only == name,
            Some(Value::Array(names)) => names.iter().any(|one| one == name),
            _ => true,
        };
        let has = |out: &Map<String, Value>, names: &[&str]| {
            names.iter().any(|name| out.contains_key(*name))
        };
        let least = |out: &Map<String, Value>, name: &str| {
            out.get(name).and_then(Value::as_u64).unwrap_or(0) as usize
        };
        if takes(out, "string") && !has(out, &["maxLength", "pattern", "format"]) {
            self.unbounded.strings = self.unbounded.strings.saturating_add(self.times);
            let most = self.bounds.characters.max(least(out, "minLength"));
            out.insert("maxLength".to_owned(), most.into());
        }
        if takes(out, "array")
            && !has(out, &["maxItems"])
            && out.get("items") != Some(&Value::Bool(false))
        {
            self.unbounded.arrays += 1;
            let listed = out.get("prefixItems").and_then(Value::as_array);
            let most = self.bounds.items.max(least(out, "minItems"));
            let most = most.max(listed.map_or(0, Vec::len));
            out.insert("maxItems".to_owned(), most.into());
        }
        if takes(out, "object")
            && !has(out, &["maxProperties"])
            && out.get("additionalProperties") != Some(&Value::Bool(false))
        {
            let required = out.get("required").and_then(Value::as_array);
            let required = required.map_or(&[][..], Vec::as_slice);
            let declared = out.get("properties").and_then(Value::as_object);
            let mut declared = declared.into_iter().flat_map(Map::keys);
            // The compiler counts properties only where it need not count which of the optional ones are there.
            if declared.all(|name| required.iter().any(|one| one == name)) {
                self.unbounded.arrays += 1;
                let most = self.bounds.items.max(least(out, "minProperties"));
                out.insert("maxProperties".to_owned(), (required.len() + most).into());
            }
        }
        if takes(out, "number") || takes(out, "integer") {
            if !has(out, &["minimum", "exclusiveMinimum"]) {
                out.insert("minimum".to_owned(), number(-limits::NUMBER_MAX));
            }
            if !has(out, &["maximum", "exclusiveMaximum"]) {
                out.insert("maximum".to_owned(), number(limits::NUMBER_MAX));
            }
            if takes(out, "number") && !has(out, &["multipleOf"]) && !self.joint {
                out.insert("multipleOf".to_owned(), number(NUMBER_STEP));
            }
        }
    }
}

/// What a reference (the text of a `$ref`) leads to in the schema `source`, if it does.
#[must_use]
pub fn referred<'v>(source: &'v Value, text: &str) -> Option<&'v Value> {
    source.pointer(&unquoted(fragment(text, id_of(source))?)?)
}

fn id_of(source: &Value) -> &str {
    let id = source.get("$id").and_then(Value::as_str);
    id.unwrap_or_default().trim_end_matches('#')
}

/// The fragment of a reference, if that is into the schema with this id.
fn fragment<'t>(text: &'t str, id: &str) -> Option<&'t str> {
    match text.split_once('#') {
        Some((before, fragment)) => (before.is_empty() || before == id).then_some(fragment),
        None => (!id.is_empty() && text == id).then_some(""),
    }
}

/// The name of a definition.
pub(super) fn definition_name(index: usize) -> String {
    format!("d{index}")
}

/// A reference to it.
fn definition_reference(index: usize) -> String {
    format!("#/$defs/{}", definition_name(index))
}

/// The definition that a reference is to.
pub(super) fn definition_index(reference: &str) -> Option<usize> {
    reference.strip_prefix("#/$defs/d")?.parse().ok()
}

/// Whether two schemas may hold for one value: then numbers of both are taken together.
fn has_joint(source: &Value) -> bool {
    let mut waiting = vec![source];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(map) => {
                let applicators = ["$ref", "anyOf", "oneOf", "allOf", "patternProperties"];
                let here = applicators
                    .iter()
                    .filter(|name| map.contains_key(**name))
                    .count();
                let asserted = map.keys().any(|name| {
                    keyword::of(name) == Keyword::Enforced
                        && !name.starts_with('$')
                        && !applicators.contains(&name.as_str())
                });
                if map.contains_key("allOf") || here > 1 || here > 0 && asserted {
                    return true;
                }
                waiting.extend(map.values());
            }
            _ => {}
        }
    }
    false
}

fn unsupported(keyword: &str, at: &str, reason: &'static str) -> GrammarError {
    GrammarError::Unsupported {
        keyword: keyword.chars().take(64).collect(),
        pointer: at.to_owned(),
        reason,
    }
}

fn invalid(at: &str, problem: &str) -> GrammarError {
    GrammarError::InvalidSchema {
        pointer: at.to_owned(),
        problem: problem.to_owned(),
    }
}

fn fanout(count: usize, at: &str) -> Outcome<()> {
    if count > limits::SCHEMA_FANOUT_MAX {
        let problem = format!(
            "{count} are listed, at most {} are taken",
            limits::SCHEMA_FANOUT_MAX
        );
        return Err(invalid(at, &problem));
    }
    Ok(())
}

fn list<'v>(value: &'v Value, at: &str, some: bool) -> Outcome<&'v [Value]> {
    let list = value
        .as_array()
        .ok_or_else(|| invalid(at, "it is not an array"))?;
    fanout(list.len(), at)?;
    if some && list.is_empty() {
        return Err(invalid(at, "it is empty"));
    }
    Ok(list)
}

fn names(value: &Value, at: &str) -> Outcome<Value> {
    let names = list(value, at, false)?;
    if !names.iter().all(Value::is_string) {
        return Err(invalid(at, "it is not a list of strings"));
    }
    Ok(value.clone())
}

fn types(value: &Value, at: &str) -> Outcome<Value> {
    let at = format!("{at}/type");
    let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let valid = match value {
        Value::Array(names) => !names.is_empty() && names.iter().all(known),
        name => known(name),
    };
    if !valid {
        return Err(invalid(&at, "it names no type, or one that is not known"));
    }
    Ok(value.clone())
}

/// A number of a schema without a fraction, also if it is written with one.
fn whole(value: &Value) -> Option<u64> {
    let float = value.as_f64()?;
    let whole = float.fract() == 0.0 && (0.0..=9e15).contains(&float);
    value.as_u64().or(whole.then_some(float as u64))
}

fn count(name: &str, value: &Value, at: &str) -> Outcome<Value> {
    let count = whole(value).ok_or_else(|| invalid(at, "it is not a whole number from 0 on"))?;
    if name.starts_with("min") && count > COUNT_MAX {
        let problem = format!("it is above {COUNT_MAX}");
        return Err(invalid(at, &problem));
    }
    Ok(count.min(COUNT_MAX).into())
}

fn pattern(value: &Value, at: &str) -> Outcome<Value> {
    let text = value
        .as_str()
        .ok_or_else(|| invalid(at, "it is not a string"))?;
    if text.len() > PATTERN_BYTES_MAX {
        let problem = format!(
            "it has {} bytes, at most {PATTERN_BYTES_MAX} are taken",
            text.len()
        );
        return Err(invalid(at, &problem));
    }
    Ok(value.clone())
}

fn format(value: &Value, at: &str) -> Outcome<Value> {
    let name = value
        .as_str()
        .ok_or_else(|| invalid(&format!("{at}/format"), "it is not a string"))?;
    if FORMATS.contains(&name) {
        return Ok(value.clone());
    }
    let keyword = format!("format: {name}");
    Err(unsupported(
        &keyword,
        at,
        ": it is not among the formats that are enforced",
    ))
}

/// A bound of numbers.
fn bound(name: &str, value: &Value, at: &str) -> Outcome<Value> {
    let bound = value
        .as_f64()
        .filter(|bound| bound.is_finite())
        .ok_or_else(|| invalid(at, "it is not a number"))?;
    let lower = name.ends_with("inimum");
    let beyond = if lower { bound } else { -bound };
    if beyond > limits::NUMBER_MAX {
        let problem = format!("numbers beyond {:e} are not supported", limits::NUMBER_MAX);
        return Err(invalid(at, &problem));
    }
    Ok(if beyond < -limits::NUMBER_MAX {
        number(bound.signum() * limits::NUMBER_MAX)
    } else {
        value.clone()
    })
}

/// A number as the compiler takes it, whole if it is.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 {
        return Value::Number((value as i64).into());
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// A value that an answer may have to be.
fn instance(value: &Value, at: &str) -> Outcome<Value> {
    Ok(match value {
        Value::Number(given) => {
            let float = given.as_f64().unwrap_or(f64::INFINITY);
            if float.abs() > limits::NUMBER_MAX {
                let problem = format!("numbers beyond {:e} are not supported", limits::NUMBER_MAX);
                return Err(invalid(at, &problem));
            }
            number(float)
        }
        Value::String(text) => {
            let escaped = |c: char| c.is_control() && !"\n\r\t\u{8}\u{c}".contains(c);
            if text.chars().any(escaped) {
                return Err(invalid(at, "control characters are not supported"));
            }
            value.clone()
        }
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| instance(item, at))
                .collect::<Outcome<_>>()?,
        ),
        Value::Object(map) => {
            let entries = map.iter();
            let entries = entries.map(|(name, value)| Ok((name.clone(), instance(value, at)?)));
            Value::Object(entries.collect::<Outcome<_>>()?)
        }
        other => other.clone(),
    })
}

/// A name as a part of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A URI's fragment without its quoting by `%`.
fn unquoted(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        if byte == b'%' {
            let digits = core::str::from_utf8(behind.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &behind[2..];
        } else {
            bytes.push(byte);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok()
}
