//! Everything of a request that leaves, text by text.
//!
//! Invariant: a text, a name of a property and a number are looked at wherever they stand, whatever that place is called; what is
//! not is a word of the formats themselves. Where there can be no placeholder, the request stays.

use serde_json::{Map, Number, Value};

use super::find::{Place, Values, bounded, merged, push};
use super::json::{self, Escapes, Part};
use super::{Redaction, Unredactable};
use crate::request::Message;

/// The roles that every server knows.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];
/// The types that a schema can want.
const TYPES: [&str; 7] = [
    "array", "boolean", "integer", "null", "number", "object", "string",
];
/// Words of schemas under which are schemas, or arrays of them.
const OF_SCHEMAS: [&str; 15] = [
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
];
/// Words of schemas under which are schemas by the names of properties or other names.
const OF_NAMED_SCHEMAS: [&str; 4] = ["properties", "$defs", "definitions", "dependentSchemas"];
/// Words of schemas with a number that values are compared with.
const OF_LIMITS: [&str; 5] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
/// Words of schemas that say how much there is of something.
const OF_COUNTS: [&str; 9] = [
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
    "uniqueItems",
];
/// Words of schemas with anything under them.
const OF_ANY: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "required",
    "dependentRequired",
    "format",
    "$ref",
    "$id",
    "$schema",
    "$anchor",
    "$comment",
];

