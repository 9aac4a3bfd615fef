//! The state of an answer: what is forced, taking back, and looking ahead.

use andon_engine::grammar::{Allowed, Constraint, State};
use andon_engine::tokenizer::Special;
use serde_json::json;

use crate::{compile, reached, schema, vocabulary};

fn begun(constraint: &Constraint) -> State {
    let mut state = compile(constraint).expect("it compiles").state();
    state.begin(false, 1 << 20).expect("it begins");
    state
}

fn text(ids: &[u32]) -> String {
    vocabulary::tokenizer().decode(ids)
}

fn tokens(text: &str) -> Vec<u32> {
    vocabulary::tokenizer().encode(text, Special::Plain)
}

fn words(state: &mut State) -> Vec<u32> {
    match state.allowed().expect("something may come") {
        Allowed::One(id) => panic!("{id} is forced"),
        Allowed::Any(words) => words.to_vec(),
    }
}

fn named() -> Constraint {
    Constraint::JsonSchema(json!({
        "type": "object",
        "properties": {
            "severity": { "enum": ["low", "lost", "high"] },
            "name": { "type": "boolean" }
        },
        "required": ["severity", "name"],
        "additionalProperties": false
    }))
}

#[test]
fn forced_tokens_are_the_canonical_ones() {
    let mut state = begun(&named());
    // Between the colon and the quote there is no choice either, and the tokenizer makes one token of them.
    assert_eq!(text(state.forced()), "{\"severity\":\"");
    assert_eq!(state.forced(), tokens("{\"severity\":\""));
    let forced = state.forced().to_vec();
    for &id in &forced {
        assert_eq!(state.allowed(), Ok(Allowed::One(id)));
        assert!(state.accept(id + 1).is_err(), "nothing else is taken");
        state.accept(id).expect("it is forced");
    }
    state.accept(tokens("h")[0]).expect("one of three");
    assert_eq!(text(state.forced()), "igh\",\"name\":");
}

#[test]
fn what_is_taken_back_leaves_the_state_as_it_was() {
    let mut state = begun(&named());
    let answer = tokens("{\"severity\":\"low\",\"name\":true}");
    let mut seen = Vec::new();
    for &id in &answer {
        let forced = state.forced().to_vec();
        let open = if forced.is_empty() {
            words(&mut state)
        } else {
            Vec::new()
        };
        seen.push((forced, open));
        state.accept(id).expect("it is the answer");
    }
    assert!(state.is_finished() && state.is_accepting());
    assert!(state.accept(vocabulary::END).is_err(), "nothing follows");
    for count in 1..=answer.len() {
        state.rollback(count).expect("so many were taken");
        let place = answer.len() - count;
        assert!(!state.is_finished());
        for (at, (forced, open)) in seen.iter().enumerate().skip(place) {
            assert_eq!(state.forced(), forced, "{count} {at}");
            if forced.is_empty() {
                assert_eq!(&words(&mut state), open, "{count} {at}");
            }
            state.accept(answer[at]).expect("it still is");
        }
        assert!(state.is_finished());
    }
    assert!(state.rollback(answer.len() + 1).is_err());
}

#[test]
fn a_draft_counts_as_far_as_it_fits() {
    let state = begun(&named());
    let fitting = |draft: &[u32]| {
        let mut fork = state.fork();
        let mut fits = |id: u32| !fork.is_finished() && fork.accept(id).is_ok();
        draft.iter().take_while(|&&id| fits(id)).count()
    };
    let right = tokens("{\"severity\":\"high\",\"name\":false}");
    assert_eq!(fitting(&right), right.len());
    let mut wrong = right.clone();
    wrong[6] = tokens("x")[0];
    assert_eq!(fitting(&wrong), 6);
    let mut long = right.clone();
    long.push(vocabulary::END);
    assert_eq!(fitting(&long), right.len());
    // Another cut of the same text is not the canonical one.
    assert_eq!(fitting(&[u32::from(b'{')]), 0);
    assert_eq!(text(state.forced()), "{\"severity\":\"");
}

/// `a`, or `b` and then `c` without end in so many ways that following it is given up.
pub(crate) fn endless() -> Constraint {
    let count = 300;
    let ways: Vec<String> = (0..count).map(|way| format!("w{way}")).collect();
    let rules: Vec<String> = ways
        .iter()
        .map(|way| format!("{way}: \"c\" {way}\n"))
        .collect();
    let all = ways.join(" | ");
    Constraint::Lark(format!(
        "start: \"a\" | \"b\" all\nall: {all}\n{}",
        rules.concat()
    ))
}

