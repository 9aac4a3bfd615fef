//! The smallest instance of a schema, in bytes, from below: `None` is a schema that no finite value satisfies.
//!
//! Definitions may refer to each other in circles, so sizes are found by going over all of them until nothing changes. What
//! must hold at once counts as the largest of its parts, so the size is never too large: a schema without one has no
//! instances, but not the other way round.

use serde_json::Value;

use super::walk;
use crate::grammar::closing::Reserve;

/// The size of the smallest instance of `root`.
pub(super) fn smallest(root: &Value, definitions: &[Value]) -> Option<usize> {
    let mut sizes = vec![None; definitions.len()];
    // Each round settles at least one more definition, or none is left that can be settled.
    for _ in 0..definitions.len() {
        let mut changed = false;
        for (index, definition) in definitions.iter().enumerate() {
            let size = of(definition, &sizes);
            if size != sizes[index] && sizes[index].is_none() {
                sizes[index] = size;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    of(root, &sizes)
}

fn of(schema: &Value, sizes: &[Option<usize>]) -> Option<usize> {
    let Value::Object(map) = schema else {
        // `true` has a digit as its smallest instance.
        return (schema == &Value::Bool(true)).then_some(1);
    };
    let mut size = 1usize;
    let list = |name: &str| map.get(name).and_then(Value::as_array);
    if let Some(Value::String(reference)) = map.get("$ref") {
        let index = walk::definition_index(reference)?;
        size = size.max(sizes.get(index).copied().flatten()?);
    }
    for name in ["anyOf", "oneOf"] {
        if let Some(options) = list(name) {
            size = size.max(
                options
                    .iter()
                    .filter_map(|option| of(option, sizes))
                    .min()?,
            );
        }
    }
    for part in list("allOf").into_iter().flatten() {
        size = size.max(of(part, sizes)?);
    }
    if let Some(value) = map.get("const") {
        return Some(size.max(value.to_string().len()));
    }
    if let Some(values) = list("enum") {
        let least = values.iter().map(|value| value.to_string().len()).min()?;
        return Some(size.max(least));
    }
    let own = |name: &str| of_type(name, map, sizes);
    let typed = match map.get("type") {
        Some(Value::String(name)) => own(name)?,
        Some(Value::Array(names)) => names.iter().filter_map(|name| own(name.as_str()?)).min()?,
        _ => 1,
    };
    Some(size.max(typed))
}

fn of_type(
    name: &str,
    map: &serde_json::Map<String, Value>,
    sizes: &[Option<usize>],
) -> Option<usize> {
    let count = |name: &str| map.get(name).and_then(Value::as_u64).unwrap_or(0) as usize;
    match name {
        "null" | "boolean" => Some(4),
        "string" => Some(2 + count("minLength")),
        "array" => {
            let least = count("minItems");
            let prefix = map.get("prefixItems").and_then(Value::as_array);
            let prefix = prefix.map_or(&[][..], Vec::as_slice);
            let mut size = 2 + least.saturating_sub(1);
            for item in prefix.iter().take(least) {
                size = size.saturating_add(of(item, sizes)?);
            }
            if least > prefix.len() {
                let item = map.get("items").map_or(Some(1), |items| of(items, sizes))?;
                size = size.saturating_add(item.saturating_mul(least - prefix.len()));
            }
            Some(size)
        }
        "object" => {
            let required = map.get("required").and_then(Value::as_array);
            let properties = map.get("properties").and_then(Value::as_object);
            let mut size = 2usize;
            for name in required.into_iter().flatten().filter_map(Value::as_str) {
                let value = match properties.and_then(|all| all.get(name)) {
                    Some(schema) => of(schema, sizes)?,
                    None => 1,
                };
                size = size.saturating_add(name.len() + 4 + value);
            }
            Some(size)
        }
        _ => Some(1),
    }
}

/// What an answer may need to close: everything that the schema lists, each as small as it may be. A byte counts as a token.
pub(super) fn reserve(root: &Value, definitions: &[Value]) -> Reserve {
    let mut reserve = Reserve {
        tokens: 8,
        nests: !definitions.is_empty(),
        open: false,
        between: None,
    };
    let mut waiting: Vec<&Value> = definitions.iter().chain([root]).collect();
    while let Some(schema) = waiting.pop() {
        let Value::Object(map) = schema else {
            // Whatever `true` takes in.
            reserve.nests |= schema == &Value::Bool(true);
            reserve.open |= schema == &Value::Bool(true);
            continue;
        };
        let own = |name: &str| map.get(name).and_then(Value::as_u64).unwrap_or(0) as usize;
        let mut tokens = 4 + own("minLength") + 2 * own("minItems");
        for name in ["anyOf", "oneOf", "allOf", "prefixItems"] {
            waiting.extend(
                map.get(name)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten(),
            );
        }
        waiting.extend(map.get("items"));
        for name in ["properties", "patternProperties"] {
            for (name, value) in map
                .get(name)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                tokens += name.len() + 4;
                waiting.push(value);
            }
        }
        let listed = ["const", "enum"]
            .iter()
            .filter_map(|name| map.get(*name))
            .next();
        if let Some(value) = listed {
            tokens += match value {
                Value::Array(values) => values.iter().map(|value| value.to_string().len()).max(),
                value => Some(value.to_string().len()),
            }
            .unwrap_or(0);
        } else {
            let takes = |name: &str| match map.get("type") {
                Some(Value::String(only)) => only == name,
                Some(Value::Array(names)) => names.iter().any(|one| one == name),
                // What other schemas say is counted there.
                None => !["$ref", "anyOf", "oneOf", "allOf"]
                    .iter()
                    .any(|name| map.contains_key(*name)),
                Some(_) => true,
            };
            let open =
                |name: &str| !matches!(map.get(name), Some(Value::Object(_) | Value::Bool(false)));
            let any = takes("array") && open("items") && own("maxItems") != listed_items(map)
                || takes("object") && open("additionalProperties");
            reserve.nests |= any;
            reserve.open |= any;
            reserve.open |= takes("object")
                && (map.get("additionalProperties") != Some(&Value::Bool(false))
                    || map.contains_key("patternProperties"));
        }
        if let Some(value) = map.get("additionalProperties") {
            waiting.push(value);
        }
        reserve.tokens = reserve.tokens.saturating_add(tokens);
    }
    reserve
}

/// Items that a schema lists one by one.
fn listed_items(map: &serde_json::Map<String, Value>) -> usize {
    map.get("prefixItems")
        .and_then(Value::as_array)
        .map_or(0, Vec::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_reserve_tells_what_is_open() {
        let of = |schema: Value| reserve(&schema, &[]);
        let closed = of(
            json!({"type": "object", "properties": {"name": {"type": "string"}},
            "additionalProperties": false}),
        );
        assert_eq!((closed.nests, closed.open), (false, false));
        assert!((16..40).contains(&closed.tokens));
        let map = of(json!({"type": "object", "additionalProperties": {"type": "string"}}));
        assert_eq!((map.nests, map.open), (false, true));
        let open = of(json!({"type": "object", "properties": {"a": {"type": "null"}}}));
        assert_eq!((open.nests, open.open), (true, true));
        let any = of(json!({"type": "array", "maxItems": 2}));
        assert_eq!((any.nests, any.open), (true, true));
        assert!(of(json!(true)).nests && of(json!(true)).open);
    }

    #[test]
    fn circles_without_a_way_out_have_no_size() {
        let list = |required| {
            json!({"type": "object", "properties": {"next": {"$ref": "#/$defs/d0"}},
                "required": if required { vec!["next"] } else { vec![] }})
        };
        let root = json!({"$ref": "#/$defs/d0"});
        assert_eq!(smallest(&root, &[list(true)]), None);
        assert_eq!(smallest(&root, &[list(false)]), Some(2));
        let around = [json!({"$ref": "#/$defs/d1"}), json!({"$ref": "#/$defs/d0"})];
        assert_eq!(smallest(&root, &around), None);
        let out = [json!({"anyOf": [{"$ref": "#/$defs/d0"}, {"const": "end"}]})];
        assert_eq!(smallest(&root, &out), Some(5));
        assert_eq!(
            smallest(
                &json!({"type": "array", "minItems": 2, "items": false}),
                &[]
            ),
            None
        );
        assert_eq!(smallest(&json!(true), &[]), Some(1));
    }
}