impl Redaction<'_> {
    /// Takes out of a task's input, before its template is rendered with it.
    ///
    /// # Errors
    /// [`Unredactable`]
    pub fn input(&mut self, input: &Value) -> Result<Value, Unredactable> {
        let fields = &self.redactor.fields;
        let mut taken = input.clone();
        // They are known before the rest is searched for what they hold, and placed after that: then what looks like one of
        // their placeholders is none.
        for (rule, field) in fields {
            self.field(*rule, input, &mut taken, field)?;
        }
        let secrets = self.secrets.iter();
        self.values = Values::new(secrets.map(|secret| (secret.rule, secret.value.as_str())))?;
        taken.clone_from(input);
        for (_, field) in fields {
            blank(&mut taken, field);
        }
        self.value(&mut taken)?;
        for (rule, field) in fields {
            self.field(*rule, input, &mut taken, field)?;
        }
        self.of_input = self.secrets.len();
        Ok(taken)
    }

    /// Takes out of a conversation: of the request itself, or what a task made of what [`Redaction::input`] gave.
    ///
    /// # Errors
    /// [`Unredactable`]
    pub fn messages(&mut self, messages: &mut [Message]) -> Result<(), Unredactable> {
        for message in messages {
            if !ROLES.contains(&message.role.as_str()) {
                self.fixed(&message.role)?;
            }
            self.rendered(&mut message.content)?;
            let is_result = message.role == "tool";
            self.each_field(&mut message.extra, |this, key, value| {
                match (key.as_str(), value) {
                    ("tool_calls", Value::Array(calls)) => {
                        calls.iter_mut().try_for_each(|call| this.call(call))
                    }
                    ("name", Value::String(name)) if is_result => this.fixed(name),
                    ("tool_calls" | "tool_call_id" | "name", value) => this.value(value),
                    (_, value) => this.named(key, value),
                }
            })?;
        }
        Ok(())
    }

    /// Takes out of tools, as OpenAI describes them.
    ///
    /// # Errors
    /// [`Unredactable`]
    pub fn tools(&mut self, tools: &mut [Value]) -> Result<(), Unredactable> {
        for tool in tools {
            self.function(tool, |this, key, value| match (key, value) {
                ("name", Value::String(name)) => this.fixed(name),
                ("parameters", value) => this.schema(value),
                (_, value) => this.value(value),
            })?;
        }
        Ok(())
    }

    /// Takes out of a schema.
    ///
    /// # Errors
    /// [`Unredactable`]
    pub fn schema(&mut self, schema: &mut Value) -> Result<(), Unredactable> {
        let words = match schema {
            Value::Array(schemas) => {
                return schemas.iter_mut().try_for_each(|one| self.schema(one));
            }
            Value::Object(words) => words,
            other => return self.value(other),
        };
        self.each_field(words, |this, key, value| match (key.as_str(), value) {
            (word, value) if OF_SCHEMAS.contains(&word) => this.schema(value),
            (word, Value::Object(named)) if OF_NAMED_SCHEMAS.contains(&word) => {
                this.each_field(named, |this, name, schema| {
                    this.text(name)?;
                    this.schema(schema)
                })
            }
            ("patternProperties", Value::Object(named)) => {
                this.each_field(named, |this, pattern, schema| {
                    this.fixed(pattern)?;
                    this.schema(schema)
                })
            }
            ("pattern", Value::String(pattern)) => this.fixed(pattern),
            ("type", types) if are_types(types) => Ok(()),
            // A text in place of a number could not be given.
            ("enum" | "const", values) => {
                this.fixed_numbers(values)?;
                this.value(values)
            }
            (word, limit @ Value::Number(_)) if OF_LIMITS.contains(&word) => {
                this.fixed_numbers(limit)
            }
            (word, Value::Number(_) | Value::Bool(_)) if OF_COUNTS.contains(&word) => Ok(()),
            (word, value) if OF_ANY.contains(&word) => this.value(value),
            (_, value) => this.named(key, value),
        })
    }

    /// Takes out of a call of a tool.
    fn call(&mut self, call: &mut Value) -> Result<(), Unredactable> {
        self.function(call, |this, key, value| match (key, value) {
            ("name", Value::String(name)) => this.fixed(name),
            ("arguments", Value::String(arguments)) => this.json(arguments),
            (_, value) => this.value(value),
        })
    }

    /// Takes out of an object with a function in it, of which `each` takes out field by field.
    fn function(
        &mut self,
        whole: &mut Value,
        each: impl Fn(&mut Self, &str, &mut Value) -> Result<(), Unredactable>,
    ) -> Result<(), Unredactable> {
        let Value::Object(fields) = whole else {
            return self.value(whole);
        };
        self.each_field(fields, |this, key, value| match (key.as_str(), value) {
            ("function", Value::Object(function)) => {
                this.each_field(function, |this, key, value| {
                    each(this, key, value)?;
                    let words = ["name", "description", "parameters", "strict", "arguments"];
                    if words.contains(&key.as_str()) {
                        return Ok(());
                    }
                    this.text(key)
                })
            }
            ("type", Value::String(word)) if word == "function" => Ok(()),
            ("id" | "type" | "function", value) => this.value(value),
            (_, value) => this.named(key, value),
        })
    }

    /// Goes through an object field by field: `each` takes out of a value, and of its name where that may change. Their order
    /// stays.
    fn each_field(
        &mut self,
        fields: &mut Map<String, Value>,
        each: impl Fn(&mut Self, &mut String, &mut Value) -> Result<(), Unredactable>,
    ) -> Result<(), Unredactable> {
        let mut taken = Map::new();
        for (mut name, mut value) in std::mem::take(fields) {
            each(self, &mut name, &mut value)?;
            taken.insert(name, value);
        }
        *fields = taken;
        Ok(())
    }

    /// Takes out of a value and its name.
    fn named(&mut self, name: &mut String, value: &mut Value) -> Result<(), Unredactable> {
        self.value(value)?;
        self.text(name)
    }

    /// Looks at a text that has to stay as it is.
    fn fixed(&mut self, text: &str) -> Result<(), Unredactable> {
        if self.places(text)?.is_empty() {
            Ok(())
        } else {
            Err(Unredactable::Fixed)
        }
    }

    /// Looks at the numbers of a value that have to stay numbers.
    fn fixed_numbers(&mut self, value: &Value) -> Result<(), Unredactable> {
        match value {
            Value::Number(number) if self.kind(number)?.is_some() => Err(Unredactable::Fixed),
            Value::Array(values) => values.iter().try_for_each(|one| self.fixed_numbers(one)),
            Value::Object(fields) => fields.values().try_for_each(|one| self.fixed_numbers(one)),
            _ => Ok(()),
        }
    }

    /// The rule that a number is a secret by.
    fn kind(&mut self, number: &Number) -> Result<Option<usize>, Unredactable> {
        let mut places = self.places(&number.to_string())?;
        if let Some(float) = number.as_f64().filter(|_| number.is_f64()) {
            // Without an exponent.
            places.extend(self.places(&float.to_string())?);
        }
        Ok(places.first().map(|place| place.rule))
    }

    /// Takes out of every text, name and number of a value. A number with a secret in it becomes a text.
    fn value(&mut self, value: &mut Value) -> Result<(), Unredactable> {
        match value {
            Value::String(text) => self.text(text),
            Value::Number(number) => {
                if let Some(rule) = self.kind(number)? {
                    let index = self.secret(rule, &number.to_string())?;
                    *value = Value::String(self.secrets[index].placeholder());
                }
                Ok(())
            }
            Value::Array(values) => values.iter_mut().try_for_each(|value| self.value(value)),
            Value::Object(fields) => self.each_field(fields, |this, name, value| {
                this.text(name)?;
                this.value(value)
            }),
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }

    /// Takes out of a text that may be JSON, so that it is JSON after that. Of a string of it only what it says counts, and
    /// all of a number.
    fn json(&mut self, text: &mut String) -> Result<(), Unredactable> {
        self.effort.spend(text.len())?;
        let Some(parts) = json::parts(text) else {
            return self.text(text);
        };
        // An expression may fit more than a part.
        let mut places = self.places(text)?;
        for part in &parts {
            let start = part.bytes().start;
            let inner = self.places(&text[part.bytes().clone()])?;
            places.extend(inner.into_iter().map(|place| Place {
                bytes: place.bytes.start + start..place.bytes.end + start,
                ..place
            }));
            bounded(&places)?;
        }
        let places = merged(places);
        let mut left = String::with_capacity(text.len());
        let (mut end, mut first) = (0, 0);
        for part in &parts {
            let bytes = part.bytes();
            while places
                .get(first)
                .is_some_and(|place| place.bytes.end <= bytes.start)
            {
                first += 1;
            }
            let here = places[first..]
                .iter()
                .take_while(|place| place.bytes.start < bytes.end);
            match part {
                Part::Number(_) => {
                    if let Some(place) = here.into_iter().next() {
                        let index = self.secret(place.rule, &text[bytes.clone()])?;
                        left.push_str(&text[end..bytes.start]);
                        left.push_str(&format!("\"{}\"", self.secrets[index].placeholder()));
                        end = bytes.end;
                    }
                }
                Part::Text(_) => {
                    let content = &text[bytes.clone()];
                    let mut escapes = Escapes::of(content);
                    let mut inner = Vec::new();
                    for Place { bytes: place, rule } in here {
                        let start = place.start.max(bytes.start) - bytes.start;
                        let stop = place.end.min(bytes.end) - bytes.start;
                        let bytes = escapes.whole(start..stop, &mut self.effort)?;
                        push(&mut inner, Place { bytes, rule: *rule });
                    }
                    for place in inner {
                        let index =
                            self.secret(place.rule, &json::said(&content[place.bytes.clone()]))?;
                        left.push_str(&text[end..bytes.start + place.bytes.start]);
                        left.push_str(&self.secrets[index].placeholder());
                        end = bytes.start + place.bytes.end;
                    }
                }
            }
        }
        left.push_str(&text[end..]);
        *text = left;
        Ok(())
    }

    /// Puts placeholders in the place of a field, in each element where what it is in is an array.
    fn field(
        &mut self,
        rule: usize,
        from: &Value,
        into: &mut Value,
        path: &[String],
    ) -> Result<(), Unredactable> {
        match (from, into, path) {
            (from, into, []) => *into = self.hidden(rule, from)?,
            (Value::Array(from), Value::Array(into), path) => {
                for (from, into) in from.iter().zip(into) {
                    self.field(rule, from, into, path)?;
                }
            }
            (Value::Object(from), Value::Object(into), [first, rest @ ..]) => {
                if let (Some(from), Some(into)) = (from.get(first), into.get_mut(first)) {
                    self.field(rule, from, into, rest)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A value with a placeholder for every text and number of it. What is nothing, true or false says what no placeholder could
    /// hide, and names of fields in it are taken out by expressions only: templates know them.
    fn hidden(&mut self, rule: usize, value: &Value) -> Result<Value, Unredactable> {
        let index = match value {
            Value::String(text) if !text.is_empty() => self.secret(rule, text)?,
            Value::Number(number) => self.secret(rule, &number.to_string())?,
            Value::Array(values) => {
                let values = values.iter().map(|value| self.hidden(rule, value));
                return values.collect::<Result<Vec<_>, _>>().map(Value::Array);
            }
            Value::Object(fields) => {
                let mut hidden = Map::new();
                for (key, value) in fields {
                    let mut key = key.clone();
                    self.text(&mut key)?;
                    hidden.insert(key, self.hidden(rule, value)?);
                }
                return Ok(Value::Object(hidden));
            }
            Value::String(_) | Value::Null | Value::Bool(_) => return Ok(value.clone()),
        };
        Ok(Value::String(self.secrets[index].placeholder()))
    }
}

/// Whether these are types of schemas and nothing else.
fn are_types(value: &Value) -> bool {
    let is_type = |value: &Value| value.as_str().is_some_and(|word| TYPES.contains(&word));
    match value {
        Value::Array(values) => values.iter().all(is_type),
        value => is_type(value),
    }
}

/// Leaves nothing of a field.
fn blank(value: &mut Value, path: &[String]) {
    match (value, path) {
        (value, []) => *value = Value::Null,
        (Value::Array(values), path) => values.iter_mut().for_each(|value| blank(value, path)),
        (Value::Object(fields), [first, rest @ ..]) => {
            if let Some(value) = fields.get_mut(first) {
                blank(value, rest);
            }
        }
        _ => {}
    }
}
