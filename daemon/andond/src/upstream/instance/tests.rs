//! Keywords against the standard, and what is too much.

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
            json!({"$id": "urn:press", "$defs": {"a b": {"type": "null"}}, "properties": {
                "x": {"$ref": "#/$defs/a%20b"}, "y": {"$ref": "urn:press#/$defs/a%20b"}}}),
            json!([{"x": null, "y": null}]),
            json!([{"x": 1}, {"y": 1}]),
        ),
        (
            json!({"title": "t", "description": "d", "default": 1, "examples": [], "x-unit": "mm",
                "$comment": "c", "readOnly": true, "type": "integer"}),
            json!([7]),
            json!(["7"]),
        ),
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
        (
            json!({"format": "time"}),
            json!(["23:59:60Z", "00:00:00.25+02:00"]),
            json!(["24:00:00Z", "12:00:00"]),
        ),
        (
            json!({"format": "ipv6"}),
            json!(["::1", "fe80::1"]),
            json!(["::g", "10.0.0.1"]),
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

#[test]
fn every_keyword_and_format_of_the_engine_is_known_here() {
    // With each keyword something that has to fail, but those that only say how a schema is written.
    for name in keyword::ENFORCED {
        let (schema, value) = match name {
            "$schema" | "$id" => continue,
            "$ref" => (
                json!({"$ref": "#/$defs/n", "$defs": {"n": false}}),
                json!(1),
            ),
            "type" => (json!({"type": "string"}), json!(1)),
            "enum" => (json!({"enum": [2]}), json!(1)),
            "const" => (json!({"const": 2}), json!(1)),
            "anyOf" | "oneOf" | "allOf" => (json!({name: [false]}), json!(1)),
            "properties" => (json!({name: {"a": false}}), json!({"a": 1})),
            "patternProperties" => (json!({name: {"^a": false}}), json!({"a": 1})),
            "additionalProperties" => (json!({name: false}), json!({"a": 1})),
            "required" => (json!({name: ["a"]}), json!({})),
            "minProperties" => (json!({name: 1}), json!({})),
            "maxProperties" => (json!({name: 0}), json!({"a": 1})),
            "items" => (json!({name: false}), json!([1])),
            "prefixItems" => (json!({name: [false]}), json!([1])),
            "additionalItems" => (json!({name: false, "items": [true]}), json!([1, 2])),
            "minItems" => (json!({name: 1}), json!([])),
            "maxItems" => (json!({name: 0}), json!([1])),
            "uniqueItems" => (json!({name: true}), json!([1, 1])),
            "minLength" => (json!({name: 1}), json!("")),
            "maxLength" => (json!({name: 0}), json!("a")),
            "pattern" => (json!({name: "b"}), json!("a")),
            "format" => (json!({name: "date"}), json!("a")),
            "minimum" | "exclusiveMinimum" => (json!({name: 2}), json!(1)),
            "maximum" | "exclusiveMaximum" => (json!({name: 0}), json!(1)),
            "multipleOf" => (json!({name: 2}), json!(1)),
            other => panic!("{other} is enforced, and nobody checks it in answers from elsewhere"),
        };
        assert!(check(&schema, &value).is_err(), "{schema} {value}");
    }
    for format in keyword::FORMATS {
        let good = [
            "2024-02-29",
            "2024-02-29T23:59:60Z",
            "P1D",
            "a@b",
            "b",
            "10.0.0.1",
            "::1",
            "12:00:00Z",
            "a:b",
            "123e4567-e89b-12d3-a456-426614174000",
        ];
        let fits = |text: &&str| check(&json!({"format": format}), &json!(text)).is_ok();
        assert!(good.iter().any(fits), "nothing has the format {format}");
    }
}

#[test]
fn what_cannot_be_found_out_lets_nothing_pass() {
    // The second schema of each would fit as well, or nobody knows.
    for unknown in [
        json!({"pattern": "("}),
        json!({"$ref": "#/nowhere"}),
        json!({"not": {"type": "null"}}),
        json!({"format": "else"}),
        json!({"$ref": "#/oneOf/1"}),
    ] {
        let schema = json!({"oneOf": [{"type": "string"}, unknown]});
        assert!(check(&schema, &json!("a")).is_err(), "{schema}");
    }
}

#[test]
fn an_expression_is_compiled_once_and_what_takes_long_is_given_up() {
    // Some milliseconds each to compile: a thousand times would be seconds.
    let large = r"^\w{1,20}";
    let many = Value::Array(vec![json!("press-3-plant-7"); 5_000]);
    let began = std::time::Instant::now();
    let schema = json!({"items": {"anyOf": [{"pattern": large}, {"type": "string"}]}});
    assert_eq!(check(&schema, &many), Ok(()));
    assert!(
        began.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    let different: Vec<Value> = (0..1_000)
        .map(|at| json!({"pattern": format!("a{at}|")}))
        .collect();
    assert_eq!(
        check(&json!({"allOf": different}), &json!("a")),
        Err(mismatch("too much to check"))
    );
    let long = json!("x".repeat(1024 * 1024));
    let often: Vec<Value> = (0..100).map(|_| json!({"maxLength": 2_000_000})).collect();
    assert_eq!(
        check(&json!({"allOf": often}), &long),
        Err(mismatch("too much to check"))
    );
    assert_eq!(
        check(&json!({"maxLength": 2_000_000, "pattern": "^x"}), &long),
        Ok(())
    );
    let wide: Map<String, Value> = (0..1_000)
        .map(|at| (format!("p{at}"), json!(true)))
        .collect();
    let empty = Value::Array(vec![json!({}); 1_000]);
    let schema = json!({"items": {"properties": wide}});
    assert_eq!(check(&schema, &empty), Err(mismatch("too much to check")));
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