#[test]
fn a_token_that_cannot_be_followed_is_not_taken() {
    let mut state = begun(&endless());
    let mut other = state.fork();
    assert!(state.forced().is_empty());
    assert!(state.accept(u32::from(b'b')).is_err());
    assert!(!state.is_finished() && state.forced().is_empty());
    assert!(state.rollback(1).is_err(), "there is none to take back");
    assert!(state.prepare().is_err() && state.accept(u32::from(b'a')).is_err());
    other.accept(u32::from(b'a')).expect("the other way");
    assert!(other.is_finished());
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut state = begun(&Constraint::Regex("(ab|cd)+".to_owned()));
    let mut fork = state.fork();
    state.accept(u32::from(b'a')).expect("one way");
    fork.accept(u32::from(b'c')).expect("the other");
    assert_eq!(
        (text(state.forced()), text(fork.forced())),
        ("b".into(), "d".into())
    );
}

#[test]
fn an_answer_may_end_where_its_text_is_whole() {
    let mut state = begun(&Constraint::Regex("a+".to_owned()));
    let end = vocabulary::END;
    let ends = |words: &[u32]| words[end as usize / 32] >> (end % 32) & 1 == 1;
    // The first is forced.
    assert_eq!(state.forced(), [u32::from(b'a')]);
    assert!(!state.is_accepting());
    state.accept(u32::from(b'a')).expect("it is forced");
    assert!(state.is_accepting() && !state.is_finished());
    assert!(ends(&words(&mut state)));
    state.accept(end).expect("the end");
    assert!(state.is_finished());
    state.rollback(1).expect("one was taken");
    assert!(!state.is_finished() && ends(&words(&mut state)));
}

#[test]
fn one_token_is_taken_exactly_where_all_that_may_come_have_it() {
    let long = "abc ".repeat(400);
    let constraints = [
        named(),
        Constraint::JsonObject,
        Constraint::JsonSchema(json!({"type": "array", "maxItems": 9, "items": {"anyOf": [
            {"type": "string", "maxLength": 5}, {"type": "number"}, {"type": "string", "format": "date"},
            {"type": "object", "patternProperties": {"^[ab]+$": {"const": [null, "é", true]}}}]}})),
        Constraint::Regex(format!(r"(severity|low|\w{{2,5}} ?)*({long})?\d+")),
        Constraint::Gbnf("root ::= [a-z]{0,9} (\"{\" root? \"}\" | \"é\")*".to_owned()),
        Constraint::Lark(
            "start: A b? start?\nA: /[a-f]+/\nb[lazy]: /.*;/\n%ignore / /\n".to_owned(),
        ),
    ];
    for constraint in constraints {
        for seed in 0_u32..6 {
            let grammar = compile(&constraint).expect("it compiles");
            let mut state = grammar.state();
            let start = state.begin(seed % 2 == 1, 40 + 40 * seed as usize);
            start.expect("it begins");
            let (mut draw, mut known) = (seed, 0);
            for _ in 0..120 {
                if state.is_finished() {
                    break;
                }
                let ids = 0..vocabulary::COUNT as u32 + 40;
                // A state only tells of so many without a mask.
                let mut fork = state.fork();
                let mut takes = |id| {
                    if id % 32 == 0 {
                        fork = state.fork();
                    }
                    fork.takes(id)
                };
                let takes: Vec<_> = ids.map(&mut takes).collect();
                let next = match state.allowed() {
                    Ok(Allowed::One(only)) => {
                        let only = (0..)
                            .zip(&takes)
                            .all(|(id, &takes)| takes == Some(id == only));
                        assert!(only, "{constraint:?}");
                        state.forced()[0]
                    }
                    Ok(Allowed::Any(words)) => {
                        let has = |id: u32| {
                            let word = words.get(id as usize / 32);
                            word.is_some_and(|word| word >> (id % 32) & 1 == 1)
                        };
                        for (id, &takes) in (0..).zip(&takes) {
                            assert_eq!(takes.unwrap_or(has(id)), has(id), "{constraint:?} {id}");
                        }
                        known += takes.iter().flatten().count();
                        let may: Vec<u32> = (0..takes.len() as u32).filter(|&id| has(id)).collect();
                        draw = draw.wrapping_mul(0x9E37_79B1).wrapping_add(77);
                        let next = may[(draw >> 8) as usize % may.len()];
                        match state.settle(next).expect("it goes on") {
                            Some(next) => next,
                            None => {
                                assert_eq!(state.takes(next), Some(false));
                                continue;
                            }
                        }
                    }
                    Err(error) => panic!("{constraint:?}: {error}"),
                };
                state.accept(next).expect("it is allowed");
                if draw % 5 == 0 {
                    state.rollback(1).expect("one was taken");
                    state.accept(next).expect("it still is");
                }
            }
            assert!(known > 500, "{constraint:?} {known}");
        }
    }
}

