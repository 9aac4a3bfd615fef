//! The schema of a tool's arguments: of an object, in which objects that list their properties have no others, where that
//! is not said otherwise. Models leave alone then what nobody has asked for.
//!
//! Invariant: what fits the schema that comes out fits the one that was given, and if anything fits that, something fits
//! this. So an object is closed only where its schema alone says what it is: behind references, and as one of several that
//! it may be, but not where two schemas hold for one value.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::error::GrammarError;
use super::limits;
use super::schema::{referred, says};

/// Keywords whose schemas hold for the value that the schema around them is of.
const IN_PLACE: [&str; 8] = [
    "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else",
];
/// Keywords beside which an object is left as it is.
const LEFT: [&str; 5] = [
    "patternProperties",
    "minProperties",
    "propertyNames",
    "enum",
    "const",
];
/// References to references that are followed at the top.
const REFERENCES_MAX: usize = 16;
/// Required properties that are tried as what tells the options of `oneOf` apart.
const TAGS_MAX: usize = 16;

/// The schema of a tool's arguments, as answers are held to it.
pub(super) fn schema(parameters: Option<&Value>) -> Result<Value, GrammarError> {
    let invalid = |problem: &str| {
        Err(GrammarError::InvalidSchema {
            pointer: String::new(),
            problem: problem.to_owned(),
        })
    };
    let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let given = match parameters {
        None | Some(Value::Null) => return Ok(none()),
        Some(Value::Object(map)) if map.is_empty() => return Ok(none()),
        Some(given @ Value::Object(_)) => given,
        Some(_) => return invalid("the parameters of a tool are the schema of an object"),
    };
    let mut map = followed(given);
    match map.get("type") {
        Some(kind) if kind == "object" => {}
        None => {
            map.insert("type".to_owned(), "object".into());
        }
        _ => return invalid("the parameters of a tool have the type `object`"),
    }
    let mut schema = Value::Object(map);
    let closable = closable(&schema);
    close(&mut schema, &closable, 0);
    Ok(schema)
}

/// What stands at the top, or where a reference there leads to, if there is nothing beside it: some libraries write
/// every schema as one of its definitions.
fn followed(given: &Value) -> Map<String, Value> {
    let mut at = given;
    for _ in 0..REFERENCES_MAX {
        let reference = at.get("$ref").and_then(Value::as_str);
        match reference.and_then(|text| referred(given, text)) {
            Some(to) if to.is_object() && at.as_object().is_some_and(|map| is_alone(map, &[])) => {
                at = to;
            }
            _ => break,
        }
    }
    let mut map = at.as_object().cloned().unwrap_or_default();
    if !std::ptr::eq(at, given) {
        // References go on to lead to where they did.
        for name in ["$schema", "$id", "$defs", "definitions"] {
            map.shift_remove(name);
            if let Some(value) = given.get(name) {
                map.insert(name.to_owned(), value.clone());
            }
        }
    }
    map
}

/// Whether a schema says nothing but what one keyword that holds in place says, and these.
fn is_alone(map: &Map<String, Value>, beside: &[&str]) -> bool {
    let mut said = map
        .keys()
        .map(String::as_str)
        .filter(|name| says(name) && !["$schema", "$id"].contains(name) && !beside.contains(name));
    said.next().is_some_and(|name| IN_PLACE.contains(&name)) && said.next().is_none()
}

/// The schemas in `root` that alone say what a value is, wherever they hold; by their addresses.
fn closable(root: &Value) -> HashSet<*const Value> {
    let mut alone: HashMap<*const Value, bool> = HashMap::new();
    let mut waiting = vec![(root, true)];
    while let Some((schema, is)) = waiting.pop() {
        let Value::Object(map) = schema else {
            continue;
        };
        match alone.get(&std::ptr::from_ref(schema)) {
            // One place where another holds as well is enough to leave it.
            Some(&before) if before <= is => continue,
            _ => alone.insert(std::ptr::from_ref(schema), is),
        };
        let in_place = IN_PLACE.iter().any(|name| map.contains_key(*name));
        let whole = is && (!in_place || is_alone(map, &["type"]));
        for (name, value) in map {
            let one_by_one = |holds: bool| {
                let list = value.as_array().into_iter().flatten();
                list.map(move |schema| (schema, holds))
            };
            match name.as_str() {
                "$ref" => {
                    let to = value.as_str().and_then(|text| referred(root, text));
                    waiting.extend(to.map(|to| (to, whole)));
                }
                "anyOf" => waiting.extend(one_by_one(whole)),
                "allOf" => {
                    let one = value.as_array().is_some_and(|all| all.len() == 1);
                    waiting.extend(one_by_one(whole && one));
                }
                // Fewer values fit an option that is closed, and one that fitted two would fit one only.
                "oneOf" => waiting.extend(one_by_one(whole && are_told_apart(root, value))),
                "not" | "if" | "then" | "else" => waiting.push((value, false)),
                // A property may have a schema here and among the patterns.
                "properties" | "patternProperties" => {
                    let own = whole && !map.contains_key("patternProperties");
                    let all = value.as_object().into_iter().flat_map(Map::values);
                    waiting.extend(all.map(|schema| (schema, own)));
                }
                "items" | "prefixItems" | "additionalItems" | "additionalProperties" => {
                    waiting.extend(one_by_one(whole));
                    waiting.push((value, whole));
                }
                _ => {}
            }
        }
    }
    let alone = alone.into_iter().filter(|(_, is)| *is);
    alone.map(|(schema, _)| schema).collect()
}

