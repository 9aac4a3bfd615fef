//! The cases of the JSON Schema test suite, where they lie beside the repository: what is valid can be said, and what is
//! not cannot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use andon_engine::grammar::{Grammar, GrammarError};
use serde_json::{Map, Value};

use crate::{reached, schema};

/// Orders of the names in an instance that are tried.
const ORDERS_MAX: usize = 120;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/json-schema-suite")
}

/// The orders that the names of all objects in a value may have, a part of them if they are many.
fn orders(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items
            .iter()
            .fold(vec![Value::Array(Vec::new())], |heads, item| {
                let tails = orders(item);
                let with = |head: &Value, tail: &Value| {
                    let mut items = head.as_array().cloned().unwrap_or_default();
                    items.push(tail.clone());
                    Value::Array(items)
                };
                let all = heads
                    .iter()
                    .flat_map(|head| tails.iter().map(move |tail| with(head, tail)));
                all.take(ORDERS_MAX).collect()
            }),
        Value::Object(map) => {
            let mut all = Vec::new();
            let names: Vec<&String> = map.keys().collect();
            permute(&names, &mut Vec::new(), &mut |names| {
                let mut heads = vec![Map::new()];
                for name in names {
                    let tails = orders(&map[*name]);
                    heads = heads
                        .iter()
                        .flat_map(|head| {
                            tails.iter().map(move |tail| {
                                let mut head = head.clone();
                                head.insert((*name).clone(), tail.clone());
                                head
                            })
                        })
                        .take(ORDERS_MAX)
                        .collect();
                }
                all.extend(heads.into_iter().map(Value::Object));
                all.len() < ORDERS_MAX
            });
            all
        }
        Value::Number(number) => {
            // `1.0` is `1`, and is said so.
            let float = number.as_f64().unwrap_or(f64::NAN);
            let whole = float.fract() == 0.0 && float.abs() < 1e15;
            vec![if whole {
                Value::from(float as i64)
            } else {
                value.clone()
            }]
        }
        other => vec![other.clone()],
    }
}

fn permute<'a>(
    names: &[&'a String],
    order: &mut Vec<&'a String>,
    found: &mut impl FnMut(&[&'a String]) -> bool,
) -> bool {
    if order.len() == names.len() {
        return found(order);
    }
    for name in names {
        if !order.contains(name) {
            order.push(name);
            let go_on = permute(names, order, found);
            order.pop();
            if !go_on {
                return false;
            }
        }
    }
    true
}

fn is_reached(grammar: &Grammar, instance: &Value) -> bool {
    orders(instance)
        .iter()
        .any(|instance| reached(grammar, &instance.to_string()))
}

/// Whether an instance is beyond what answers may have whatever their schema: numbers of many digits, control characters.
fn is_beyond(instance: &Value) -> bool {
    match instance {
        Value::Number(number) => {
            let float = number.as_f64().unwrap_or(f64::INFINITY);
            let scaled = float * 1e6;
            float.abs() > 1e15 || (scaled - scaled.round()).abs() > 1e-9 * scaled.abs().max(1.0)
        }
        Value::String(text) => text
            .chars()
            .any(|c| c.is_control() && !"\n\r\t".contains(c)),
        Value::Array(items) => items.iter().any(is_beyond),
        Value::Object(map) => map.values().any(is_beyond),
        _ => false,
    }
}

#[derive(Default)]
struct Tally {
    schemas: usize,
    compiled: usize,
    instances: usize,
    beyond: usize,
    refused: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

#[test]
fn what_is_valid_is_reached_and_nothing_else() {
    let mut tally = Tally::default();
    for draft in ["draft2020-12", "draft7"] {
        let Ok(files) = std::fs::read_dir(folder().join(draft)) else {
            println!("the suite is not there");
            return;
        };
        let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            // There formats are notes, and here they are enforced.
            if file.file_stem().is_some_and(|name| name != "format") {
                run(draft, &file, &mut tally);
            }
        }
    }
    let Tally {
        schemas,
        compiled,
        instances,
        beyond,
        refused,
        wrong,
    } = tally;
    println!(
        "{compiled} of {schemas} schemas compile, with {instances} instances ({beyond} more beyond all bounds)"
    );
    let mut refused: Vec<_> = refused.into_iter().collect();
    refused.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (why, count) in refused {
        println!("{count:5} {why}");
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn run(draft: &str, file: &Path, tally: &mut Tally) {
    let text = std::fs::read_to_string(file).expect("a file");
    let groups: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    for group in groups {
        let mut given = group["schema"].clone();
        if let (Value::Object(map), "draft7") = (&mut given, draft) {
            let uri = "http://json-schema.org/draft-07/schema#";
            map.entry("$schema").or_insert_with(|| uri.into());
        }
        tally.schemas += 1;
        let name = format!(
            "{draft}/{} {}",
            file.file_stem().unwrap_or_default().to_string_lossy(),
            group["description"]
        );
        let grammar = match schema(&given) {
            Ok(grammar) => {
                tally.compiled += 1;
                Some(grammar)
            }
            // Nothing satisfies it, so nothing may be valid.
            Err(GrammarError::Unsatisfiable { .. }) => None,
            Err(error) => {
                let why = match &error {
                    GrammarError::Unsupported {
                        keyword, reason, ..
                    } => format!("{keyword}{reason}"),
                    other => other.to_string(),
                };
                *tally.refused.entry(why).or_default() += 1;
                continue;
            }
        };
        for test in group["tests"].as_array().expect("tests") {
            if is_beyond(&test["data"]) {
                tally.beyond += 1;
                continue;
            }
            tally.instances += 1;
            let reached = grammar
                .as_ref()
                .is_some_and(|grammar| is_reached(grammar, &test["data"]));
            if test["valid"] != reached {
                let (valid, data) = (&test["valid"], &test["data"]);
                tally
                    .wrong
                    .push(format!("{name}: {given}: {data} is valid: {valid}"));
            }
        }
    }
}