#[test]
fn a_space_that_would_be_lost_does_not_begin_an_answer() {
    let grammar = compile(&Constraint::Regex(" ?low".to_owned())).expect("it compiles");
    let spaced = tokens(" lo")[0];
    let is_set = |state: &mut State, id: u32| words(state)[id as usize / 32] >> (id % 32) & 1 == 1;
    for drops_space in [false, true] {
        let mut state = grammar.state();
        state.begin(drops_space, 16).expect("it begins");
        assert!(is_set(&mut state, tokens("low")[0]));
        assert_eq!(is_set(&mut state, spaced), !drops_space);
    }
    let grammar = compile(&Constraint::Regex(" low".to_owned())).expect("it compiles");
    assert!(grammar.state().begin(true, 16).is_err());
}

#[test]
fn grammars_of_each_kind_reach_their_texts_alone() {
    let gbnf = r#"root ::= object # json
        object ::= "{" ( pair ("," pair)* )? "}"
        pair ::= "\"" [a-z]+ "\":" value
        value ::= object | [0-9]{1,3} | "true""#;
    let kinds: [(Constraint, &[&str], &[&str]); 5] = [
        (
            Constraint::Regex(r"(ok|error: \d{3})".to_owned()),
            &["ok", "error: 404"],
            &["okay", "error: 40", "", " ok", "error: 4044"],
        ),
        (
            Constraint::Lark("start: \"<\" NAME \">\" start? \"/\"\nNAME: /[a-z]+/".to_owned()),
            &["<a>/", "<ab><c>//"],
            &["<a>", "<a>//", "<A>/"],
        ),
        (
            Constraint::Gbnf(gbnf.to_owned()),
            &["{}", "{\"a\":1}", "{\"ab\":{\"c\":true},\"d\":123}"],
            &["{\"a\":1234}", "{\"a\":1", "{\"A\":1}", "{,}", "{\"a\":1,}"],
        ),
        (
            Constraint::Gbnf("root ::= [^\\n\"]{1,3} \"a\"? (\"x\" | \"xy\" | \"é\")".to_owned()),
            &["ax", "ééxy", "xxxx", "aaaé"],
            &["x", "a\nx", "aaaaax"],
        ),
        (
            Constraint::JsonObject,
            &["{}", "{\"a\":[1,-2.5,{\"b\":null}],\"c\":\"é\\n\"}"],
            &[
                "[]",
                "{\"a\": 1}",
                "{\"a\":1",
                "{\"\\u0061\":1}",
                "1",
                "{\"a\":01}",
            ],
        ),
    ];
    for (constraint, right, wrong) in kinds {
        let grammar = compile(&constraint).expect("it compiles");
        for text in right {
            assert!(reached(&grammar, text), "{constraint:?} {text}");
        }
        for text in wrong {
            assert!(!reached(&grammar, text), "{constraint:?} {text}");
        }
    }
}

#[test]
fn only_days_that_there_are_can_be_said() {
    for (format, behind) in [("date", ""), ("date-time", "T23:59:00.25+01:00")] {
        let grammar = schema(&json!({"type": "string", "format": format})).expect("it compiles");
        for (day, is) in [
            ("2024-02-29", true),
            ("2000-02-29", true),
            ("0000-02-29", true),
            ("2023-02-29", false),
            ("1900-02-29", false),
            ("2024-02-30", false),
            ("2023-02-28", true),
            ("2023-04-31", false),
            ("2023-12-31", true),
            ("2023-00-10", false),
        ] {
            assert_eq!(
                reached(&grammar, &format!("\"{day}{behind}\"")),
                is,
                "{day}{behind}"
            );
        }
    }
}

#[test]
fn what_a_schema_leaves_open_is_bounded() {
    let open = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "values": {"type": "array", "items": {"type": "integer"}},
        "number": {"type": "number"}},
        "required": ["name", "values", "number"]});
    let grammar = andon_engine::grammar::Grammar::compile(
        vocabulary::shared(),
        &Constraint::JsonSchema(open),
        64,
    )
    .expect("it compiles");
    let answer = |name: usize, values: usize, number: &str| {
        let (name, values) = ("x".repeat(name), vec!["1"; values].join(","));
        format!("{{\"name\":\"{name}\",\"values\":[{values}],\"number\":{number}}}")
    };
    assert!(reached(&grammar, &answer(16, 4, "-123456789012345.123456")));
    assert!(!reached(&grammar, &answer(1000, 4, "1")));
    assert!(!reached(&grammar, &answer(16, 5, "1")));
    assert!(!reached(&grammar, &answer(16, 4, "1.1234567")));
    assert!(!reached(&grammar, &answer(16, 4, "12345678901234567")));
    // What has bounds keeps them.
    let bounded = json!({"type": "string", "minLength": 500, "maxLength": 600});
    let grammar = schema(&bounded).expect("it compiles");
    assert!(reached(&grammar, &format!("\"{}\"", "é".repeat(600))));
    assert!(!reached(&grammar, &format!("\"{}\"", "é".repeat(601))));
}