/// Whether a property that all of these objects must have tells which of them a value is.
fn are_told_apart(root: &Value, options: &Value) -> bool {
    let options = options.as_array().map_or(&[][..], Vec::as_slice);
    let objects: Option<Vec<&Map<String, Value>>> = options
        .iter()
        .map(|option| {
            let map = option.as_object()?;
            match map.get("$ref").and_then(Value::as_str) {
                Some(text) if is_alone(map, &[]) => referred(root, text)?.as_object(),
                Some(_) => None,
                None => Some(map),
            }
        })
        .collect();
    let Some(objects) = objects else {
        return false;
    };
    let required =
        |map: &Map<String, Value>| map.get("required").and_then(Value::as_array).cloned();
    let Some(first) = objects.first().and_then(|first| required(first)) else {
        return false;
    };
    first
        .iter()
        .take(TAGS_MAX)
        .filter_map(Value::as_str)
        .any(|tag| {
            let mut seen = HashSet::new();
            objects.iter().all(|object| {
                let must = required(object).is_some_and(|all| all.iter().any(|name| name == tag));
                let schema = object.get("properties").and_then(|all| all.get(tag));
                let values = schema.and_then(|schema| match schema.get("const") {
                    Some(value) => Some(std::slice::from_ref(value)),
                    None => schema.get("enum")?.as_array().map(Vec::as_slice),
                });
                let values = values.filter(|values| values.iter().all(Value::is_string));
                let is_object = object.get("type").is_some_and(|kind| kind == "object");
                let mut own = HashSet::new();
                must && is_object
                    && values.is_some_and(|values| {
                        values
                            .iter()
                            .filter(|value| own.insert(value.as_str()))
                            .all(|value| seen.insert(value.as_str()))
                    })
            })
        })
}

/// Lets the objects that list their properties have no others, where that changes nothing that must be.
fn close(schema: &mut Value, closable: &HashSet<*const Value>, depth: usize) {
    // What is deeper is refused later.
    if depth > limits::SCHEMA_DEPTH_MAX {
        return;
    }
    let is_closable = closable.contains(&std::ptr::from_ref(schema));
    match schema {
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| close(item, closable, depth + 1)),
        Value::Object(map) => {
            // A schema's address is that of before until something is put beside it.
            map.values_mut()
                .for_each(|inner| close(inner, closable, depth + 1));
            if is_closable && lists_all(map) {
                map.entry("additionalProperties").or_insert(false.into());
            }
        }
        _ => {}
    }
}

