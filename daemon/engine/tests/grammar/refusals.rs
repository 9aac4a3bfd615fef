//! What is not enforced is refused before the first token, by name and place.

use andon_engine::grammar::{Constraint, Grammar, limits};
use serde_json::{Value, json};

use crate::{compile, schema, vocabulary};

fn refusal(given: &Value) -> String {
    match schema(given) {
        Ok(_) => panic!("{given} compiles"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn keywords_are_refused_by_name_and_place() {
    for (given, parts) in [
        (json!({"not": {}}), ["`not`", "at ``"]),
        (
            json!({"properties": {"a/b": {"if": true}}}),
            ["`if`", "`/properties/a~1b`"],
        ),
        (
            json!({"items": {"uniqueItems": true}}),
            ["`uniqueItems`", "`/items`"],
        ),
        (
            json!({"anyOf": [{}, {"maxLenght": 3}]}),
            ["`maxLenght`", "`/anyOf/1`"],
        ),
        (
            json!({"format": "regex"}),
            ["`format: regex`", "formats that are enforced"],
        ),
        (
            json!({"$ref": "http://example.com/x"}),
            ["`$ref`", "same schema"],
        ),
        (json!({"$ref": "#name"}), ["`$ref`", "JSON pointers"]),
        (json!({"$ref": "#/$defs/x"}), ["/$ref", "leads nowhere"]),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"contains": 1}}}),
            ["`contains`", "`/$defs/a`"],
        ),
        (
            json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
            ["`$schema`", "2020-12"],
        ),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#", "type": "null"}),
            ["`type`", "draft 7"],
        ),
        (
            json!({"properties": {"a": {"$id": "x"}}}),
            ["`$id`", "below the top"],
        ),
        (json!({"x-guidance": {}}), ["`x-guidance`", "not supported"]),
        (json!({"multipleOf": 1e-9}), ["`multipleOf`", "digits"]),
    ] {
        let refusal = refusal(&given);
        for part in parts {
            assert!(refusal.contains(part), "{given}: {refusal}");
        }
    }
    // Notes are not in the way.
    let noted = json!({"title": "t", "description": "d", "examples": [1], "x-note": {"not": 1}, "$comment": "c",
        "default": 3, "deprecated": true, "type": "integer", "uniqueItems": false, "$defs": {"unused": {"not": {}}}});
    assert!(schema(&noted).is_ok());
}

#[test]
fn values_of_keywords_are_checked() {
    for (given, part) in [
        (json!(3), "a schema is an object"),
        (json!({"type": "text"}), "/type"),
        (json!({"type": []}), "/type"),
        (json!({"enum": []}), "empty"),
        (json!({"enum": 3}), "not an array"),
        (json!({"properties": []}), "not an object"),
        (json!({"properties": {"a": 1}}), "/properties/a"),
        (json!({"required": [1]}), "list of strings"),
        (json!({"minLength": -1}), "whole number"),
        (json!({"minItems": 1.5}), "whole number"),
        (json!({"minLength": 2_000_000}), "above"),
        (json!({"minimum": "1"}), "not a number"),
        (json!({"minimum": 1e16}), "beyond"),
        (json!({"const": 1e300}), "beyond"),
        (json!({"const": "\u{1}"}), "control characters"),
        (json!({"multipleOf": 0}), "above 0"),
        (json!({"pattern": 1}), "not a string"),
        (json!({"pattern": "x".repeat(5000)}), "bytes"),
        (json!({"anyOf": [1]}), "/anyOf/0"),
        (json!({"prefixItems": {}}), "not an array"),
    ] {
        let refusal = refusal(&given);
        assert!(refusal.contains(part), "{given}: {refusal}");
    }
}

#[test]
fn what_nothing_satisfies_is_refused() {
    for given in [
        json!(false),
        json!({"type": "string", "minLength": 3, "maxLength": 2}),
        json!({"type": "integer", "minimum": 3, "maximum": 2}),
        json!({"type": "string", "enum": [1, 2]}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"type": "object", "required": ["a"], "additionalProperties": false}),
        json!({"type": "object", "required": ["a"], "properties": {"a": false}}),
        json!({"type": "array", "minItems": 1, "items": false}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}}),
    ] {
        let error = schema(&given).expect_err("nothing satisfies it");
        let text = error.to_string();
        assert!(text.contains("nothing satisfies"), "{given}: {text}");
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let mut deep = json!({});
    for _ in 0..=limits::SCHEMA_DEPTH_MAX {
        deep = json!({ "items": deep });
    }
    let wide: Vec<_> = (0..=limits::SCHEMA_VALUES_MAX).collect();
    let many: Vec<_> = (0..=limits::SCHEMA_FANOUT_MAX).collect();
    for (given, part) in [
        (deep, "nests in levels"),
        (json!({ "enum": wide }), "has values"),
        (json!({ "enum": many }), "are taken"),
        (
            json!({"const": "x".repeat(limits::SOURCE_BYTES_MAX + 1)}),
            "bytes",
        ),
    ] {
        let refusal = refusal(&given);
        assert!(refusal.contains(part), "{refusal}");
    }
    let long = "a".repeat(limits::SOURCE_BYTES_MAX + 1);
    let nested = "(".repeat(200) + "a" + &")".repeat(200);
    for constraint in [
        Constraint::Regex(long.clone()),
        Constraint::Lark(long.clone()),
        Constraint::Gbnf(long),
        Constraint::Regex(nested.clone()),
        Constraint::Gbnf(format!("root ::= {nested}")),
    ] {
        let error = compile(&constraint)
            .expect_err("it is too large")
            .to_string();
        assert!(
            error.contains("at most") || error.contains("complex"),
            "{error}"
        );
    }
}

#[test]
fn sources_that_do_not_parse_are_refused() {
    for constraint in [
        Constraint::Regex("(".to_owned()),
        Constraint::Regex("a(?=b)".to_owned()),
        Constraint::Lark("start:".to_owned() + " nothing"),
        Constraint::Lark("start: %json {\"not\": {}}".to_owned()),
        Constraint::Lark("%llguidance {}\nstart: \"a\"".to_owned()),
        Constraint::Gbnf("root ::= x".to_owned()),
        Constraint::Lark(String::new()),
    ] {
        let error = compile(&constraint)
            .expect_err("it is not valid")
            .to_string();
        assert!(error.contains("is not valid"), "{constraint:?}: {error}");
        assert!(error.len() < 500 && !error.contains('\n'), "{error}");
    }
    let impossible = Constraint::Regex("a[^\\s\\S]".to_owned());
    assert!(Grammar::compile(vocabulary::shared(), &impossible, 16).is_err());
}

#[test]
fn a_limit_that_no_answer_keeps_is_refused() {
    let given = json!({"type": "object", "required": ["severity"], "additionalProperties": false,
        "properties": {"severity": {"enum": ["low", "lost"]}}});
    let with = |limit| {
        let constraint = Constraint::JsonSchema(given.clone());
        Grammar::compile(vocabulary::shared(), &constraint, limit).map(drop)
    };
    // `{"`, `severity`, `":"`, `lo` come first, whatever follows.
    let error = with(2).expect_err("no answer has two tokens").to_string();
    assert_eq!(
        error,
        "no answer has at most 2 tokens: each begins with the same 3"
    );
    assert_eq!((with(3), with(0)), (Ok(()), Ok(())));
}