/// Whether an object's properties are listed, those that it must have among them.
fn lists_all(map: &Map<String, Value>) -> bool {
    let has = |names: &[&str]| names.iter().any(|name| map.contains_key(*name));
    if has(&LEFT) || has(&IN_PLACE) {
        return false;
    }
    let Some(Value::Object(properties)) = map.get("properties") else {
        return false;
    };
    let required = map.get("required").and_then(Value::as_array);
    required.into_iter().flatten().all(|name| {
        name.as_str()
            .is_none_or(|name| properties.contains_key(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(given: &Value) -> Value {
        schema(Some(given)).expect("a schema of an object")
    }

    /// Where objects may have other properties, by JSON pointers.
    fn open(schema: &Value, at: &str, out: &mut Vec<String>) {
        match schema {
            Value::Object(map) => {
                if map.get("properties").is_some_and(Value::is_object)
                    && !map.contains_key("additionalProperties")
                {
                    out.push(at.to_owned());
                }
                map.iter()
                    .for_each(|(name, value)| open(value, &format!("{at}/{name}"), out));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.for_each(|(index, value)| open(value, &format!("{at}/{index}"), out));
            }
            _ => {}
        }
    }

    fn left_open(given: &Value) -> Vec<String> {
        let mut out = Vec::new();
        open(&closed(given), "", &mut out);
        out
    }

    fn of(name: &str) -> Value {
        json!({"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]})
    }

    #[test]
    fn objects_are_closed_where_their_schema_alone_says_what_they_are() {
        let (a, b) = (of("a"), of("b"));
        for alone in [
            json!({"type": "object", "properties": {"x": a, "y": {"type": "array", "items": b}}}),
            json!({"properties": {"x": {"type": "array", "prefixItems": [a, b], "items": a}}}),
            json!({"properties": {"x": {"type": "array", "items": [a, b], "additionalItems": a}}}),
            json!({"properties": {"x": {"anyOf": [a, b, {"type": "null"}], "title": "t"}}}),
            json!({"properties": {"x": {"type": "object", "anyOf": [a, b]}}}),
            json!({"properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}], "default": {}}}, "$defs": {"a": a}}),
            json!({"$defs": {"a": a, "n": {"type": "object", "properties": {"next": {"anyOf": [
                {"$ref": "#/$defs/n"}, {"type": "null"}]}, "a": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/n"}),
            json!({"properties": {"x": {"type": "object", "additionalProperties": a}}}),
        ] {
            assert_eq!(left_open(&alone), Vec::<String>::new(), "{alone}");
        }
        let defs = json!({"a": a, "b": b});
        for (given, left) in [
            // Two that hold at once would let nothing through.
            (
                json!({"properties": {"x": {"allOf": [a, b]}}}),
                vec!["/properties/x/allOf/0", "/properties/x/allOf/1"],
            ),
            (
                json!({"properties": {"x": {"properties": {"a": a}, "anyOf": [b, {"required": ["a"]}]}}}),
                vec![
                    "/properties/x",
                    "/properties/x/anyOf/0",
                    "/properties/x/properties/a",
                ],
            ),
            (
                json!({"properties": {"x": {"$ref": "#/$defs/a"}, "y": {"allOf": [{"$ref": "#/$defs/a"},
                    {"$ref": "#/$defs/b"}]}, "z": {"$ref": "#/$defs/b"}}, "$defs": defs}),
                vec!["/$defs/a", "/$defs/b"],
            ),
            (
                json!({"properties": {"x": {"properties": {"a": a}, "patternProperties": {"^a": b}}}}),
                vec![
                    "/properties/x",
                    "/properties/x/patternProperties/^a",
                    "/properties/x/properties/a",
                ],
            ),
            (
                json!({"properties": {"x": {"oneOf": [a, b]}}}),
                vec!["/properties/x/oneOf/0", "/properties/x/oneOf/1"],
            ),
            (
                json!({"properties": {"x": {"properties": {"a": {}}, "required": ["b"]}}}),
                vec!["/properties/x"],
            ),
            (
                json!({"properties": {"x": {"properties": {"a": {}}, "enum": [{"b": 1}]}}}),
                vec!["/properties/x"],
            ),
        ] {
            let mut open = left_open(&given);
            open.sort();
            assert_eq!(open, left, "{given}");
        }
        let kept = closed(&json!({"properties": {"x": {}}, "additionalProperties": true}));
        assert_eq!(kept["additionalProperties"], true);
    }

    #[test]
    fn options_that_a_property_tells_apart_are_closed() {
        let tagged = |values: Value| json!({"type": "object", "properties": {"kind": values, "x": {}}, "required": ["x", "kind"]});
        let (one, two) = (
            tagged(json!({"const": "one"})),
            tagged(json!({"enum": ["two", "three"]})),
        );
        let union = |options: Value| json!({"properties": {"u": {"oneOf": options}}});
        assert!(left_open(&union(json!([one, two]))).is_empty());
        let mut referred = union(json!([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}]));
        referred["$defs"] = json!({"one": one, "two": two});
        assert!(left_open(&referred).is_empty());
        let same = left_open(&union(json!([two, tagged(json!({"const": "two"}))])));
        assert_eq!(same, ["/properties/u/oneOf/0", "/properties/u/oneOf/1"]);
        assert_eq!(
            left_open(&union(json!([two, {"type": "null"}]))),
            ["/properties/u/oneOf/0"]
        );
    }

    #[test]
    fn a_reference_at_the_top_is_followed() {
        let defs = json!({"a": {"$ref": "#/$defs/b"}, "b": of("b"), "c": {"$ref": "#/$defs/c"}, "d": {"type": "string"}});
        let given = json!({"$schema": "http://json-schema.org/draft-07/schema#", "$defs": defs, "$ref": "#/$defs/a"});
        let schema = closed(&given);
        assert_eq!(schema["properties"], of("b")["properties"]);
        assert_eq!(schema["additionalProperties"], false);
        assert!(
            schema.get("$ref").is_none()
                && schema["$defs"] == defs
                && schema.get("$schema").is_some()
        );
        let wrong = |reference: &str| schema_of(&json!({"$defs": defs, "$ref": reference}));
        assert!(wrong("#/$defs/d").is_err());
        // What leads nowhere is refused by those who follow it.
        for reference in ["#/$defs/c", "#/$defs/x", "#", "other.json"] {
            assert_eq!(wrong(reference).expect("as it is")["$ref"], reference);
        }
    }

    fn schema_of(given: &Value) -> Result<Value, GrammarError> {
        schema(Some(given))
    }
}
